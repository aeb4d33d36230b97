"""Formats: what the local judge is asked, and which tokens may answer."""

from __future__ import annotations

from typing import Any

import pytest

from ray_judge.config import JudgeConfig
from ray_judge.engines.vllm import check_model, verdict_tokens
from ray_judge.errors import ConfigError
from ray_judge.judges import format_for
from ray_judge.judges.generic import DEFAULT_RUBRIC
from ray_judge.records import Example

pytestmark = pytest.mark.timeout(30)

PAIR = Example("do", ("one", "two"))


def judge(**changes: Any) -> JudgeConfig:
    return JudgeConfig(model="m", **changes)


def test_demo_is_exactly_what_its_model_was_trained_on() -> None:
    shown = format_for(judge(format="demo"), "pairwise")
    assert shown.render(PAIR).plain() == "do\nA: one\nB: two\nBest: "
    assert shown.spellings == {"A": ("A",), "B": ("B",)}
    assert shown.chat is False


def test_braces_in_the_data_are_data() -> None:
    example = Example("{instruction} {0}", ("{", "}"))
    for name in ("demo", "generic"):
        text = format_for(judge(format=name), "pairwise").render(example).plain()
        assert "{instruction} {0}" in text


@pytest.mark.parametrize(
    ("ties", "names", "words"),
    [(True, ["A", "B", "tie"], "A, B or C"), (False, ["A", "B"], "A or B")],
)
def test_generic_pairs(ties: bool, names: list[str], words: str) -> None:
    shown = format_for(judge(ties=ties), "pairwise")
    assert list(shown.spellings) == names
    question = shown.render(PAIR)
    assert words in question.user and "[Answer A]\none" in question.user
    assert question.plain().endswith("Verdict:")
    assert question.plain().startswith(str(question.system))


def test_generic_scores() -> None:
    shown = format_for(judge(scores=(0, 3)), "pointwise")
    assert list(shown.spellings) == ["0", "1", "2", "3"]
    text = shown.render(Example("do", ("one",))).user
    assert "from 0 (worst) to 3 (best)" in text and "[Answer]\none" in text


def test_the_rubric_of_the_row_wins_over_the_configurations_over_ours() -> None:
    example = Example("do", ("one", "two"), rubric="row's")
    plain, own = format_for(judge(), "pairwise"), format_for(judge(rubric="own"), "pairwise")
    assert DEFAULT_RUBRIC in plain.render(PAIR).user
    assert "[Criteria]\nown" in own.render(PAIR).user
    assert "[Criteria]\nrow's" in own.render(example).user


def test_swapping_exchanges_only_the_responses() -> None:
    shown = format_for(judge(), "pairwise")
    pair = Example("do", ("uno", "due"))
    here, there = shown.render(pair).user, shown.render(pair.swapped()).user
    assert here != there
    assert here.replace("uno", "*").replace("due", "uno").replace("*", "due") == there


class Words:
    """A tokenizer with a given vocabulary; every other text is two tokens."""

    def __init__(self, **ids: int) -> None:
        self.ids = {name.replace("_", " "): n for name, n in ids.items()}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.ids[text]] if text in self.ids else [1, 2]


def test_only_whole_tokens_spell_a_verdict() -> None:
    spellings = {"A": ("A", " A"), "B": ("B", " B")}
    assert verdict_tokens(Words(A=5, _A=6, B=7), spellings) == {"A": (5, 6), "B": (7,)}
    assert verdict_tokens(Words(A=5, _A=5, B=7), spellings) == {"A": (5,), "B": (7,)}
    with pytest.raises(ConfigError, match="'B'"):
        verdict_tokens(Words(A=5), spellings)
    with pytest.raises(ConfigError, match="same token"):
        verdict_tokens(Words(A=5, B=5), spellings)


@pytest.mark.parametrize("model", ["/nowhere/model", "./nowhere", "~/nowhere", "a/b/c", "nowhere"])
def test_a_model_path_that_leads_nowhere(model: str) -> None:
    with pytest.raises(ConfigError, match="no such path") as caught:
        check_model(model)
    assert caught.value.exit_code == 2


def test_a_folder_that_is_no_model(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_model(str(tmp_path))
    check_model("org/model")  # the hub's to say
