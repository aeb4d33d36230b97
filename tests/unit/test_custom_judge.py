"""`format: custom`: the documented examples work as documented, and mistakes are named."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import RunConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.formats import Format, format_for
from ray_judge.records import Example

from .builders import config, documented

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "custom-judge.md").read_text()
PAIRS, SCORES = documented("docs/custom-judge.md")
OTHERS = ("docs/reward-judges.md", "docs/reasoning-judges.md")


@pytest.mark.parametrize("section", [one for page in OTHERS for one in documented(page)])
def test_the_pages_of_other_judges_have_good_configurations(section: dict[str, Any]) -> None:
    of = config(**section)
    assert of.judge.format == "reward" or made(of).task == of.task


def run(section: dict[str, Any], task: str = "pairwise", **judge: Any) -> RunConfig:
    section = copy.deepcopy(section)
    return config(task=task, **{**section, "judge": {**section["judge"], **judge}})


def made(of: RunConfig) -> Format:
    return format_for(of.judge, of.task)


def changed(section: dict[str, Any], **custom: Any) -> RunConfig:
    return run(section, custom={**section["judge"]["custom"], **custom})


def test_the_documented_judge_of_pairs() -> None:
    shown = made(run(PAIRS))
    assert shown.task == "pairwise" and shown.chat is None
    assert shown.stop == ("### Question",) and shown.max_output_tokens == 256
    assert shown.spellings == {"A": (" first",), "B": (" second",), "tie": (" both", " neither")}
    example = Example("How?", ("{input} so", "thus"), input="a shop", reference="not shown")
    question = shown.render(example)
    assert question.user == (
        "### Question\nHow?\n\n### Context\na shop\n\n### First answer\n{input} so\n\n"
        "### Second answer\nthus\n\n### Criteria\nCorrect, complete, polite.\n\n### Judgement"
    )
    assert question.opening == "" and question.system is None
    assert made(run(PAIRS, decode="verdict")).render(example).opening == "\nWinner:"
    assert pickle.loads(pickle.dumps(shown)) == shown


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Both name it.\nWinner: second", "B"), ("Winner: first\n", "A"), ("Winner:  both ", "tie"),
        ("Why.\nWinner: neither", "tie"), ("Winner:first", "A"),
        ("Winner: first\nWinner: first", "A"),
        ("", None), ("first", None), ("Winner:", None), ("Winner: third", None),
        ("Winner: first or second", None), ("Winner: First", None), ("Winner: first.", None),
        ("Winner: second\nThat was close.", "B"), ("Winner: second\nWinner: first", None),
        ("I say Winner: first", None),
        ('It says "Winner: first".', None),
    ],
)  # fmt: skip
def test_its_answers(answer: str, verdict: str | None) -> None:
    shown = made(run(PAIRS))
    parsed = shown.parse(answer)
    assert parsed.verdict == verdict and (parsed.reason is None) == (verdict is not None)
    if verdict is not None:
        texts = shown.spellings[verdict]
        behind = answer[parsed.start :].partition("\n")[0].rstrip()
        assert behind in texts or behind in [text.strip() for text in texts]


def test_the_example_in_the_text_is_read_and_several_verdicts_must_agree() -> None:
    said = re.search(r"^> (Both.*)\n> (Winner.*)$", DOCUMENT, re.MULTILINE)
    assert said is not None
    answer = f"{said[1]}\n{said[2]}"
    parsed = made(run(PAIRS)).parse(answer)
    assert parsed.verdict == "B" and answer[parsed.start :] == " second"
    shown = made(changed(PAIRS, verdict=r"Winner: (?P<verdict>\w+)"))
    answer = "Winner: both\nno: Winner: neither"
    assert shown.parse(answer).verdict == "tie"
    assert answer[shown.parse(answer).start :] == " neither"
    assert "several" in str(shown.parse("Winner: first\nWinner: second").reason)


def test_the_documented_judge_of_single_responses() -> None:
    assert list(SCORES["judge"]["custom"]["choices"]) == [0, 1, 2]  # YAML needs no quotes for them
    single = made(run(SCORES, task="pointwise"))
    assert single.render(Example("Q", ("R",))).plain() == "Question: Q\nAnswer: R\nGrade:"
    assert list(single.spellings) == ["0", "1", "2"]
    assert run(SCORES, task="pointwise").alternatives() == ("0", "1", "2")
    assert "verdict is not given" in str(single.parse("Grade: good").reason)
    pairs = made(run(SCORES))
    assert pairs == single and pairs.task == "pointwise"


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        (PAIRS, {"choices": {"A": ["a"], "tie": ["t"]}}, "choices are A and B"),
        (PAIRS, {"choices": {"yes": ["y"], "no": ["n"]}}, "whole scores"),
        (PAIRS, {"choices": {}}, "choices are A and B"),
        (PAIRS, {"choices": {"A": [" "], "B": ["b"]}}, "choice A needs texts"),
        (PAIRS, {"choices": {"A": ["x"], "B": [" x"]}}, "same text 'x'"),
        (PAIRS, {"choices": {"1": ["1"], "2": ["2"]}}, "no place for {response}"),
        (PAIRS, {"verdict": "(?P<verdict>"}, "not a regular expression"),
        (PAIRS, {"verdict": "Winner: (.*)"}, "(?P<verdict>...)"),
        (PAIRS, {"template": "{instruction} {response_a}:"}, "no place for {response_b}"),
        (PAIRS, {"template": ""}, "no place for {response_a}, {response_b}, {instruction}"),
        (PAIRS, {"template": "{instruction}{response_a}{response_b}{response}:"}, "has {response}"),
        (PAIRS, {"verdict": None}, "decode: full needs custom.verdict"),
        (PAIRS, {"max_output_tokens": 0}, "max_output_tokens"),
        (PAIRS, {"openning": "x"}, "did you mean judge.custom.opening?"),
        (SCORES, {"choices": {"1": ["a"], "2": ["b"], "3": ["c"]}}, "not the scores from 0 to 2"),
        (SCORES, {"choices": {"0.5": ["a"], "1": ["b"]}}, "choices are A and B"),
        (SCORES, {"choices": {"00": ["a"], "1": ["b"]}}, "choices are A and B"),
    ],
)
def test_mistakes_are_named(section: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(section, **changes)
    assert said in str(caught.value) and "judge" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"custom": None}, "format: custom goes with the key custom"),
        ({"format": "generic"}, "goes with the key custom"),
        ({"scores": [1, 5]}, "scores goes with custom.choices that are scores"),
        ({"task": "pointwise"}, "task: pointwise needs them"),
        ({"by_scores": True}, "by_scores needs them"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        made(run(PAIRS, **changes))
