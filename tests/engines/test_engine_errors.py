"""What real engines raise over a wrong option or checkpoint arrives as ours, naming the key."""

import pickle
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError, EngineError, RayJudgeError
from ray_judge.judging.engines.engine import Reading, make_engine
from ray_judge.judging.engines.errors import engine_error
from ray_judge.judging.engines.tokens import TokenReader
from ray_judge.judging.engines.transformers import TransformersModel
from ray_judge.judging.formats import format_for
from ray_judge.judging.stage import CHUNK, FAILED, ModelActor
from tests.unit import builders

from . import tiny

pytestmark = tiny.NEEDS_VLLM
SMALL = {"kv_cache_memory_bytes": 64 << 20}
PLAIN = {"engine": "transformers"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_misfits(tmp_path_factory.mktemp("models"))


def failure(model: Path, **changes: Any) -> RayJudgeError:
    """What comes home of a chunk whose judge's engine cannot start."""
    judge = {"model": str(model), "dtype": "float32", **changes}
    config = builders.config(judge=judge)
    load = partial(make_engine, config, format_for(config.judge, "pairwise"))
    actor = ModelActor(load, lambda block, engine: block, partial(engine_error, config.judge))
    receipt = actor(pa.table({CHUNK: ["c"]}))
    assert receipt["chunk"].to_pylist() == ["c"]
    error: RayJudgeError = pickle.loads(receipt[FAILED][0].as_py())
    assert "\n" not in str(error) and "Traceback" not in str(error)
    return error


@pytest.mark.parametrize(
    ("model", "changes", "kind", "said"),
    [
        ("whole", {"engine_options": {"kv_cache_memory_bites": 1}}, ConfigError,
         "no option kv_cache_memory_bites (did you mean kv_cache_memory_bytes?)"),
        ("whole", {"engine_options": {"model": "x"}}, ConfigError, "judge.engine_options: model"),
        ("whole", {"engine_options": {"max_num_seqs": "many"}}, EngineError,
         "Check judge.engine_options"),
        ("whole", {"engine_options": {"block_size": "many"}}, ConfigError, "options.block_size"),
        ("whole", {"quantization": "nope"}, ConfigError, "Check judge.quantization"),
        ("whole", {"max_model_len": 2 * tiny.CONTEXT}, ConfigError, "Check judge.max_model_len"),
        ("strange", {}, ConfigError, "Check judge.model"),
        ("headless", {"engine_options": SMALL}, ConfigError, "Check judge.model"),
        ("whole", {"engine_options": {"kv_cache_memory_bytes": 1000}}, EngineError,
         "No available memory for the cache blocks"),
        ("whole", {"engine_options": SMALL, "chat": True}, ConfigError, "judge.chat: false"),
        ("whole", {**PLAIN, "engine_options": {"nonsense": 1}}, ConfigError,
         "engine_options: nonsense"),
        ("whole", {**PLAIN, "max_model_len": 2 * tiny.CONTEXT}, ConfigError, "2,048 tokens"),
        ("strange", PLAIN, ConfigError, "Check judge.model"),
        ("headless", PLAIN, ConfigError,
         "lacks 1 of the weights of LlamaForCausalLM (lm_head.weight)"),
    ],
)  # fmt: skip
def test_what_engines_raise(
    models: Path, model: str, changes: dict[str, Any], kind: type[RayJudgeError], said: str
) -> None:
    error = failure(models / model, **changes)
    assert type(error) is kind and said in str(error), error


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
@pytest.mark.parametrize(
    ("model", "said"),
    [("whole", "(score.weight)"),
     ("two", "has 2 labels, and a reward model has one")],
)  # fmt: skip
def test_what_gives_no_reward(models: Path, model: str, said: str, engine: str) -> None:
    """Where the checkpoint's files do not say so: a hub's are not looked at before."""
    two = models / "two"
    if not two.exists():
        tiny.make_reward(two, 1, labels=2)
        tiny.edit(models / "whole", architectures=["LlamaForSequenceClassification"],
                  id2label={"0": "reward"})  # fmt: skip
    options = SMALL if engine == "vllm" else {}
    judge = JudgeConfig(
        model=str(models / model), dtype="float32", format="reward", engine=engine,
        engine_options=options,
    )  # fmt: skip
    module = f"ray_judge.judging.engines.{engine}"
    kind = {"vllm": "VllmRewards", "transformers": "TransformersRewards"}[engine]
    with pytest.raises(ConfigError, match=re.escape(said)):
        getattr(import_module(module), kind)(judge)


def test_tied_weights_fill_a_model(models: Path) -> None:
    judge = tiny.judge(models / "tied", engine="transformers")
    reader = TokenReader(judge, tiny.letters(), TransformersModel(judge))
    (reading,) = reader.read(tiny.examples(1, "pairwise", longest=20))
    assert isinstance(reading, Reading) and reading.would_write
