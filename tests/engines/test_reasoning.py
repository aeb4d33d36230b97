"""Judges that reason: the template's own switch, the verdict behind the trace, votes."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import RunConfig
from ray_judge.judging.confidence import verdict_probs
from ray_judge.judging.engines.engine import ModelEngine, Reading, WrittenAnswer, make_model
from ray_judge.judging.engines.tokens import TokenReader
from ray_judge.judging.engines.verdict_tree import Position
from ray_judge.judging.formats import format_for
from tests.unit import builders

from . import tiny

pytestmark = tiny.NEEDS_VLLM
ASKED = tiny.examples(12, "pairwise", seed=9, longest=60)
ON = {"thinking": True, "decode": "full", "max_output_tokens": 100}
VOTES = {**ON, "confidence": "votes", "samples": 4, "temperature": 1}
TRACE = "<think>\nOne could say [[B]].\nVerdict: B\nBut no.\n</think>\n\n"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_thinker(tmp_path_factory.mktemp("thinker") / "m")


def reasoning(model: Path, **changes: Any) -> RunConfig:
    judge = {"engine": "transformers", "model": str(model), "dtype": "float32", **changes}
    return builders.config(judge=judge)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_off_asks_a_model_that_answers_at_once(thinker: Path, engine: str) -> None:
    """Today's prompt holds nothing for the verdicts; with the empty block they have nearly all."""
    options = {"kv_cache_memory_bytes": 64 << 20} if engine == "vllm" else {}
    model, masses = None, {}
    for thinking in (None, False):
        config = reasoning(thinker, engine=engine, thinking=thinking, engine_options=options)
        model = model or make_model(config)
        reader = TokenReader(config.judge, format_for(config.judge, "pairwise"), model)
        readings = [one for one in reader.read(ASKED) if isinstance(one, Reading)]
        masses[thinking] = [verdict_probs(one.logprobs)[1] for one in readings]
    assert max(masses[None]) < 0.05 and min(masses[False]) > 0.5
    assert len(masses[None]) == len(masses[False]) == len(ASKED)
    assert model is not None
    prompts = [[5, 6, 7]] * 40
    drawn = model.write(prompts, most=3, stop=(), temperature=1.0)
    assert len({one.ids for one in drawn}) > 10, "each is drawn by itself"
    assert model.write(prompts, most=3, stop=(), temperature=1.0) == drawn, "and again alike"
    assert len({one.ids for one in model.write(prompts, most=3, stop=())}) == 1


