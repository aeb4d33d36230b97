"""Reading whole answers: real ones are read as recorded, malformed ones never as something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_judge.config import JudgeConfig
from ray_judge.judging.formats import Format, Template, format_for
from ray_judge.judging.formats.families import FAMILIES
from ray_judge.records import Task

from . import malformed_answers as table

pytestmark = pytest.mark.timeout(60)

TABLES: dict[str, table.Table] = {
    "judgelm-pairwise": table.JUDGELM_PAIRS, "judgelm-pointwise": table.JUDGELM_SCORES,
    "pandalm-pairwise": table.PANDALM_PAIRS, "pandalm-pointwise": table.PANDALM_SCORES,
    "auto-j-pairwise": table.AUTO_J_PAIRS, "auto-j-pointwise": table.AUTO_J_SCORES,
    "prometheus-pointwise": table.RESULT_SCORES, "prometheus-2-pairwise": table.RESULT_PAIRS,
    "prometheus-2-pointwise": table.RESULT_SCORES, "generic-pairwise": table.GENERIC_PAIRS,
    "generic-pointwise": table.GENERIC_SCORES,
}  # fmt: skip
CASES = [(name, *case) for name, cases in TABLES.items() for case in cases]


def make(name: str) -> Format:
    """Reading an answer does not need the template."""
    family, _, mode = name.rpartition("-")
    task: Task = "pairwise" if mode == "pairwise" else "pointwise"
    if family == "generic":
        return format_for(JudgeConfig(model="m", decode="full"), task)
    return Format(task, Template(("",), ()), FAMILIES[family].answers(task))


FORMATS = {name: make(name) for name in TABLES}


def reads(name: str, answer: str) -> str | None:
    """Parse, and check what holds for every answer."""
    shown = FORMATS[name]
    parsed = shown.parse(answer)
    assert (parsed.verdict is None) == (parsed.reason is not None), parsed
    if parsed.verdict is None:
        assert parsed.reason and "\n" not in parsed.reason and len(parsed.reason) < 200
        return None
    assert any(answer.startswith(s, parsed.start) for s in shown.spellings[parsed.verdict])
    return parsed.verdict


def test_the_corpus_is_large_enough() -> None:
    assert len({(name, answer) for name, answer, _ in CASES}) == len(CASES)
    assert sum(expected is None for _, _, expected in CASES) >= 200


@pytest.mark.parametrize(("name", "answer", "expected"), CASES)
def test_malformed_answers(name: str, answer: str, expected: str | None) -> None:
    assert reads(name, answer) == expected


# --- every answer of these judges, in a shape that it may get on its way ---

WELL: dict[str, tuple[str, dict[str, str]]] = {
    "judgelm-pairwise": ("{}\nThe first is clearer.", {"8 7": "A", "2 9": "B", "6 6": "tie"}),
    "judgelm-pointwise": ("{}\nIt is helpful.", {"1": "1", "8": "8", "10": "10"}),
    "pandalm-pairwise": (
        "{}\n\n### Reason: it is short.\n\n### Reference: yes", {"1": "A", "2": "B", "Tie": "tie"},
    ),
    "pandalm-pointwise": ("{}\n\n### Reason: it is concise.", {"1": "1", "5": "5"}),
    "auto-j-pairwise": (
        "1. Both are polite.\n\nSo, the final decision is {}.",
        {"Response 1": "A", "Response 2": "B", "Tie": "tie"},
    ),
    "auto-j-pointwise": ("It lacks an example.\n\nRating: [[{}]]", {"1": "1", "10": "10"}),
    "prometheus-pointwise": ("Feedback: it is clear. [RESULT] {}", {"1": "1", "5": "5"}),
    "prometheus-2-pairwise": ("Feedback: A is clear. [RESULT] {}", {"A": "A", "B": "B"}),
    "prometheus-2-pointwise": ("It is clear. [RESULT] {}", {"1": "1", "5": "5"}),
    "generic-pairwise": ("Both are clear.\nVerdict: {}", {"A": "A", "B": "B", "C": "tie"}),
    "generic-pointwise": ("It is clear.\nVerdict: {}", {"1": "1", "5": "5"}),
}  # fmt: skip
FIRST_LINE = [name for name in WELL if name.startswith(("judgelm", "pandalm"))]
HARMLESS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "a space in front": lambda text: f" {text}",
    "a line in front": lambda text: f"\n{text}",
    "lines behind": lambda text: f"{text}\n\n",
    "CRLF": lambda text: text.replace("\n", "\r\n"),
}
SPOILT = ("{}/10", "{}.5", "{},5", "{}-9", "{}11", "{}?!", "({})", '"{}"', "第一{}", "{} perhaps",
          "maybe {}", "-", "", "(the verdict)")  # fmt: skip
"""What may not be read as the verdict that it begins with, or holds."""
HARMFUL: dict[str, Callable[[str, str], str]] = {
    **{text: lambda shape, said, text=text: shape.format(text.format(said)) for text in SPOILT},
    "full width": lambda shape, said: shape.format(_full_width(said)),
    "all of it quoted": lambda shape, said: f'"{shape.format(said)}"',
    "all of it in a block": lambda shape, said: "> " + shape.format(said).replace("\n", "\n> "),
}


def _full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


@pytest.mark.parametrize("name", WELL)
def test_a_well_formed_answer_is_read_and_a_spoilt_one_is_not(name: str) -> None:
    shape, said = WELL[name]
    for text, verdict in said.items():
        for what, change in HARMLESS.items():
            assert reads(name, change(shape.format(text))) == verdict, what
        for what, spoil in HARMFUL.items():
            assert reads(name, spoil(shape, text)) is None, what


@pytest.mark.parametrize("name", WELL)
def test_an_answer_that_was_cut_off_has_its_verdict_or_none(name: str) -> None:
    """Except where a shorter answer is another whole answer: `1` is what is left of `10`."""
    shape, said = WELL[name]
    for text, verdict in said.items():
        whole = shape.format(text)
        for end in range(len(whole)):
            found = reads(name, whole[:end])
            if found != verdict and found is not None:
                assert whole[:end].endswith("1") and text.endswith("10")


@pytest.mark.parametrize("name", [name for name in WELL if name not in FIRST_LINE])
def test_two_conclusions_that_differ_are_none(name: str) -> None:
    shape, said = WELL[name]
    for one in said:
        for other in said:
            both = f"{shape.format(one)}\n\n{shape.format(other)}"
            assert reads(name, both) == (said[one] if one == other else None)


@pytest.mark.parametrize("name", WELL)
def test_a_verdict_that_a_response_dictates_is_not_the_judges(name: str) -> None:
    """The judge repeats what a response told it to say, and then gives no verdict or its own."""
    shape, said = WELL[name]
    for dictated in said:
        told = f'The response tells me to write "{shape.format(dictated)}" and I refuse.'
        assert reads(name, told) is None
        for own, verdict in said.items():
            assert reads(name, f"{told}\n\n{shape.format(own)}") in (verdict, None)


@pytest.mark.parametrize("name", WELL)
@given(st.data())
def test_free_text_never_makes_a_verdict(name: str, data: Any) -> None:
    """Text without the sign of a verdict has none; text around one changes nothing, or spoils."""
    shape, said = WELL[name]
    own = data.draw(st.sampled_from(sorted(said)))
    words = st.text("abc .,:;!?\n\"'`*>()[]/-0123456789AB", max_size=40)
    before, behind = data.draw(words), data.draw(words)
    found = reads(name, f"{before}{shape.format(own)}{behind}")
    if name in FIRST_LINE:
        line = f"{before}{shape.format(own)}{behind}".lstrip(" \n").partition("\n")[0].strip()
        known = {t.strip(): v for v, ts in FORMATS[name].spellings.items() for t in ts}
        assert found in (None, known.get(line))
    else:
        # A second score cannot come into being behind the marker, only be added to the text.
        allowed = {said[own]} | ({"10"} if own == "1" else set())
        assert found in (None, *allowed)


@given(st.integers(-20, 200), st.integers(-20, 200))
def test_two_scores_decide_as_they_compare(a: int, b: int) -> None:
    found = reads("judgelm-pairwise", f"{a} {b}\nwhy")
    if 1 <= a <= 10 and 1 <= b <= 10:
        assert found == ("tie" if a == b else "A" if a > b else "B")
    else:
        assert found is None


# --- real verdicts, in the form of the judge that gave them and in the others' ---

PANDALM = {"A": "1", "B": "2", "tie": "Tie"}
AUTO_J = {"A": "Response 1", "B": "Response 2", "tie": "Tie"}
SCORES = {"A": "8 6", "B": "5 9", "tie": "10 10"}


def all_read(why: str, verdict: str) -> None:
    """In every family's form the verdict is read behind (or before) this explanation."""
    first = SCORES[verdict].partition(" ")[0]
    assert reads("judgelm-pairwise", f"{SCORES[verdict]}\n{why}") == verdict
    assert reads("judgelm-pairwise", f"\n{SCORES[verdict]}\n{why}\n") == verdict
    assert reads("judgelm-pointwise", f"{first}\n{why}") == first
    decided = f"{why}\n\nSo, the final decision is {AUTO_J[verdict]}."
    behind = f" Although both answer it, {AUTO_J[verdict]} stands."
    assert reads("auto-j-pairwise", decided) == verdict
    assert reads("auto-j-pairwise", decided + behind) == verdict
    assert reads("auto-j-pointwise", f"{why}\n\nRating: [[{first}]]") == first
    assert reads("generic-pairwise", f"{why}\n\nVerdict: {verdict.replace('tie', 'C')}") == verdict
    assert reads("prometheus-pointwise", f"Feedback: {why} [RESULT] 5") == "5"
    if verdict != "tie":
        assert reads("prometheus-2-pairwise", f"Feedback: {why} [RESULT] {verdict}") == verdict


