"""What vLLM gives is what a whole-vocabulary softmax in float32 gives, to 1e-4.

The reference is written out here, spelling by spelling and one prompt at a time, and shares no
code with the engines: the path of each spelling is multiplied out, a spelling that begins another
one has what the longer one left, and entropies are summed over the whole vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ray_judge.judging.confidence import confidence, verdict_probs
from ray_judge.judging.engines.engine import LanguageModel, Reading
from ray_judge.judging.engines.tokens import TokenReader
from ray_judge.judging.formats import Format
from ray_judge.records import Example, Scored

from . import tiny

pytestmark = tiny.NEEDS_VLLM
CLOSE = 1e-4
FORMATS = {
    "letters": (tiny.letters, 240, 1400),
    "phrases": (tiny.phrases, 120, 900),
    "scores": (tiny.scores, 120, 900),
    "two scores": (tiny.two_scores, 20, 60),
}
"""Name → (format, prompts, most words of a prompt): 500 prompts of 20 to some 1,500 tokens."""


class Reference:
    """A model in float32, asked the plain way."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._seen = cache(self._next)

    def logprobs(self, ids: Sequence[int]) -> Any:
        """Natural logs over the whole vocabulary, of the token behind `ids`."""
        return self._seen(tuple(ids))

    def _next(self, ids: tuple[int, ...]) -> Any:
        with self._torch.inference_mode():
            logits = self._model(input_ids=self._torch.tensor([ids])).logits[0, -1]
            return logits.double().log_softmax(-1)

    def entropy(self, ids: Sequence[int]) -> float:
        logprobs = self.logprobs(ids)
        return float((logprobs.exp() * logprobs).sum())

    def entropies(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        return [self.entropy([*prompt, *answer[:n]]) for n in range(len(answer))]

    def greedy(self, prompt: Sequence[int], most: int) -> list[int]:
        answer: list[int] = []
        while len(answer) < most:
            answer.append(int(self.logprobs([*prompt, *answer]).argmax()))
            if answer[-1] == self.tokenizer.eos_token_id:
                break
        return answer

    def probs(
        self, prompt: Sequence[int], spellings: Mapping[str, Sequence[str]], before: str
    ) -> tuple[dict[str, float], dict[tuple[int, ...], float]]:
        """Alternative → probability of all its spellings; and each spelling's by its tokens."""
        head = self.tokenizer.encode(before, add_special_tokens=False)
        paths: dict[tuple[int, ...], str] = {}
        for name, texts in spellings.items():
            for text in texts:
                ids = self.tokenizer.encode(before + text, add_special_tokens=False)
                assert ids[: len(head)] == head
                paths[tuple(ids[len(head) :])] = name
        found = dict.fromkeys(spellings, 0.0)
        each: dict[tuple[int, ...], float] = {}
        for path, name in paths.items():
            size, p = len(path), 1.0
            for n, token in enumerate(path):
                p *= math.exp(self.logprobs([*prompt, *path[:n]])[token])
            longer = {other[size] for other in paths if other[:size] == path != other}
            if longer:
                after = self.logprobs([*prompt, *path])
                p *= 1.0 - sum(math.exp(after[token]) for token in longer)
            found[name] += p
            each[path] = p
        return found, each


class Models:
    """vLLM engines, each started once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference = cache(lambda name: Reference(folder / name))
        self._vllm = cache(self._start)

    def vllm(self, name: str, *, caching: bool = True) -> LanguageModel:
        return self._vllm(name, caching)

    def _start(self, name: str, caching: bool) -> LanguageModel:
        from ray_judge.judging.engines.vllm import VllmModel

        options = {
            "enable_prefix_caching": caching,
            "kv_cache_memory_bytes": 64 << 20,
            "max_num_batched_tokens": 700,  # long prompts are computed in parts
        }
        return VllmModel(self.judge(name, engine_options=options))

    def judge(self, name: str, **changes: Any) -> Any:
        wish = {"confidence": "calibrated_entropy", "base_model": str(self.folder / "base")}
        return tiny.judge(self.folder / name, **{**wish, **changes})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A judge, a base model with the same tokenizer, and a judge with `10` as one token."""
    folder = tmp_path_factory.mktemp("models")
    tiny.make_model(folder / "judge", 1)
    tiny.make_model(folder / "base", 2)
    tiny.make_model(folder / "whole", 3, split_digits=False)
    return Models(folder)


@pytest.mark.parametrize("caching", [True, False], ids=["prefix caching", "no caching"])
@pytest.mark.parametrize("name", FORMATS)
def test_verdict(models: Models, name: str, *, caching: bool) -> None:
    make, count, longest = FORMATS[name]
    format_ = make()
    if not caching:
        count //= 4
    asked = tiny.examples(count, format_.task, longest=longest)
    model = models.vllm("judge", caching=caching)
    readings = TokenReader(models.judge("judge"), format_, model).read(asked)
    check_verdicts(models.reference("judge"), format_, asked, readings)
    scored = [reading.scored for reading in readings if isinstance(reading, Reading)]
    check_base(models, scored)


def test_a_tokenizer_that_does_not_split_ten(models: Models) -> None:
    format_, judge = tiny.scores(), models.judge("whole")
    ids = models.reference("whole").tokenizer.encode("10", add_special_tokens=False)
    assert len(ids) == 1
    assert len(models.reference("judge").tokenizer.encode("10", add_special_tokens=False)) == 2
    asked = tiny.examples(40, "pointwise", longest=200)
    readings = TokenReader(judge, format_, models.vllm("whole")).read(asked)
    check_verdicts(models.reference("whole"), format_, asked, readings)


@pytest.mark.parametrize("name", ["letters", "phrases"])
def test_full(models: Models, name: str) -> None:
    """The judge writes first; the verdict is read where it stands, entropies over all it wrote."""
    format_ = FORMATS[name][0](at=4, max_output_tokens=12)
    judge, reference = models.judge("judge", decode="full"), models.reference("judge")
    asked = tiny.examples(60, "pairwise", longest=300)
    readings = TokenReader(judge, format_, models.vllm("judge")).read(asked)
    scored = []
    for example, reading in zip(asked, readings, strict=True):
        prompt = reference.tokenizer(format_.render(example).user)["input_ids"]
        answer = reference.greedy(prompt, 12)
        text = reference.tokenizer.decode(answer, skip_special_tokens=True)
        if len(text) < 4:
            assert reading == "the answer is too short"
            continue
        assert isinstance(reading, Reading) and reading.scored is not None
        assert reading.scored == Scored(tuple(prompt), tuple(answer))
        own = reference.entropies(prompt, answer)
        assert reading.entropy == pytest.approx(math.fsum(own) / len(own), abs=CLOSE)
        scored.append(reading.scored)
        begun = [
            reference.tokenizer.decode(answer[:n], skip_special_tokens=True)
            for n in range(len(answer) + 1)
        ]
        kept = max((n for n, said in enumerate(begun) if said == text[:4]), default=None)
        if kept is not None:  # the verdict's place is a border between two tokens
            wanted, _ = reference.probs([*prompt, *answer[:kept]], format_.spellings, text[:4])
            check_probs(reading.logprobs, wanted)
    assert len(scored) > 40
    check_base(models, scored)


@pytest.mark.parametrize("decode", ["verdict", "full"])
@pytest.mark.parametrize("name", ["letters", "phrases"])
def test_the_transformers_engine_is_the_same(models: Models, name: str, decode: str) -> None:
    from ray_judge.judging.engines.transformers import TransformersModel

    format_ = FORMATS[name][0](at=4 if decode == "full" else None)
    judge = models.judge("judge", decode=decode)
    asked = tiny.examples(30, "pairwise", seed=5, longest=120)
    ours = TokenReader(judge, format_, models.vllm("judge")).read(asked)
    theirs = TokenReader(judge, format_, TransformersModel(judge)).read(asked)
    for here, there in zip(ours, theirs, strict=True):
        if isinstance(here, str) or isinstance(there, str):
            assert here == there
            continue
        assert here.scored == there.scored
        assert here.entropy == pytest.approx(there.entropy, abs=CLOSE)
        for alternative, values in here.logprobs.items():
            assert sorted(map(math.exp, values)) == pytest.approx(
                sorted(map(math.exp, there.logprobs[alternative])), abs=CLOSE
            )
    base = TransformersModel(models.judge("base", base_model=None, confidence="entropy"))
    scored = [r.scored for r in ours if isinstance(r, Reading) and r.scored]
    for here, there in zip(
        models.vllm("base").entropies(scored), base.entropies(scored), strict=True
    ):
        assert here == pytest.approx(there, abs=CLOSE)


def check_verdicts(
    reference: Reference, format_: Format, asked: Sequence[Example],
    readings: Sequence[Reading | str],
) -> None:  # fmt: skip
    for example, reading in zip(asked, readings, strict=True):
        assert isinstance(reading, Reading)
        prompt = reference.tokenizer(format_.render(example).plain())["input_ids"]
        wanted, each = reference.probs(prompt, format_.spellings, "\nVerdict:" + format_.opening)
        check_probs(reading.logprobs, wanted)
        best = max(each, key=lambda path: each[path])
        assert reading.scored is not None
        if sorted(each.values())[-2] < each[best] * 0.999:
            assert reading.scored == Scored(tuple(prompt), best)
        own = reference.entropies(prompt, reading.scored.answer)
        assert reading.entropy == pytest.approx(math.fsum(own) / len(own), abs=CLOSE)


def check_probs(logprobs: Mapping[str, Sequence[float]], wanted: Mapping[str, float]) -> None:
    """Unmasked: a masked, renormalised distribution would have a mass of 1."""
    probs, mass = verdict_probs(logprobs)
    total = math.fsum(wanted.values())
    assert total < 0.9, "random weights leave most of the probability to other tokens"
    assert mass == pytest.approx(total, abs=CLOSE)
    for name, p in wanted.items():
        assert probs[name] * mass == pytest.approx(p, abs=CLOSE)
        assert probs[name] == pytest.approx(p / total, abs=CLOSE)
    for method in ("probability", "margin"):
        normal = {name: p / total for name, p in wanted.items()}
        assert confidence(probs, method) == pytest.approx(confidence(normal, method), abs=CLOSE)


def check_base(models: Models, scored: Sequence[Scored | None]) -> None:
    """The base model's entropies on the judge's tokens: `calibrated_entropy` is the difference."""
    asked = [item for item in scored if item is not None]
    base = models.reference("base")
    for item, found in zip(asked, models.vllm("base").entropies(asked), strict=True):
        assert found == pytest.approx(base.entropies(item.prompt, item.answer), abs=CLOSE)