class Scripted:
    """A model that writes what it is told to, and has an even choice of tokens everywhere."""

    context = 4096

    def __init__(self, tokenizer: Any, answers: Sequence[str], *, ended: bool = True) -> None:
        self.tokenizer, self._answers, self._ended = tokenizer, iter(answers), ended
        self.asked: list[str] = []

    def positions(self, asks: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Position]:
        self.asked += [self.tokenizer.decode(ids) for ids, _ in asks]
        return [
            Position([math.log(0.6 / 3**n) for n in range(len(ids))], likeliest=ids[0])
            for _, ids in asks
        ]

    def write(self, prompts: Any, **_: Any) -> list[WrittenAnswer]:
        texts = [next(self._answers) for _ in prompts]
        ids = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        said = zip(ids, texts, strict=True)
        return [WrittenAnswer(tuple(tokens), text, (), self._ended) for tokens, text in said]

    def entropies(self, scored: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def tokenizer(thinker: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(thinker)


def judge_one(model: Scripted, config: RunConfig) -> Any:
    format_ = format_for(config.judge, config.task)
    reader = TokenReader(config.judge, format_, model)
    return ModelEngine(config, format_, reader).judge(ASKED[:1], None)[0]  # type: ignore[arg-type]


CUSTOM = {
    "template": "{instruction} {response_a} {response_b}\nWhich?",
    "choices": {"A": ["one"], "B": ["two"]},
    "verdict": r"\[\[(?P<verdict>\w+)\]\]",
}


@pytest.mark.parametrize(
    ("changes", "answer", "behind"),
    [
        ({}, f"{TRACE}Short.\nVerdict: A", "Short.\nVerdict:"),
        ({}, f"{TRACE.removeprefix('<think>')}Verdict: A", "</think>\n\nVerdict:"),
        ({}, f"<think>a</think>Verdict: B{TRACE}Verdict: A", "</think>\n\nVerdict:"),
        ({"format": "custom", "custom": CUSTOM}, "<think>[[two]]</think>\n[[one]]", "\n[["),
    ],
)
def test_the_verdict_is_behind_the_trace(
    thinker: Path, tokenizer: Any, changes: Any, answer: str, behind: str
) -> None:
    model = Scripted(tokenizer, [answer])
    found = judge_one(model, reasoning(thinker, **ON, **changes, min_mass=0.1))
    assert found.verdict == "A" and found.error is None
    assert model.asked[0].endswith(answer[: answer.rindex(behind)] + behind)


@pytest.mark.parametrize(
    ("answer", "ended", "said"),
    [
        ("<think>\nVerdict: A", False, "reasoning without an end (the answer was cut at 100"),
        ("I would say\nVerdict: A", False, "reasoning without an end (the answer was cut at 100"),
        (TRACE, True, "the answer is empty"),
        (f"{TRACE}Well", False, "cut at 100 tokens"),
        (f"{TRACE}Verdict: A\nVerdict: B", True, "concludes several times"),
    ],
)
def test_a_trace_that_was_cut_gives_no_verdict(
    thinker: Path, tokenizer: Any, answer: str, ended: bool, said: str
) -> None:
    found = judge_one(Scripted(tokenizer, [answer], ended=ended), reasoning(thinker, **ON))
    assert (found.verdict, found.confidence) == (None, None) and said in found.error


@pytest.mark.parametrize(
    ("votes", "verdict", "share", "error"),
    [
        ("AABA", "A", 0.75, None),
        ("BBBB", "B", 1, None),
        ("AABB", "tie", 0, None),
        ("ACCB", "tie", 0.5, None),
        ("BB??", "B", 0.5, None),
        ("B???", "B", 0, "0.25 of its 4 answers have a verdict"),
        ("????", None, None, "says"),
    ],
)
def test_votes(
    thinker: Path, tokenizer: Any, votes: str, verdict: Any, share: Any, error: Any
) -> None:
    answers = [f"{TRACE}{'Verdict: ' + v if v != '?' else 'Hm.'}" for v in votes]
    found = judge_one(Scripted(tokenizer, answers), reasoning(thinker, **VOTES))
    assert (found.verdict, found.confidence) == (verdict, share and pytest.approx(share))
    assert (error is None) == (found.error is None) and (error or "") in (found.error or "")
    if verdict == "A":
        assert found.probs == pytest.approx({"A": 0.75, "B": 0.25, "tie": 0})


def test_a_block_that_the_template_opens_is_closed(thinker: Path, tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = tiny.CHAT.replace("<assistant>", "<assistant>{{ mode }}<think>\n")
    how = {"thinking": False, "chat_template_kwargs": {"mode": "quick"}}
    judge = reasoning(thinker, format="custom", custom={**CUSTOM, "verdict": None}, **how).judge
    model = Scripted(own, [])
    (reading,) = TokenReader(judge, format_for(judge, "pairwise"), model).read(ASKED[:1])
    assert isinstance(reading, Reading)
    assert model.asked[0].endswith("<assistant>quick<think>\n\n</think>\n\n")


def test_a_template_without_a_system_message_gets_it_with_the_users(
    thinker: Path, tokenizer: Any
) -> None:
    own = copy.deepcopy(tokenizer)
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    own.chat_template = refuse + tiny.CHAT
    judge, model = reasoning(thinker, format="generic").judge, Scripted(own, [])
    format_ = format_for(judge, "pairwise")
    TokenReader(judge, format_, model).read(ASKED[:1])
    prompt = format_.render(ASKED[0])
    assert model.asked[0].startswith(f"<user>{prompt.system}\n\n{prompt.user}\n")
