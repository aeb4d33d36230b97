"""Every family of judges through a real engine, both ways of decoding, pairs and single answers.

The models have random weights, so what is checked is that each family's prompts, openings and
trees of verdicts fit together: probabilities that are a distribution, or a reason why not.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from ray_judge.config import FORMAT_SCORES, RunConfig, parse
from ray_judge.judging.engines.engine import LanguageModel, ModelEngine, Reading
from ray_judge.judging.engines.tokens import CUT, TokenReader
from ray_judge.judging.formats import families, format_for
from ray_judge.records import Example, Judgment, Task

from . import tiny

pytestmark = tiny.NEEDS_VLLM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    from ray_judge.judging.engines.vllm import VllmModel

    folder = tiny.make_model(tmp_path_factory.mktemp("family") / "m", 5, chat=True)
    options = {"kv_cache_memory_bytes": 128 << 20}
    return VllmModel(tiny.judge(folder, confidence="entropy", engine_options=options))


def config(task: Task, **judge: Any) -> RunConfig:
    wish = {"model": "org/tiny", "min_mass": 0.0, "confidence": "entropy", **judge}
    rest = {"route": {"fraction": 0.5}, "strong": {"model": "gpt-4.1", "max_cost_usd": 1}}
    return parse({"input": "i", "output": "o", "task": task, "judge": wish, **rest})


def start(whole: RunConfig, model: LanguageModel) -> Callable[[list[Example]], list[Judgment]]:
    """An engine of this configuration on a model that is loaded already."""
    format_ = format_for(whole.judge, whole.task)
    engine = ModelEngine(whole, format_, TokenReader(whole.judge, format_, model))
    return lambda examples: engine.judge(examples, pa.table({}))


@pytest.mark.parametrize("decode", ["verdict", "full"])
@pytest.mark.parametrize("task", ["pairwise", "pointwise"])
@pytest.mark.parametrize("family", [*families.FAMILIES, "generic"])
def test_a_family(
    model: LanguageModel, templates: str, family: str, task: Task, decode: str
) -> None:
    wish: dict[str, Any] = {"format": family, "decode": decode, "templates": templates}
    if decode == "full":
        wish["max_output_tokens"] = 40
    whole = config(task, **wish)
    for judgment in start(whole, model)(tiny.examples(4, task, seed=2, longest=40)):
        if decode == "full":  # a random model writes nothing that is a verdict
            assert judgment.verdict is None
            assert judgment.error is not None and judgment.error.startswith("judge: ")
            continue
        assert judgment.probs is not None and judgment.confidence is not None
        assert sum(judgment.probs.values()) == pytest.approx(1)
        assert judgment.confidence <= 0 <= (judgment.mass or 0) <= 1
        if task == "pairwise":
            assert judgment.verdict in ("A", "B", "tie")
            assert set(judgment.probs) <= {"A", "B", "tie"}
        else:
            low, high = FORMAT_SCORES.get(family, (1, 5))
            assert list(judgment.probs) == [str(n) for n in range(low, high + 1)]
            assert judgment.verdict in range(low, high + 1)


def test_a_pair_by_scores(model: LanguageModel, templates: str) -> None:
    """P(A), P(tie), P(B) from two score distributions; the order makes no difference."""
    whole = config(
        "pairwise", format="auto-j", by_scores=True, templates=templates,
        confidence="probability",
    )  # fmt: skip
    pair = Example("Say it.", ("one answer", "another answer, longer"))
    found, other = start(whole, model)([pair, pair.swapped()])
    assert found.probs is not None and other.probs is not None
    assert found.probs["A"] == pytest.approx(other.probs["B"], abs=1e-5)
    singles = [pair.single(response) for response in pair.responses]
    scores = config("pointwise", format="auto-j", templates=templates, score="mean")
    judged = start(scores, model)(singles)
    first, second = (j.probs or {} for j in judged)
    wins = sum(p * q for i, p in first.items() for j, q in second.items() if int(i) > int(j))
    assert found.probs["A"] == pytest.approx(wins, abs=1e-5)
    assert judged[0].verdict == pytest.approx(sum(int(n) * p for n, p in first.items()), abs=1e-4)


def test_a_prompt_beyond_the_context(model: LanguageModel, templates: str) -> None:
    """That row's error, or the longer response loses its middle and the row says so; the others
    are read as without it."""
    long = Example("Say it.", ("short", "begin " + "word " * 4000 + "end"))
    (pair,) = tiny.examples(1, "pairwise", longest=9)
    for overlong in ("error", "cut"):
        whole = config("pairwise", overlong=overlong, format="pandalm", templates=templates)
        reader = TokenReader(whole.judge, format_for(whole.judge, "pairwise"), model)
        one, reading, other = reader.read([pair, long, pair])
        assert isinstance(one, Reading) and isinstance(other, Reading)
        assert one.scored == other.scored and one.note is None
        assert one.entropy == pytest.approx(other.entropy, abs=1e-4)
        (judgment,) = start(whole, model)([long])
        if overlong == "error":
            assert isinstance(reading, str) and "context takes" in reading
            assert judgment.verdict is None and judgment.confidence is None
            continue
        assert isinstance(reading, Reading) and reading.scored is not None
        text = model.tokenizer.decode(reading.scored.prompt)
        assert model.context - 16 <= len(reading.scored.prompt) <= model.context
        assert CUT in text and "begin word" in text and "word end" in text and "short" in text
        assert judgment.verdict is not None
        assert judgment.error is not None and "characters were cut" in judgment.error
