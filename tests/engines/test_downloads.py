"""The judges' own prompts from a server: pulled once, refused when changed, every failure named."""

import contextlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ray_judge.cli import main
from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.formats import format_for
from ray_judge.judging.formats import templates as module
from ray_judge.judging.formats.templates import MIRROR_ENV, cache_path, pin_for, read_cache

NOBODY = "http://127.0.0.1:9"
PANDALM = JudgeConfig(model="m", format="pandalm")


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ray_judge" / "templates"


@pytest.fixture
def texts(templates: str) -> dict[module.Pin, str]:
    return module.find(module.PINS, Path(templates))


@pytest.fixture
def mirror(
    texts: dict[module.Pin, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A server with the pinned files at their paths; gives the folder it serves."""
    root = tmp_path / "mirror"
    for pin, text in texts.items():
        path = root / pin.location
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"text = {text!r}\n")
    handler = partial(Quiet, directory=str(root))
    with serving(handler) as url:
        monkeypatch.setenv(MIRROR_ENV, url)
        yield root


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def test_pulling(mirror: Path, texts: dict[module.Pin, str]) -> None:
    assert main(["judges", "pull"]) == 0
    assert main(["judges", "check"]) == 0
    assert {pin: read_cache(pin) for pin in module.PINS} == texts


def test_the_first_use_pulls_by_itself_and_the_second_needs_no_network(
    mirror: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = format_for(PANDALM, "pairwise")
    assert list(cache.iterdir()) == [cache_path(pin_for("pandalm", "pairwise"))]
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as home:  # one that cannot be written: it is fetched again
        home.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert format_for(PANDALM, "pairwise") == first
    monkeypatch.setenv(MIRROR_ENV, NOBODY)
    assert format_for(PANDALM, "pairwise") == first == pickle.loads(pickle.dumps(first))


def test_a_repository_that_changed_is_refused(mirror: Path, capsys: Any, cache: Path) -> None:
    pin = pin_for("prometheus-2", "pairwise")
    path = mirror / pin.location
    path.write_text(path.read_text().replace("Feedback", "feedback"))
    assert main(["judges", "pull", "prometheus-2"]) == 2
    said = capsys.readouterr().err
    assert pin.literal_sha256 in said and pin.path in said
    path.unlink()
    assert main(["judges", "pull", "prometheus-2"]) == 2
    assert "404" in capsys.readouterr().err
    assert not cache.exists()


class Cut(BaseHTTPRequestHandler):
    """Promises more than it sends."""

    size = 1

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000000")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(b"#" * self.size)

    def log_message(self, *_: object) -> None: ...


class Endless(Cut):
    size = 1 << 25


class Silent(Cut):
    def do_GET(self) -> None:
        self.rfile.read(1)  # until the other side gives up


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (Cut, "RemoteProtocolError"), (Endless, "far larger"), (Silent, "ReadTimeout"),
        (NOBODY, "ConnectError"), ("file:///no/network", MIRROR_ENV),
    ],
)  # fmt: skip
def test_servers_that_fail(
    handler: Any, said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    if handler is Silent:
        monkeypatch.setattr("ray_judge.judging.formats.templates.SILENCE_S", 0.3)
    address = handler if isinstance(handler, str) else None
    with serving(Cut if address else handler) as url:
        monkeypatch.setenv(MIRROR_ENV, address or url)
        assert main(["judges", "pull", "judgelm"]) == 2
        with pytest.raises(ConfigError, match="judges pull --from PATH"):
            format_for(PANDALM, "pairwise")
    told = capsys.readouterr().err
    for words in (said, "judges pull --from PATH", "build_prompt_judge.py"):
        assert words in told
    assert not cache.exists()
