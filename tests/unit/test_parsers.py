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
from ray_judge.judging.formats import Format, auto_j, format_for, judgelm, pandalm, prometheus
from ray_judge.judging.formats.slots import Slots

from . import malformed_answers as table

pytestmark = pytest.mark.timeout(60)

EMPTY = Slots(("",), ())
"""Reading an answer does not need the template."""
GENERIC = JudgeConfig(model="m", decode="full")
FORMATS: dict[str, Format] = {
    "judgelm-pairwise": judgelm.make("pairwise", EMPTY),
    "judgelm-pointwise": judgelm.make("pointwise", EMPTY),
    "pandalm-pairwise": pandalm.make("pairwise", EMPTY),
    "pandalm-pointwise": pandalm.make("pointwise", EMPTY),
    "auto-j-pairwise": auto_j.make("pairwise", EMPTY, forced=False),
    "auto-j-pointwise": auto_j.make("pointwise", EMPTY, forced=False),
    "prometheus-pointwise": prometheus.make("pointwise", EMPTY, forced=False, rubric=None),
    "prometheus-2-pairwise": prometheus.make_2(
        "pairwise", EMPTY, forced=False, rubric=None, chat=None
    ),
    "prometheus-2-pointwise": prometheus.make_2(
        "pointwise", EMPTY, forced=False, rubric=None, chat=None
    ),
    "generic-pairwise": format_for(GENERIC, "pairwise"),
    "generic-pointwise": format_for(GENERIC, "pointwise"),
}
TABLES: dict[str, table.Table] = {
    "judgelm-pairwise": table.JUDGELM_PAIRS,
    "judgelm-pointwise": table.JUDGELM_SCORES,
    "pandalm-pairwise": table.PANDALM_PAIRS,
    "pandalm-pointwise": table.PANDALM_SCORES,
    "auto-j-pairwise": table.AUTO_J_PAIRS,
    "auto-j-pointwise": table.AUTO_J_SCORES,
    "prometheus-pointwise": table.RESULT_SCORES,
    "prometheus-2-pairwise": table.RESULT_PAIRS,
    "prometheus-2-pointwise": table.RESULT_SCORES,
    "generic-pairwise": table.GENERIC_PAIRS,
    "generic-pointwise": table.GENERIC_SCORES,
}
CASES = [(name, *case) for name, cases in TABLES.items() for case in cases]


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
HARMLESS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "a space in front": lambda text: f" {text}",
    "a line in front": lambda text: f"\n{text}",
    "lines behind": lambda text: f"{text}\n\n",
    "CRLF": lambda text: text.replace("\n", "\r\n"),
}
HARMFUL: dict[str, Callable[[str, str], str]] = {
    "half of it": lambda shape, said: shape.format(said + "/10"),
    "a decimal": lambda shape, said: shape.format(said + ".5"),
    "a comma": lambda shape, said: shape.format(said + ",5"),
    "a range": lambda shape, said: shape.format(said + "-9"),
    "more digits": lambda shape, said: shape.format(said + "11"),
    "full width": lambda shape, said: shape.format(_full_width(said)),
    "nothing": lambda shape, said: shape.format(""),
    "a dash": lambda shape, said: shape.format("-"),
    "a placeholder": lambda shape, said: shape.format("(the verdict)"),
    "a question": lambda shape, said: shape.format(said + "?!"),
    "in brackets": lambda shape, said: shape.format(f"({said})"),
    "in quotation marks": lambda shape, said: shape.format(f'"{said}"'),
    "all of it quoted": lambda shape, said: f'"{shape.format(said)}"',
    "all of it in a block": lambda shape, said: "> " + shape.format(said).replace("\n", "\n> "),
    "another language": lambda shape, said: shape.format("第一" + said),
    "a word behind": lambda shape, said: shape.format(said + " perhaps"),
    "a word in front": lambda shape, said: shape.format("maybe " + said),
}


def _full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


@pytest.mark.parametrize("name", WELL)
@pytest.mark.parametrize("change", HARMLESS)
def test_a_well_formed_answer_is_read(name: str, change: str) -> None:
    shape, said = WELL[name]
    for text, verdict in said.items():
        assert reads(name, HARMLESS[change](shape.format(text))) == verdict


