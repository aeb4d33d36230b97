"""The judges' own prompts: found by hash in any form of literal, refused when one byte differs."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_judge.cli import main
from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.formats import format_for
from ray_judge.judging.formats import templates as module
from ray_judge.judging.formats.templates import (
    MIRROR_ENV,
    cache_path,
    find,
    keep,
    pin_for,
    read_cache,
    state,
    template,
)
from ray_judge.records import Example


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to a network: not even a connection is tried."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(MIRROR_ENV, "file:///no/network")
    return tmp_path / "cache" / "ray_judge" / "templates"


@pytest.fixture
def texts(templates: str) -> dict[str, str]:
    entries = json.loads(Path(templates).read_text())
    return {f"{entry['judge']}-{entry['mode']}": entry["text"] for entry in entries}


def triple(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"""{escaped}"""'


def side_by_side(text: str) -> str:
    return "(\n" + "\n".join(map(repr, text.splitlines(keepends=True))) + "\n    )"


every_form = pytest.mark.parametrize("form", [repr, triple, side_by_side])


def source(literals: list[str]) -> str:
    """A module among whose literals those are, and that must never run."""
    body = "\n".join(
        f"    if kind == {n}:\n        instruction = {literal}\n    other_{n} = 'not {n}'"
        for n, literal in enumerate(literals)
    )
    return (
        '"""Prompts."""\nimport a_module_that_is_nowhere\nprint("executed", flush=True)\n'
        f"raise SystemExit(99)\n\n\ndef create(kind):\n{body}\n    return b'bytes', 3\n"
    )


def test_the_pins_are_those_of_the_real_list(texts_data: Path) -> None:
    path = texts_data / "judge_templates.json"
    fields = ("judge", "mode", "repository", "commit", "path", "literal_sha256")
    listed = {tuple(entry[field] for field in fields) for entry in json.loads(path.read_text())}
    assert listed == {tuple(getattr(pin, field) for field in fields) for pin in module.PINS}
    for pin, text in find(module.PINS, path).items():
        assert pin.characters == len(text)
        assert set(re.findall(r"{(\w+)}", text)) == set(pin.placeholders)
        assert not set("{}") & set(re.sub(r"{\w+}", "", text))  # a brace means nothing else
    assert len(listed) == 9


@every_form
def test_every_template_is_found(
    form: Any, texts: dict[str, str], tmp_path: Path, capfd: Any
) -> None:
    path = tmp_path / "prompts.py"
    path.write_text(source([form(text) for text in texts.values()]))
    assert main(["judges", "pull", "--from", str(path)]) == 0
    out, err = capfd.readouterr()
    assert "executed" not in out + err and "a_module_that_is_nowhere" not in sys.modules
    for pin in module.PINS:
        assert cache_path(pin).read_bytes() == texts[pin.name].encode()
        assert template(pin) == texts[pin.name]
    assert main(["judges", "check"]) == 0


@every_form
@pytest.mark.parametrize("where", [0.0, 0.3, 0.77, 0.999])
def test_one_changed_byte_is_refused(
    form: Any, where: float, texts: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "prompts.py"
    for name, text in texts.items():
        place = int(where * len(text))
        while text[place] in "{}\n":
            place -= 1
        changed = text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]
        path.write_text(source([form(t if n != name else changed) for n, t in texts.items()]))
        for wish in ([], [name]):
            assert main(["judges", "pull", *wish, "--from", str(path)]) == 2, name
            said = capsys.readouterr().err
            assert name in said and "changed copy" in said and str(path) in said
        others = [pin for pin in module.PINS if pin.name != name]
        assert find(others, path) == {pin: texts[pin.name] for pin in others}
        assert not any(state(pin) == "cached" for pin in module.PINS)


def test_a_file_with_one_template(texts: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "prompts.py"
    path.write_text(source([triple(texts["pandalm-pairwise"])]))
    assert main(["judges", "pull", "--from", str(path)]) == 0
    said = capsys.readouterr().out
    assert "pandalm-pairwise: kept as" in said and f"judgelm-pairwise: not in {path}" in said
    assert main(["judges", "check", "pandalm-pairwise"]) == 0
    assert main(["judges", "check"]) == 1
    for wish, said in (
        (["judgelm", "--from", str(path)], pin_for("judgelm", "pairwise").literal_sha256),
        (["--from", str(tmp_path / "nowhere.py")], "nowhere.py"),
        (["jugdelm", "--from", str(path)], "no judge jugdelm"),
    ):
        assert main(["judges", "pull", *wish]) == 2
        assert said in capsys.readouterr().err


def test_a_folder_is_searched(templates: str, texts: dict[str, str], tmp_path: Path) -> None:
    folder, each = tmp_path / "src", list(texts.values())
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "broken.py").write_text("def (:\n")
    (folder / "broken.json").write_text("{")
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    (folder / "image.png").write_bytes(b"\x89PNG")
    (folder / "deep" / "a.py").write_text(source([repr(text) for text in each[:4]]))
    document = {"list": [1, None, {"text": each[4:8]}]}
    (folder / "deep" / "er" / "b.json").write_text(json.dumps(document))
    (folder / "c.txt").write_text(each[8])
    assert {pin.name: text for pin, text in find(module.PINS, folder).items()} == texts
    assert find(module.PINS, Path(templates)).keys() == set(module.PINS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.py", b"def (:\n", "SyntaxError"), ("a.py", b"x = '\xff'\n", "UnicodeDecodeError"),
        ("a.json", b"{", "JSONDecodeError"), ("a.py", b"(" * 5000, "not readable"),
        ("a.py", b"", "no text has this SHA-256"), ("a.json", b"[" * 100_000, "not readable"),
        ("a.py", b" " * (9 << 20), "MiB"),
    ],
)  # fmt: skip
def test_an_empty_source(name: str, content: bytes, said: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["judges", "pull", "--from", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_a_changed_cache_is_mended(templates: str, texts: dict[str, str], capsys: Any) -> None:
    assert main(["judges", "pull", "--from", templates]) == 0
    pin = pin_for("auto-j", "pairwise")
    path = cache_path(pin)
    path.write_bytes(path.read_bytes().replace(b"tied", b"TIED", 1))
    assert main(["judges", "check"]) == 1
    said = capsys.readouterr().out
    assert f"{pin.name}: changed ({path})" in said and said.count(": cached (") == 8
    with pytest.raises(ConfigError, match="was changed") as caught:
        format_for(JudgeConfig(model="m", format="auto-j"), "pairwise")
    assert str(path) in str(caught.value) and "judges pull auto-j-pairwise" in str(caught.value)
    assert main(["judges", "list"]) == 0
    assert main(["judges", "pull", "--from", templates]) == 0
    assert main(["judges", "check"]) == 0 and read_cache(pin) == texts[pin.name]


def test_listing_says_what_there_is(templates: str, capsys: Any) -> None:
    main(["judges", "pull", "auto-j", "--from", templates])
    assert main(["judges", "list"]) == 0
    said = capsys.readouterr().out
    for word in (
        "BAAI/JudgeLM-7B-v1.0, tuned from lmsys/vicuna-7b-v1.3", "scores from 1 to 10",
        "prometheus-2", "generic", "custom", "HuihuiChyan/UnlimitedJudge@f7d6167dd244",
    ):  # fmt: skip
        assert word in said
    assert said.count(": cached") == 2 and said.count(": missing") == 7


def test_the_templates_of_the_configuration_need_no_network(templates: str, cache: Path) -> None:
    judge = JudgeConfig(model="m", format="judgelm", templates=templates)
    text = format_for(judge, "pairwise").render(Example("q", ("one", "two"))).plain()
    assert "one" in text and not cache.exists()
    with pytest.raises(ConfigError, match="no such file"):
        format_for(judge.model_copy(update={"templates": "/nowhere"}), "pairwise")


def test_the_cache(
    cache: Path, templates: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A file in it is whole or absent; a home that cannot be written is named."""
    for text in ("first", "second"):
        keep(module.PINS[0], text)
    assert list(cache.iterdir()) == [cache_path(module.PINS[0])]
    assert cache_path(module.PINS[0]).read_text() == "second"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["judges", "pull", "--from", templates]) == 1
    assert "cannot be kept" in capsys.readouterr().err
