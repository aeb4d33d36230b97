"""Rewards on vLLM are those of transformers in float32, and each conversation is read once."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_judge.config import RunConfig
from ray_judge.judging.engines.engine import make_model
from ray_judge.judging.engines.rewards import RewardEngine
from ray_judge.records import Example
from tests.unit import builders

from . import tiny

pytestmark = tiny.NEEDS_VLLM
CLOSE = 1e-4
KINDS = ("Llama", "Qwen3")
SMALL = {"kv_cache_memory_bytes": 64 << 20, "max_num_batched_tokens": 700}
TURNS = (
    ("system", "Be brief."),
    ("user", "hi"),
    ("assistant", "hello"),
    ("user", "and the answer"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    for seed, kind in enumerate(KINDS):
        tiny.make_reward(folder / kind, seed, kind)
    return folder


@pytest.fixture(scope="module")
def engines(folder: Path) -> Any:
    """Engines by kind and name, each started once."""
    return cache(lambda kind, engine: RewardEngine(*_made(folder / kind, engine)))


def _made(model: Path, engine: str) -> tuple[RunConfig, Any]:
    config = reward(model, engine=engine, engine_options=SMALL if engine == "vllm" else {})
    return config, make_model(config)


def reward(model: Path, **changes: Any) -> RunConfig:
    judge = {"format": "reward", "model": str(model), "dtype": "float32", **changes}
    return builders.config(judge=judge)


def conversation(example: Example, response: str) -> str:
    """As the template writes it, written out."""
    turns = [*(example.turns or [("user", example.instruction)]), ("assistant", response)]
    return "".join(f"<{role}>{content}</s>" for role, content in turns)


def reference(model: Path, texts: Sequence[str]) -> dict[str, float]:
    """One conversation at a time, the plain way."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    found = {}
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            found[text] = float(loaded(input_ids=ids).logits[0, 0])
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "count",
    [30, pytest.param(250, marks=[pytest.mark.long, pytest.mark.timeout(1200)])],
)
def test_rewards(folder: Path, engines: Any, kind: str, count: int) -> None:
    """Conversations of 20 to some 1,500 tokens, with earlier turns, in batches of two sizes."""
    asked = tiny.examples(count, "pairwise", seed=3)
    asked += [Example("?", ("yes", "no"), turns=TURNS)]
    texts = [conversation(one, text) for one in asked for text in one.responses]
    wanted = reference(folder / kind, texts)
    rewards = iter(wanted[text] for text in texts)
    margins = [next(rewards) - next(rewards) for _ in asked]
    assert max(map(abs, margins)) > 100 * CLOSE
    for name in ("vllm", "transformers"):
        engine = engines(kind, name)
        parts = (asked[:7], asked[7:])
        found = [one for part in parts for one in engine.judge(part, pa.table({}))]
        for judgment, margin in zip(found, margins, strict=True):
            sign = 1 if judgment.verdict == "A" else -1
            assert judgment.confidence * sign == pytest.approx(margin, abs=CLOSE)
            assert judgment.error is None


class Counted:
    """A reward model that says what it is sent."""

    def __init__(self, model: Any) -> None:
        self._model, self.sent = model, list[tuple[int, ...]]()
        self.tokenizer, self.context, self.pad = model.tokenizer, model.context, model.pad

    def rewards(self, conversations: Any) -> list[float]:
        self.sent += map(tuple, conversations)
        found: list[float] = self._model.rewards(conversations)
        return found


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_pairs_that_share_responses(folder: Path, count: int) -> None:
    chance = random.Random(1)
    asked = []
    for n in range(count):
        pair = chance.sample(["one", "two", "three", "four"], 2)
        asked.append(Example(f"question {n // 10}", (pair[0], pair[1])))
    config = reward(folder / "Llama", engine="transformers")
    model = Counted(make_model(config))
    found = RewardEngine(config, model).judge(asked, pa.table({}))
    distinct = {(one.instruction, text) for one in asked for text in one.responses}
    assert len(model.sent) == len(set(model.sent)) == len(distinct) <= 2 * count // 4
    mirrored = RewardEngine(config, model).judge([one.swapped() for one in asked], pa.table({}))
    assert [one.confidence for one in found] == [one.confidence for one in mirrored]
    assert all(a.verdict != b.verdict for a, b in zip(found, mirrored, strict=True))


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_what_cannot_be_read_is_its_rows(engines: Any, name: str) -> None:
    asked = [Example("x", ("a", "word " * 6000)), Example("x", ("a", "b"))]
    engine = engines("Llama", name)
    long, fine = engine.judge(asked, pa.table({}))
    assert "tokens, the model's context takes 2048" in long.error and long.verdict is None
    assert fine.error is None
    fits = engine._model.context  # to the last token
    assert len(engine._model.rewards([[5] * fits, [6]])) == 2