def test_all_real_verdicts_of_pandalm(texts_data: Path) -> None:
    columns = ("pandalm_7b_verdict", "pandalm_7b_reason", "response_b")
    rows = pl.read_parquet(texts_data / "pandalm_test.parquet").select(columns).rows()
    for verdict, reason, reference in rows:
        behind = f"\n\n### Reason: {reason}\n\n### Reference: {reference}"
        assert reads("pandalm-pairwise", PANDALM[verdict] + behind) == verdict
        for score in ("1", "5"):
            assert reads("pandalm-pointwise", score + behind) == score
        all_read(reason, verdict)
    assert len(rows) == 999


def test_all_real_verdicts_of_auto_j_in_both_orders(data: Path) -> None:
    columns = ("scenario", "autoj_13b_verdict", "autoj_13b_verdict_when_swapped")
    rows = pl.read_parquet(data / "autoj_test.parquet").select(columns).rows()
    for scenario, straight, swapped in rows:
        why = f"1. The key factors for {scenario.replace('_', ' ')}:\n- clarity: equal."
        all_read(why, straight)
        # Recorded in the original orientation: swapped, the judge named the other one.
        all_read(why, {"A": "B", "B": "A", "tie": "tie"}[swapped])
    assert len(rows) == 1392


def test_reasons_are_sentences_that_show_what_was_said() -> None:
    reasons = [
        (FORMATS[name].parse(answer).reason or "") for name, answer, said in CASES if said is None
    ]
    assert not [r for r in reasons if not re.match(r"the answer|behind ", r)]
    assert '"11 10"' in str(FORMATS["judgelm-pairwise"].parse("11 10").reason)
