"""The API key is in the environment and in requests, and nowhere else: not in any file that a run
leaves behind, finished, failed or killed; not in Ray's logs; not in what `ps` shows."""

import contextlib
import datetime
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tests.fault.plain import Said, completion, error, plain_server
from tests.provider import RunningServer

from .conftest import Run, Runs, pairs

RIGHT, WRONG = "sk-right-8d1f0c5e7ab3", "sk-wrong-55e0b9c2d4f6"
SECRETS = (RIGHT.encode(), WRONG.encode())


def watched(run: Run, address: str, *, kill_after: int | None = None) -> tuple[int, str]:
    """Score in another process, looking at `ps` all the while; its exit code and its words."""
    process: subprocess.Popen[str] = run.start(address)
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # what `ps` shows of a process that may have ended
                assert not any(secret in path.read_bytes() for secret in SECRETS)
        if kill_after is not None and run.server.stats()["billed"] >= kill_after:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.2)
    out, err = process.communicate()
    return process.returncode, out + err


def files(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below, and of Parquet files also what is in them."""
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        try:
            if not path.is_file():
                continue
            yield path, path.read_bytes()
        except OSError:
            continue  # a temporary file of Ray's
        if path.suffix == ".parquet":
            yield path, str(pl.read_parquet(path).to_dicts()).encode()


def test_no_key_in_anything_that_a_run_leaves(
    runs: Runs, server: RunningServer, ray_session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    kinds = ("server_error", "reset_after", "truncated_body", "content_filter_400")
    faults = [{"kind": kind, "probability": 0.05} for kind in kinds]
    server.configure(api_key=RIGHT, faults=faults, latency={"min_ms": 10, "max_ms": 30})
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    run = runs(pairs(200), route__fraction=1)
    monkeypatch.setenv("OPENAI_API_KEY", RIGHT)
    killed = watched(run, ray_session, kill_after=30)
    monkeypatch.setenv("OPENAI_API_KEY", WRONG)
    failed = watched(run, ray_session)
    monkeypatch.setenv("OPENAI_API_KEY", RIGHT)
    finished = watched(run, ray_session)
    assert [code for code, _ in (killed, failed, finished)] == [-signal.SIGKILL, 1, 0]
    assert "invalid_api_key" in failed[1] and "OPENAI_API_KEY" in failed[1]
    assert not any(key in said for _, said in (killed, failed, finished) for key in (RIGHT, WRONG))

    looked_at = list(files(run.folder, session))
    names = {path.suffix for path, _ in looked_at}
    assert {".yaml", ".json", ".html", ".parquet", ".log"} <= names
    assert any(path.name.startswith("worker-") for path, _ in looked_at), "Ray's logs"
    guilty = [path for path, data in looked_at if any(secret in data for secret in SECRETS)]
    assert not guilty


def test_no_key_of_an_address_in_anything_that_a_run_leaves(
    runs: Runs, ray_session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its query, in either key, and of its headers; the server shows the address to all."""
    import ray

    monkeypatch.setenv("MY_KEY", WRONG)
    address = {
        "strong__headers": {"X-One": RIGHT, "X-Two": "Bearer ${MY_KEY}", "X-Three": "${MY_KEY}"},
        "strong__query": {"sig": RIGHT, "api-version": datetime.date(2024, 10, 21)},
    }
    path = f"/v1/chat/completions?key={RIGHT}&api-version=2024-10-21&sig={RIGHT}"
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    with (
        plain_server(lambda body, n: Said(completion())) as plain,
        plain_server(lambda body, n: error(401, f"no such key: {path}")) as refusing,
    ):
        for server, code in ((refusing, 1), (plain, 0)):
            run = runs(pairs(20), strong__base_url=f"{server.base_url}?key={RIGHT}", **address)
            assert run.score() == code and RIGHT not in run.said
            assert server.paths == {path}
            sent = [server.headers[0][f"x-{name}"] for name in ("one", "two", "three")]
            assert sent == [RIGHT, f"Bearer {WRONG}", WRONG]
            looked_at = list(files(run.output, session))
            assert not [at for at, data in looked_at if any(key in data for key in SECRETS)]
            shown = json.loads((run.output / "run.json").read_text())["config"]["strong"]
            assert shown["headers"] == {"X-One": "…", "X-Two": "…", "X-Three": "${MY_KEY}"}
