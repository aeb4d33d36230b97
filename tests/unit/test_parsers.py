"""Reading whole answers: real ones are read as recorded, malformed ones never as something else."""

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

from .malformed_answers import TABLES

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
        assert re.fullmatch(r"(the answer|behind ).{,189}", parsed.reason or "")
        return None
    assert any(answer.startswith(s, parsed.start) for s in shown.spellings[parsed.verdict])
    return parsed.verdict


def test_the_corpus_is_large_enough_and_reasons_show_what_was_said() -> None:
    assert len({(name, answer) for name, answer, _ in CASES}) == len(CASES)
    assert sum(expected is None for _, _, expected in CASES) >= 200
    assert '"11 10"' in str(FORMATS["judgelm-pairwise"].parse("11 10").reason)


@pytest.mark.parametrize(("name", "answer", "expected"), CASES)
def test_malformed_answers(name: str, answer: str, expected: str | None) -> None:
    assert reads(name, answer) == expected


WELL: dict[str, tuple[str, dict[str, str]]] = {
    "judgelm-pairwise": ("{}\nWHY", {"8 7": "A", "2 9": "B", "6 6": "tie"}),
    "judgelm-pointwise": ("{}\nWHY", {"1": "1", "8": "8", "10": "10"}),
    "pandalm-pairwise": (
        "{}\n\n### Reason: WHY\n\n### Reference: yes", {"1": "A", "2": "B", "Tie": "tie"},
    ),
    "pandalm-pointwise": ("{}\n\n### Reason: WHY", {"1": "1", "5": "5"}),
    "auto-j-pairwise": (
        "1. WHY\n\nSo, the final decision is {}.",
        {"Response 1": "A", "Response 2": "B", "Tie": "tie"},
    ),
    "auto-j-pointwise": ("WHY\n\nRating: [[{}]]", {"1": "1", "10": "10"}),
    "prometheus-pointwise": ("Feedback: WHY [RESULT] {}", {"1": "1", "5": "5"}),
    "prometheus-2-pairwise": ("Feedback: WHY [RESULT] {}", {"A": "A", "B": "B"}),
    "prometheus-2-pointwise": ("WHY [RESULT] {}", {"1": "1", "5": "5"}),
    "generic-pairwise": ("WHY\nVerdict: {}", {"A": "A", "B": "B", "C": "tie"}),
    "generic-pointwise": ("WHY\nVerdict: {}", {"1": "1", "5": "5"}),
}  # fmt: skip
"""Each judge's form of an answer, and its verdicts in it; for WHY an explanation may stand."""
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


@pytest.mark.parametrize("name", WELL)
def test_a_verdict_that_a_response_dictates_or_that_is_revoked_is_none(name: str) -> None:
    """The judge repeats what a response told it to say, and then gives no verdict or its own."""
    shape, said = WELL[name]
    for first, meant in said.items():
        told = f'The response tells me to write "{shape.format(first)}" and I refuse.'
        assert reads(name, told) is None
        for own, verdict in said.items():
            assert reads(name, f"{told}\n\n{shape.format(own)}") in (verdict, None)
            if name not in FIRST_LINE:
                both = f"{shape.format(first)}\n\n{shape.format(own)}"
                assert reads(name, both) == (meant if first == own else None)


@pytest.mark.parametrize("name", WELL)
@given(st.data())
def test_free_text_never_makes_a_verdict(name: str, data: Any) -> None:
    """Text without the sign of a verdict has none; text around one changes nothing, or spoils."""
    shape, said = WELL[name]
    own = data.draw(st.sampled_from(sorted(said)))
    words = st.text("abc .,:;!?\n\"'`*>()[]/-0123456789AB", max_size=40)
    before, behind = data.draw(words), data.draw(words)
    text = f"{before}{shape.format(own)}{behind}"
    found = reads(name, text)
    if name in FIRST_LINE:
        line = text.lstrip(" \n").partition("\n")[0].strip()
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


def all_read(why: str, verdict: str) -> None:
    """In every family's form the verdict is read behind (or before) this explanation."""
    for name, (shape, said) in WELL.items():
        for text, meant in said.items():
            if meant == verdict or name.endswith("pointwise"):
                assert reads(name, shape.format(text).replace("WHY", why)) == meant


def test_all_real_verdicts_of_pandalm(texts_data: Path) -> None:
    columns = ("pandalm_7b_verdict", "pandalm_7b_reason", "response_b")
    rows = pl.read_parquet(texts_data / "pandalm_test.parquet").select(columns).rows()
    for verdict, reason, reference in rows:
        behind = f"\n\n### Reason: {reason}\n\n### Reference: {reference}"
        text = {"A": "1", "B": "2", "tie": "Tie"}[verdict]
        assert reads("pandalm-pairwise", text + behind) == verdict
        assert reads("pandalm-pointwise", "5" + behind) == "5"
        all_read(reason, verdict)
    assert len(rows) == 999


def test_all_real_verdicts_of_auto_j_in_both_orders(data: Path) -> None:
    columns = ("scenario", "autoj_13b_verdict", "autoj_13b_verdict_when_swapped")
    rows = pl.read_parquet(data / "autoj_test.parquet").select(columns)
    for scenario, straight, swapped in rows.unique().rows():
        why = f"1. The key factors for {scenario.replace('_', ' ')}:\n- clarity: equal."
        all_read(why, straight)
        # Recorded in the original orientation: swapped, the judge named the other one.
        all_read(why, {"A": "B", "B": "A", "tie": "tie"}[swapped])
    assert len(rows) == 1392
