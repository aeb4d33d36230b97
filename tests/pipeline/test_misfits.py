"""Judges that cannot judge, through the command: one sentence, its exit code, nothing paid."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ray_judge.judging import stage
from tests.engines import tiny
from tests.fault.plain import Said, plain_server
from tests.provider import RunningServer

from .conftest import Run, Runs, pairs
from .test_local_judge import MODEL

pytestmark = tiny.NEEDS_VLLM
ROWS = 240
DEMO = {"engine": "vllm", "format": "demo", "model": str(MODEL), "dtype": "float32"}
SMALL = {
    "engine": "vllm",
    "dtype": "float32",
    "engine_options": {"kv_cache_memory_bytes": 64 << 20},
}
HTTP = {"engine": "http", "model": "m"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_misfits(tmp_path_factory.mktemp("models"))


def judging(runs: Runs, judge: dict[str, Any]) -> Run:
    route = {"policy": "threshold", "threshold": 0.9}  # the strong judge is asked along the way
    return runs(pairs(ROWS), judge=judge, chunk_rows=ROWS // 2, route=route)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("judge", "code", "said"),
    [
        ({**SMALL, "model": "whole"}, 1,
         r"on half of the first 100 rows all verdicts together have 0\.00\d+ .* rather write"),
        ({**SMALL, "model": "whole", "decode": "full", "max_output_tokens": 8}, 1,
         'none of the first 100 rows got a verdict from .*, and begins ".*cut at 8 tokens'),
        ({**HTTP, "http": {"base_url": "http://127.0.0.1:9/v1"}}, 1, "Connection refused"),
        ({**HTTP, "http": {"base_url": "{}"}}, 1,
         r"on half of the first 100 rows all verdicts together have 0\.01 .* write 'The'"),
    ],
)  # fmt: skip
def test_a_judge_that_cannot_judge(
    judge: dict[str, Any],
    code: int,
    said: str,
    runs: Runs,
    server: RunningServer,
    ray_session: str,
    models: Path,
) -> None:
    if judge["model"] == "whole":
        judge = {**judge, "model": str(models / judge["model"])}
    shown = [{"token": "The", "logprob": -0.5}, {"token": " A", "logprob": -4.6}]
    choice = {"logprobs": {"top_logprobs": [{one["token"]: one["logprob"] for one in shown}]}}
    with plain_server(lambda body, number: Said({"choices": [choice]})) as judge_server:
        if judge.get("http") == {"base_url": "{}"}:
            judge = {**judge, "http": {"base_url": judge_server.base_url}}
        run = judging(runs, judge)
        process = run.start(ray_session)
        out, err = process.communicate(timeout=200)
        assert re.fullmatch(f"ray-judge: .*{said}.*\n", err) and not out, err
        assert process.returncode == code
        if judge["engine"] == "http" and judge_server.requests:
            assert run.score() == code, "again, whatever lies on disk by now"
    assert server.stats()["billed"] == 0
    assert len(list(run.output.glob("judged/1/*.parquet"))) < 2, (
        "never the rows that were looked at"
    )


def test_a_process_that_dies_again_and_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        os._exit(1)

    monkeypatch.setattr(stage, "make_engine", die)
    run = judging(runs, DEMO)
    assert run.score() == 1
    assert re.fullmatch("ray-judge: a judge's process died 4 times: Worker .*\n", run.said)
