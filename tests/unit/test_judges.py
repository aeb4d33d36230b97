"""Formats: what the local judge is asked, which texts may answer, and from what it was tuned."""

import json
import pickle
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.engines.tokens import find_boundary
from ray_judge.judging.engines.verdict_tree import build_tree
from ray_judge.judging.formats import Format, Template, base_of, format_for
from ray_judge.judging.formats.families import GENERIC_RUBRIC
from ray_judge.records import Example, Task

PAIR = Example("do", ("one", "two"))
SINGLE = Example("do", ("one",))


def judge(**changes: Any) -> JudgeConfig:
    return JudgeConfig(model="m", **changes)


def test_demo_is_exactly_what_its_model_was_trained_on() -> None:
    shown = format_for(judge(format="demo"), "pairwise")
    assert shown.render(PAIR).plain() == "do\nA: one\nB: two\nBest: "
    assert shown.spellings == {"A": ("A",), "B": ("B",)}
    assert shown.chat is False and shown.task == "pairwise"
    assert [shown.parse(text).verdict for text in ("A", "B", "AB", "")] == ["A", "B", None, None]


@given(*[st.text("{}rubicsponea_ \n", max_size=30)] * 4)
def test_nothing_in_a_text_is_filled_in(instruction: str, one: str, two: str, rubric: str) -> None:
    names = ("instruction", "response_a", "response_b", "rubric")
    template = Template.split("<{instruction}|{response_a}|{rubric}|{x}|{response_b}>", names)
    filled = template.fill(Example(instruction, (one, two)), rubric)
    assert filled == f"<{instruction}|{one}|{rubric}|{{x}}|{two}>"


def test_the_input_goes_behind_the_instruction_unless_it_has_its_own_place() -> None:
    example = Example("do", ("one",), input="in", reference="ref", rubric="own")
    names = ("instruction", "response", "rubric")
    behind = Template.split("{instruction}/{response}/{rubric}", names)
    assert behind.fill(example, "other") == "do\nin/one/own"
    names = ("input", "reference", "instruction")
    placed = Template.split("{input}{reference}{instruction}", names)
    assert placed.fill(example, "") == "inrefdo"


@pytest.mark.parametrize(
    ("ties", "names", "words"),
    [(True, ["A", "B", "tie"], "A, B or C"), (False, ["A", "B"], "A or B")],
)
@pytest.mark.parametrize("decode", ["verdict", "full"])
def test_generic(ties: bool, names: list[str], words: str, decode: str) -> None:
    shown = format_for(judge(ties=ties, decode=decode), "pairwise")
    assert list(shown.spellings) == names
    assert shown.spellings["A"] == ("A", " A")
    question = shown.render(PAIR)
    assert words in question.user and "[Answer A]\none" in question.user
    assert question.plain().endswith("Verdict:" if decode == "verdict" else ")\n")
    assert question.plain().startswith(str(question.system))
    assert ("explain" in question.user) == (decode == "full")
    shown = format_for(judge(scores=(0, 12), decode=decode), "pointwise")
    assert list(shown.spellings) == [str(n) for n in range(13)]
    text = shown.render(SINGLE).user
    assert "from 0 (worst) to 12 (best)" in text and "[Answer]\none" in text


def test_the_rubric_of_the_row_wins_over_the_configurations_over_ours() -> None:
    example = Example("do", ("uno", "due"), rubric="row's")
    plain, own = format_for(judge(), "pairwise"), format_for(judge(rubric="own"), "pairwise")
    assert GENERIC_RUBRIC in plain.render(PAIR).user
    assert "[Criteria]\nown" in own.render(PAIR).user
    here, there = own.render(example).user, own.render(example.swapped()).user
    assert "[Criteria]\nrow's" in here != there  # swapping exchanges only the responses
    assert here.replace("uno", "*").replace("due", "uno").replace("*", "due") == there


@pytest.fixture
def tuned(templates: str) -> Any:
    def make(name: str, task: Task, **changes: Any) -> Format:
        return format_for(judge(format=name, templates=templates, **changes), task)

    return make


TASKS: tuple[Task, ...] = ("pairwise", "pointwise")
TUNED = ("judgelm", "pandalm", "auto-j", "prometheus", "prometheus-2")
MODES = [
    (name, task, "pointwise" if name == "prometheus" else task) for name in TUNED for task in TASKS
]


@pytest.mark.parametrize(("name", "task", "mode"), MODES)
@pytest.mark.parametrize("decode", ["verdict", "full"])
def test_each_judge_asks_with_its_own_prompt(
    name: str, task: Task, mode: Task, decode: str, tuned: Any, templates: str
) -> None:
    entries = json.loads(Path(templates).read_text())
    (text,) = (e["text"] for e in entries if (e["judge"], e["mode"]) == (name, mode))
    shown = tuned(name, task, decode=decode)
    assert shown.task == mode
    example = Example(
        "ask {rubric}", ("uno {question_body}", "due")[: 2 if mode == "pairwise" else 1],
        rubric="good {response}", reference="never shown",
    )  # fmt: skip
    question = shown.render(example)
    one = dict.fromkeys(
        "answer1_body answer_body response_A response".split(), example.responses[0]
    )
    values = dict.fromkeys(("question_body", "instruction"), "ask {rubric}") | one
    values |= {"answer2_body": "due", "response_B": "due", "rubric": "good {response}"}
    assert question.user == text.format_map(values)  # upstream's own way of filling it in
    assert question.system is None
    assert (question.opening == "") == (decode == "full" or name in ("judgelm", "pandalm"))
    assert pickle.loads(pickle.dumps(shown)) == shown
    assert shown.chat is (None if name == "prometheus-2" else False)


