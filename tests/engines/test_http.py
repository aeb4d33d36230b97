"""`engine: http` against a real `vllm serve` on this machine: the same verdicts as in-process."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.confidence import verdict_probs
from ray_judge.judging.engines.engine import LanguageModel, Reading
from ray_judge.judging.engines.http import HttpReader
from ray_judge.judging.engines.tokens import TokenReader
from tests.conftest import free_ports, listens, running

from . import tiny

pytestmark = tiny.NEEDS_VLLM
CLOSE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.make_model(tmp_path_factory.mktemp("http") / "judge", 4, chat=True)
    (folder / "chat_template.jinja").write_text(tiny.THINKING)
    return folder


@pytest.fixture(scope="module")
def every(model: Path) -> int:
    """Tokens in the vocabulary: a server that shows so many shows all."""
    size: int = json.loads((model / "config.json").read_text())["vocab_size"]
    return size


@pytest.fixture(scope="module")
def base_url(model: Path, every: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start `vllm serve`."""
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-logprobs", str(every),
        "--kv-cache-memory-bytes", str(64 << 20), "--max-model-len", str(tiny.CONTEXT),
    ]  # fmt: skip
    with running(command, log, lambda: listens(port)):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def here(model: Path) -> LanguageModel:
    from ray_judge.judging.engines.vllm import VllmModel

    return VllmModel(tiny.judge(model, engine_options={"kv_cache_memory_bytes": 64 << 20}))


def http(base_url: str, **changes: Any) -> JudgeConfig:
    server = {"base_url": base_url, **changes.pop("http", {})}
    return JudgeConfig(engine="http", model="tiny", http=server, **changes)


@pytest.mark.parametrize("decode", ["verdict", "full"])
@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("make", [tiny.letters, tiny.phrases], ids=["letters", "phrases"])
def test_the_same_as_in_process(
    model: Path, base_url: str, every: int, here: LanguageModel, make: Any, api: str, decode: str
) -> None:
    """With every token shown, and trees of one token or several, plain and by chat template, whose
    switch for thinking the server is told of.
    """
    format_ = make(chat=api == "chat", at=0 if decode == "full" else None)
    how: dict[str, Any] = {"decode": decode, "thinking": False if api == "chat" else None}
    asked = tiny.examples(25, "pairwise", seed=7, longest=150)
    ours = TokenReader(tiny.judge(model, **how), format_, here).read(asked)
    judge = http(base_url, **how, http={"api": api, "top_logprobs": every})
    theirs = HttpReader(judge, format_).read(asked)
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, Reading) and isinstance(other, Reading)
        (probs, mass), (found, found_mass) = map(verdict_probs, (one.logprobs, other.logprobs))
        assert found_mass == pytest.approx(mass, abs=CLOSE)
        assert found == pytest.approx(probs, abs=CLOSE)
        assert other.unseen < 1e-4


def test_what_is_not_shown_is_bounded(model: Path, here: LanguageModel, base_url: str) -> None:
    format_ = tiny.letters()
    asked = tiny.examples(60, "pairwise", seed=8, longest=100)
    ours = TokenReader(tiny.judge(model), format_, here).read(asked)
    theirs = HttpReader(http(base_url, http={"top_logprobs": 40}), format_).read(asked)
    bounded = 0
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, Reading) and isinstance(other, Reading)
        for name, values in one.logprobs.items():
            p = math.fsum(map(math.exp, values))
            shown = math.fsum(map(math.exp, other.logprobs[name]))
            assert shown - 1e-5 <= p <= shown + other.unseen + 1e-5
        bounded += other.unseen > 0
    assert bounded > 20


def test_misfortunes(base_url: str) -> None:
    """A prompt that is too long is its row's; a wrong model or parameter is the run's."""
    format_, (one,) = tiny.letters(), tiny.examples(1, "pairwise", longest=20)
    long = replace(one, responses=("word " * 6000, "b"))
    told, fine = HttpReader(http(base_url), format_).read([long, one])
    assert isinstance(told, str) and "HTTP 400" in told
    assert isinstance(fine, Reading)
    with pytest.raises(ConfigError, match=r"HTTP 404.*judge\.model"):
        HttpReader(http(base_url).model_copy(update={"model": "other"}), format_).read([one])
    for api in ("chat", "completions"):
        judge = http(base_url, http={"api": api, "top_logprobs": 1000})
        with pytest.raises(ConfigError, match=r"HTTP 400.*judge\.http\.top_logprobs"):
            HttpReader(judge, tiny.letters(chat=api == "chat")).read([one])
