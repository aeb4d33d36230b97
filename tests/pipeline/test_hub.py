"""Inputs on the Hugging Face Hub, as a stand-in of its API serves them."""

import gzip
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest

from ray_judge.errors import ConfigError, InputError, StorageError
from ray_judge.run.files import find_shards
from ray_judge.run.plan import check_unchanged, plan_input, read_examples, read_rows
from ray_judge.storage import hub

from ..unit.test_inputs import config, pairs  # noqa: TID252

TREE = "/api/datasets/org/pairs/tree/"


class Hub(ThreadingHTTPServer):
    """Files of one data set under the revision v1, listed two a page, each behind a redirect."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failures = 0
        self.token: str | None = None
        self.ranges = True


class Request(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub_, path = self.server, unquote(self.path)
        hub_.asked.append(path)
        if hub_.failures:
            hub_.failures -= 1
            return self._send(503)
        wanted = f"Bearer {hub_.token}" if hub_.token else None
        if wanted and self.headers["authorization"] != wanted:
            return self._send(401)
        if found := re.fullmatch(TREE + r"v1/?(.*)\?recursive=true(?:&cursor=(\d+))?", path):
            return self._list(found[1], int(found[2] or 0))
        if path.startswith("/datasets/org/pairs/resolve/v1/"):
            return self._send(302, headers={"location": self.path.replace("/datasets", "/cdn")})
        data = hub_.files.get(path.removeprefix("/cdn/org/pairs/resolve/v1/"))
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"] or "")
        if data is None or not part:
            return self._send(404)
        if not hub_.ranges:
            return self._send(200, data)
        first, last = int(part[1]), min(int(part[2]), len(data) - 1)
        told = {"content-range": f"bytes {first}-{last}/{len(data)}", "etag": '"x"'}
        return self._send(206, data[first : last + 1], told)

    def _list(self, folder: str, start: int) -> None:
        names = [name for name in sorted(self.server.files) if name.startswith(folder)]
        page = [{"type": "directory", "path": "data", "oid": "0"}]
        page += [{"type": "file", "path": n, "size": 1} for n in names[start : start + 2]]
        host, path = self.headers["host"], self.path.partition("&")[0]
        after = f'<http://{host}{path}&cursor={start + 2}>; rel="next"'
        more = {"link": after} if len(names) > start + 2 else {}
        self._send(200, json.dumps(page).encode(), more) if names else self._send(404)

    def _send(self, code: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "content-length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hub, "FIRST_WAIT_S", 0)
        yield server
        server.shutdown()


def parquet(rows: int, size: int | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pairs(rows), sink, row_group_size=size)
    return sink.getvalue()


def test_a_set_on_the_hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files = {"README.md": b"x", "data/a.parquet": parquet(20, 6), "data/b c.parquet":
                    parquet(2), "data/test/d.parquet": parquet(1)}  # fmt: skip
    place = "hf://datasets/org/pairs@v1/data"
    assert [name for _, name in find_shards(place)[0]] == [
        "a.parquet", "b c.parquet", "test/d.parquet",
    ]  # fmt: skip
    assert find_shards(f"{place}/a.parquet") == ([(place, "a.parquet")], [])
    assert find_shards("hf://datasets/org/pairs@v1")[1] == ["README.md (no data by its name)"]
    server.failures = 2
    plan = plan_input(config(f"{place}/*.parquet"), ())
    first, second = plan.shards
    assert (first.path, first.rows, second.rows) == (f"{place}/a.parquet", 20, 2)
    assert read_rows(first.path, 5, 9).equals(pairs(20).slice(5, 9))
    check_unchanged(first)
    server.files["data/a.parquet"] = parquet(19)
    with pytest.raises(InputError, match="this shard changed") as caught:
        check_unchanged(first)
    assert caught.value.where["file"] == f"{place}/a.parquet"

    server.token = "secret"
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        find_shards(place)
    monkeypatch.setenv("HF_TOKEN", "secret")
    lines = [json.dumps(row) for row in pairs(3).to_pylist()]
    server.files["more/x.jsonl.gz"] = gzip.compress("\n".join(lines).encode())
    plan = plan_input(config("hf://datasets/org/pairs@v1/more", output=str(tmp_path / "out")), ())
    (shard,) = plan.shards
    assert shard.source == "hf://datasets/org/pairs@v1/more/x.jsonl.gz"
    assert len(read_examples(read_rows(shard.path, 0, 3), plan.columns)) == 3


def test_what_the_hub_does_not_have(server: Hub) -> None:
    server.files = {"a.parquet": parquet(1)}
    for place in ("hf://datasets/org/pairs@v2", "hf://datasets/org/pairs@v1/none"):
        with pytest.raises(StorageError, match="nothing of this name on the Hub"):
            find_shards(place)
    for place in ("hf://org/pairs", "hf://datasets/pairs"):
        with pytest.raises(ConfigError, match="an input is like hf://datasets/org/name"):
            find_shards(place)
    server.ranges = False
    with pytest.raises(InputError, match="the server gives no part of a file"):
        plan_input(config("hf://datasets/org/pairs@v1"), ())
    server.failures = 99
    with pytest.raises(StorageError, match="the Hub answers with status 503"):
        find_shards("hf://datasets/org/pairs@v1")
    assert server.failures == 99 - hub.ATTEMPTS