@pytest.mark.parametrize(("name", "task", "mode"), MODES)
def test_every_spelling_reads_as_meant(name: str, task: Task, mode: Task, tuned: Any) -> None:
    """The two ways to decode agree: what `verdict` asks for is what `full` would have read."""
    forced, full = tuned(name, task), tuned(name, task, decode="full")
    assert forced.spellings == full.spellings
    closing = "]]" if (name, mode) == ("auto-j", "pointwise") else ""
    for alternative, texts in forced.spellings.items():
        for text in texts:
            opening = forced.render(PAIR if mode == "pairwise" else SINGLE).opening
            parsed = full.parse(f"{opening}{text}{closing}")
            assert parsed.verdict == alternative, (text, parsed)
            behind = f"{opening}{text}"[parsed.start :]
            assert behind in texts and text.endswith(behind.lstrip())


def test_scores_and_their_meaning(tuned: Any) -> None:
    pairs = tuned("judgelm", "pairwise").spellings
    assert "8 7" in pairs["A"] and " 8 7" in pairs["A"] and "\n8 7" in pairs["A"]
    assert "9 10" in pairs["B"] and "10 10" in pairs["tie"]
    assert [len(texts) for texts in pairs.values()] == [30, 135, 135]
    for name in TUNED:
        highest = 10 if name in ("judgelm", "auto-j") else 5
        shown = tuned(name, "pointwise")
        assert list(shown.spellings) == [str(n) for n in range(1, highest + 1)]
        assert tuned(name, "pairwise", by_scores=True) == shown and shown.task == "pointwise"
    assert list(tuned("prometheus-2", "pairwise").spellings) == ["A", "B"]


def test_prometheus_has_criteria_of_its_own_form(tuned: Any) -> None:
    text = tuned("prometheus", "pointwise").render(SINGLE).user
    assert all(f"\nScore {n}: " in text for n in range(1, 6))
    assert "Score 1" not in tuned("prometheus-2", "pairwise").render(PAIR).user
    own = tuned("prometheus-2", "pointwise", rubric="[own]\nScore 1: x").render(SINGLE).user
    assert "[own]\nScore 1: x" in own and "Score 5: it" not in own


def test_what_a_format_cannot_do() -> None:
    for changes, task, said in (
        ({"format": "demo"}, "pointwise", "demo gives no scores"),
        ({"format": "demo", "by_scores": True}, "pairwise", "by_scores needs them"),
        ({"format": "judgelm", "chat": True}, "pairwise", "chat cannot be true"),
    ):
        with pytest.raises(ConfigError, match=said):
            format_for(judge(**changes), task)


@pytest.mark.parametrize(
    ("model", "changes", "base"),
    [
        ("BAAI/JudgeLM-7B-v1.0", {}, "lmsys/vicuna-7b-v1.3"),
        ("WeOpenML/PandaLM-7B-v1", {}, "huggyllama/llama-7b"),
        ("GAIR/autoj-13b", {}, "meta-llama/Llama-2-13b-chat-hf"),
        ("prometheus-eval/prometheus-7b-v2.0", {}, "mistralai/Mistral-7B-Instruct-v0.2"),
        ("my/base", {"adapter": "my/lora"}, "my/base"),
        ("my/judge", {"base_model": "x/y", "confidence": "calibrated_entropy"}, "x/y"),
    ],
)
def test_what_a_judge_was_tuned_from(model: str, changes: Any, base: str) -> None:
    assert base_of(JudgeConfig(model=model, **changes)) == base
    with pytest.raises(ConfigError, match=r"needs judge\.base_model.*my/judge was tuned from"):
        base_of(JudgeConfig(model="my/judge"))


def decode_letters(ids: Any) -> str:
    """As byte-level tokenizers do: a letter of several bytes is whole, or a mark in its place."""
    return bytes(ids).decode(errors="replace")


@given(st.text("aA é€😀", max_size=30), st.integers(0, 30))
def test_the_boundary_in_front_of_a_verdict(text: str, start: int) -> None:
    ids = [*text.encode()]
    begun = [decode_letters(ids[:count]) for count in range(len(ids) + 1)]
    fits = [n for n, b in enumerate(begun) if len(b) <= start and text.startswith(b)]
    assert find_boundary(text, start, ids, decode_letters) == (fits[-1], len(begun[fits[-1]]))


@pytest.mark.parametrize("tail", ["x:\n\n", "x:\n\n\n", "\n\n", "x:\n", "x:"])
def test_a_verdict_right_behind_blank_lines(tail: str) -> None:
    """This tokenizer keeps the last line end in front of a letter apart, as GPT-2's does."""

    def encode(text: str) -> Any:
        return re.findall(r"\n+(?!\S)|\n|\w+|\S", text)

    root = build_tree({"A": ["one"], "B": ["two"]}, encode, tail)
    assert set(root.children) == {"one", "two"}


def test_a_long_answer_is_not_decoded_from_each_of_its_tokens() -> None:
    decode = Mock(side_effect=decode_letters)
    text = "word " * 2000 + "[RESULT] 4"
    assert find_boundary(text, len(text) - 2, [*text.encode()], decode) == (len(text) - 2,) * 2
    assert decode.call_count <= 20