@pytest.mark.parametrize("name", WELL)
@pytest.mark.parametrize("change", HARMFUL)
def test_a_spoilt_answer_is_no_verdict(name: str, change: str) -> None:
    shape, said = WELL[name]
    for text in said:
        assert reads(name, HARMFUL[change](shape, text)) is None


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


@pytest.mark.parametrize("name", [n for n in WELL if not n.startswith(("judgelm", "pandalm"))])
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
    if name.startswith(("judgelm", "pandalm")):
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


def test_all_real_verdicts_of_pandalm(data: Path) -> None:
    rows = pl.read_parquet(data / "pandalm_test.parquet")
    seen = 0
    for verdict, reason, reference in rows.select(
        "pandalm_7b_verdict", "pandalm_7b_reason", "response_b"
    ).iter_rows():
        seen += 1
        answer = f"{PANDALM[verdict]}\n\n### Reason: {reason}\n\n### Reference: {reference}"
        assert reads("pandalm-pairwise", answer) == verdict
        for score in ("1", "5"):
            own = f"{score}\n\n### Reason: {reason}\n\n### Reference: {reference}"
            assert reads("pandalm-pointwise", own) == score
            assert reads("prometheus-pointwise", f"Feedback: {reason} [RESULT] {score}") == score
        first, second = {"A": (8, 6), "B": (5, 9), "tie": (10, 10)}[verdict]
        assert reads("judgelm-pairwise", f"{first} {second}\n{reason}") == verdict
        assert reads("judgelm-pairwise", f"\n{first} {second}\n{reason}\n") == verdict
        assert reads("judgelm-pointwise", f"{first}\n{reason}") == str(first)
        assert reads("auto-j-pairwise", _auto_j(reason, verdict)) == verdict
        assert reads("auto-j-pointwise", f"{reason}\n\nRating: [[{first}]]") == str(first)
        if verdict != "tie":
            answer = f"Feedback: {reason} [RESULT] {verdict}"
            assert reads("prometheus-2-pairwise", answer) == verdict
        letter = {"tie": "C"}.get(verdict, verdict)
        assert reads("generic-pairwise", f"{reason}\n\nVerdict: {letter}") == verdict
    assert seen == 999


def test_all_real_verdicts_of_auto_j_in_both_orders(data: Path) -> None:
    rows = pl.read_parquet(data / "autoj_test.parquet")
    columns = ("autoj_13b_verdict", "autoj_13b_verdict_when_swapped")
    seen = 0
    for scenario, *verdicts in rows.select("scenario", *columns).iter_rows():
        for swapped, verdict in enumerate(verdicts):
            seen += 1
            # Recorded in the original orientation: swapped, the judge named the other one.
            said = {"A": "B", "B": "A", "tie": "tie"}[verdict] if swapped else verdict
            critique = f"1. The key factors for {scenario.replace('_', ' ')}:\n- clarity: equal."
            assert reads("auto-j-pairwise", _auto_j(critique, said)) == said
            behind = f"{_auto_j(critique, said)} Although both answer it, {AUTO_J[said]} stands."
            assert reads("auto-j-pairwise", behind) == said
            scores = {"A": "7 4", "B": "4 7", "tie": "6 6"}[said]
            assert reads("judgelm-pairwise", f"{scores}\n{critique}") == said
            if said != "tie":
                assert reads("prometheus-2-pairwise", f"{critique} [RESULT] {said}") == said
    assert seen == 2 * 1392


def _auto_j(critique: str, verdict: str) -> str:
    return f"{critique}\n\nSo, the final decision is {AUTO_J[verdict]}."


def test_reasons_are_sentences_that_show_what_was_said() -> None:
    reasons = [
        (FORMATS[name].parse(answer).reason or "") for name, answer, said in CASES if said is None
    ]
    assert not [r for r in reasons if not re.match(r"the answer|behind ", r)]
    assert '"11 10"' in str(FORMATS["judgelm-pairwise"].parse("11 10").reason)
