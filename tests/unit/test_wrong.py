"""Wrong configurations, files, models, places and arguments: one sentence and the right exit code.

Everything here is refused before Ray is started and before anybody is asked; nothing is left on
disk of a run that never began, and nothing secret is told. What only reading or asking finds is in
tests/pipeline/test_wrong.py and tests/fault/test_servers.py.
"""

import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ray_judge.cli import main
from ray_judge.config import load
from ray_judge.run.directory import RunDirectory
from ray_judge.run.plan import plan_input

from . import builders

SECRET = "hunter2"


class Case:
    """One configuration over one folder, and what the command said."""

    def __init__(self, folder: Path, capsys: Any) -> None:
        self.folder, self.capsys = folder, capsys
        (folder / "in").mkdir()
        places = {"input": str(folder / "in"), "output": str(folder / "out")}
        self.document = builders.document(**places, strong__base_url="http://127.0.0.1:9/v1")
        self.yaml = folder / "run.yaml"

    def shard(self, name: str = "a.parquet", rows: int = 3, **columns: Any) -> Path:
        data: dict[str, Any] = {
            "instruction": ["do"] * rows, "response_a": ["x"] * rows, "response_b": ["y"] * rows,
            "p_a": [0.6] * rows, "p_b": [0.4] * rows, **columns,
        }  # fmt: skip
        path = self.folder / "in" / name
        pq.write_table(pa.table({k: v for k, v in data.items() if v is not None}), path)
        return path

    def run(self, *words: str) -> tuple[int, str]:
        """Run a command; `{}` in a word is the folder. It may print nothing on stdout."""
        if not self.yaml.exists():
            self.yaml.write_text(yaml.safe_dump(self.document))
        try:
            code = main([word.replace("{}", str(self.folder)) for word in words])
        except SystemExit as usage:  # argparse's
            code = int(str(usage.code))
        out, said = self.capsys.readouterr()
        assert not out
        return code, said

    def score(self, *overrides: str) -> tuple[int, str]:
        words = [word for override in overrides for word in ("--set", override)]
        return self.run("score", str(self.yaml), *words)

    def begin(self) -> RunDirectory:
        self.shard()
        self.yaml.write_text(yaml.safe_dump(self.document))
        config = load(self.yaml)
        run = RunDirectory(config.output)
        run.begin(config, plan_input(config, ("p_a", "p_b")))
        return run


@pytest.fixture
def case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Case:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr("ray_judge.pipeline.connected", lambda: pytest.fail("Ray was started"))
    return Case(tmp_path, capsys)


def refused(said: tuple[int, str], code: int, *words: object) -> None:
    """One sentence on stderr, and this exit code."""
    assert said[0] == code, said
    for word in words:
        assert str(word) in said[1], said[1]
    *before, last = said[1].splitlines()
    assert last.startswith("ray-judge: ") and SECRET not in said[1]
    assert all(line.startswith("not taken: ") for line in before)


OVERRIDES: list[tuple[str, int, str]] = [
    ("strong.max_cost_usd=-1", 2, "greater than or equal to 0"),
    ("strong.max_cost_usd=yes", 2, "a truth value in YAML"),
    ("strong.price={input: 1}", 2, "missing key strong.price.input_usd_per_mtok"),
    ("strong.model=acme/judge-1", 2, "strong.price"),
    ("strong.model=null", 2, "strong.model"),
    ("strong=[]", 2, "strong: Input should be a valid mapping of keys to values"),
    (f"strong.api_key_env=sk-{SECRET}", 2, "is to name an environment variable"),
    (f"strong.base_url=https://u:{SECRET}@h/v1", 2, "user and a password"),
    ("strong.base_url=https://h /v1", 2, "to be like https://host/v1"),
    ("output=ftp://host/x", 2, "no storage is known as ftp://"),
    ("output=s3://", 2, "no bucket"),
    ("output=file://runs/a", 2, "file:// takes an absolute path"),
    ("output=''", 2, "output: this is blank"),
    ("output={}/in/out", 2, "output lies in the input"),
    ("output={}/run.yaml", 2, "a file is in the way of a folder"),
    ("strong.books={}/in/books", 2, "strong.books lies in the input"),
    ("strong.books=ftp://host/x", 2, "no storage is known as ftp://"),
    ("input=''", 2, "input: this is blank"),
    ("input=/dev/null", 3, "neither a file nor a folder"),
    ("input=https://h/a.parquet", 2, "no storage is known as https://"),
    ("columns={response_a: response_b}", 2, "two roles have the same column"),
    ("columns=[a]", 2, "a valid mapping of keys to values"),
    ("labels={1: A, '1': B}", 2, "two labels are alike as text"),
    ("route={fraction: 1, audit: 0.1, audit_by: scenario}", 3, "no such column for route.audit_by"),
    ("route={policy: guarantee, calibration: '{}'}", 2, "Is a directory"),
    ("route={policy: guarantee, calibration: '{}/run.yaml'}", 2, "no calibration that ray_judge"),
    ("judge={model: /no/model, format: demo}", 2, "/no/model"),
    ("route=null", 2, "route: Input should be a valid mapping"),
    ("judge={model: a/b, format: judgelmm}", 2, "judge.format"),
    ("judge={model: a/b, engine: http, http: {base_url: localhost}}", 2, "judge.http.base_url"),
    ("judge.prob_columns={A: p_a, B: p_a}", 2, "names one column twice"),
    ("chunk_rows=10.5", 2, "chunk_rows"),
    ("=3", 2, "--set takes key=value"),
    ("strong..model=x", 2, "--set takes key=value"),
]


@pytest.mark.parametrize(("override", "code", "said"), OVERRIDES)
def test_a_wrong_value(case: Case, override: str, code: int, said: str) -> None:
    case.shard()
    refused(case.score(override.replace("{}", str(case.folder))), code, said)
    refused(case.run("plan", "{}/run.yaml", "--quiet", "--set", override), code, said)
    assert not (case.folder / "out").exists()


LISTS = pa.array([["x"], ["y"], ["z"]])
CHAT = pa.array([[{"role": "user", "content": "x"}]] * 3)
COLUMNS: list[tuple[dict[str, Any], str]] = [
    ({"p_a": ["0.5"] * 3}, "probabilities must be numbers, this column is string"),
    ({"p_a": [1.5, -2.0, 3.0]}, "none of the first 3 values is a probability, such as 1.5"),
    ({"instruction": None, "Instruction": ["x"] * 3}, "did you mean Instruction?"),
    ({"response_a": LISTS}, "response_a is list of texts, response_b is text"),
    ({"response_b": CHAT}, "response_a is text, response_b is messages"),
    ({"label": ["model_a", "A", "tie"]}, "'model_a' (1 rows)"),
    ({"label": [date(2026, 1, 1)] * 3}, "label must be text or numbers"),
    ({"label": LISTS}, "label must be text or numbers"),
    ({"label": [b"A", b"\xff", b"B"]}, "this is not UTF-8 text"),
]


@pytest.mark.parametrize(("columns", "said"), COLUMNS)
def test_a_wrong_column(case: Case, columns: dict[str, Any], said: str) -> None:
    path = case.shard(**columns)
    refused(case.score(), 3, said, path)
    assert not (case.folder / "out").exists()


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no bytes": (damage(lambda data: b""), "0 bytes"),
    "half of it": (damage(lambda data: data[: len(data) // 2]), "not a readable Parquet file"),
    "a broken footer": (damage(lambda data: data[:-40] + b"\xff" * 32 + data[-8:]), "not a read"),
    "text": (damage(lambda data: b"a,b\n1,2\n" * 20), "not a readable Parquet file"),
    "encrypted": (damage(lambda data: data[:-4] + b"PARE"), "encrypted"),
    "no rows": (lambda path: pq.write_table(pq.read_table(path)[:0], path), "allow_empty_shards"),
    "no columns": (lambda path: pq.write_table(pa.table({}), path), "this shard has no columns"),
    "other columns": (
        lambda path: pq.write_table(pa.table({"q": ["x"]}), path),
        "this shard has q",
    ),
    "a link to nothing": (lambda path: (path.unlink(), path.symlink_to("none")), "no such file"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_wrong_file(case: Case, kind: str) -> None:
    change, said = FILES[kind]
    path = case.shard()
    change(path)
    refused(case.score(), 3, said, path)
    assert not (case.folder / "out").exists()


@pytest.mark.parametrize("name", ["part-0.json", "part-0.txt", "_a.parquet"])
def test_no_file_that_is_taken(case: Case, name: str) -> None:
    (case.folder / "in" / name).write_text("{}")
    refused(case.score(), 3, "no shards here", f"not taken: {name} (")


YAMLS: list[tuple[bytes | None, str]] = [
    (None, "No such file"),
    (b"", "the configuration is empty"),
    (b"- a\n", "not a mapping"),
    (b"a:\n\tb: 1\n", "line=2"),
    (b"a: b: c\n", "mapping values are not allowed here"),
    (b"[" * 3000, "recursion"),
    (b"a: 1\n---\nb: 1\n", "another document"),
    (b"a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    (b"? [a]\n: b\n", "unhashable"),
    (b"a: &x [*x]\n", "unknown key a"),
    (b"1: a\n", "Keys should be strings"),
    (b"a: 2026-13-45\n", "month must be in 1..12"),
    (b"a: 1\n\xff\n", "not YAML: this is not UTF-8"),
    (b"a: 1\nb: \xff\n", "line=2"),
    (b"PAR1\x00\x15", "special characters are not allowed"),
]


@pytest.mark.parametrize(("text", "said"), YAMLS)
def test_a_wrong_yaml(case: Case, text: bytes | None, said: str) -> None:
    case.document = {}
    words = ("score", "{}/given.yaml")
    if text is not None:
        (case.folder / "given.yaml").write_bytes(text)
    refused(case.run(*words), 2, said, "given.yaml")


ARGUMENTS: list[tuple[str, int, str]] = [
    ("score {}", 2, "Is a directory"),
    ("calibrate {}/run.yaml", 2, "calibrate needs --labels COLUMN"),
    ("calibrate {}/run.yaml --labels humn", 3, "no such column"),
    ("calibrate {}/run.yaml --labels human", 3, "3 rows have a label; at least 30 are needed"),
    ("calibrate {}/run.yaml --labels winner", 3, "'model_a' (3 rows)"),
    ("calibrate {}/run.yaml --labels human --alpha 2", 2, "alpha must lie between 0 and 1"),
    ("calibrate {}/run.yaml --labels human --to ftp://h/c.json", 2, "no storage is known as ftp"),
    ("calibrate {}/run.yaml --labels human --to {}", 2, "a calibration is a file"),
    ("calibrate {}/run.yaml --against strong --set strong.max_cost_usd=0", 2, "is 0"),
    ("status {}/none", 3, "there is no run here"),
    ("status {}/run.yaml", 3, "there is no run here"),
    ("status ftp://h/x", 2, "no storage is known as ftp"),
    ("report {}/none", 3, "there is no run here"),
    ("report {}/none --labels x", 3, "there is no run here"),
    ("judges check nobody", 2, "no judge nobody"),
    ("demo --output {}/in", 2, "choose another --output"),
    ("demo --output {}/run.yaml", 2, "choose another --output"),
]


@pytest.mark.parametrize(("words", "code", "said"), ARGUMENTS)
def test_a_wrong_argument(case: Case, words: str, code: int, said: str) -> None:
    case.shard(human=["A", "B", "tie"], winner=["model_a"] * 3)
    refused(case.run(*words.split()), code, said)
    assert not (case.folder / "out").exists()


WORDS = """
    plan {}/run.yaml --sample 0 | demo --pairs 0 | demo --fraction lots | demo --cap x | scor |
    score | score a --nonsense |
""".split("|")


@pytest.mark.parametrize("words", WORDS)
def test_a_wrong_word(case: Case, words: str) -> None:
    code, said = case.run(*words.split())
    assert code == 2 and "ray-judge" in said and "error: " in said and "Traceback" not in said


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"config": {}, "shards": 3}', "\xff"])
@pytest.mark.parametrize("words", ["score {}/run.yaml", "status {}/out", "report {}/out"])
def test_a_damaged_run(case: Case, text: str, words: str) -> None:
    case.begin().storage.write("run.json", text.encode("latin-1"))
    refused(case.run(*words.split()), 1, "run.json", "damaged")


def test_a_folder_that_cannot_be_written_to(case: Case) -> None:
    """Not even root makes folders in /sys."""
    case.shard()
    refused(case.score("output=/sys/no-such/x"), 1, "/sys/no-such", "the file system refused")


def test_a_changed_input_file(case: Case) -> None:
    run, path = case.begin(), case.folder / "in" / "a.parquet"
    data = bytearray(path.read_bytes())
    data[10] ^= 1  # the same size, one bit elsewhere
    path.write_bytes(bytes(data))
    refused(case.score(), 3, "changed", path)
    path.unlink()
    refused(case.score(), 3, "gone", path)
    assert run.judged(0) == set()


def test_a_run_that_another_process_does_and_one_of_tomorrow(case: Case) -> None:
    run = case.begin()
    with run.locked():
        refused(case.score(), 1, "another process works in this run directory")
    run.storage.write("run.json", b'{"layout": 99}')
    refused(case.score(), 1, "newer ray_judge")


@pytest.mark.parametrize("log", ["ledger/00000001.log", "journal/a-0.log"])
@pytest.mark.parametrize(
    ("line", "said"),
    [(b"2 1 0 0123456789abcdef {}", "newer version"), (b"1 1 0 junk {}", "a damaged line")],
)
def test_a_damaged_ledger_or_journal(case: Case, log: str, line: bytes, said: str) -> None:
    """Written by a newer version, or damaged by hand: found before the local judge begins."""
    run = case.begin()
    path = case.folder / "out" / log
    path.parent.mkdir()
    path.write_bytes(line + b"\n")
    refused(case.score(), 1, path, said)
    assert run.judged(0) == set() and path.read_bytes() == line + b"\n"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "head"])
def test_a_place_of_no_cluster(case: Case, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    case.shard()
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    refused(case.score(), 2, "RAY_ADDRESS is to be like host:6379", address)
    assert not (case.folder / "out").exists()


@pytest.mark.parametrize("names", [("random.py",), ("ray/__init__.py", "json.py")])
def test_modules_that_hide_others(
    case: Case, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """Beside the script, or in the working directory of `python -c`."""
    for name in (*names, "mine.py", "yaml/no_module.py"):
        (case.folder / name).parent.mkdir(exist_ok=True)
        (case.folder / name).write_text("")
    monkeypatch.syspath_prepend(case.folder)

    def broken(*_: Any) -> None:
        raise ImportError("cannot import name 'SystemRandom' from 'random'")

    monkeypatch.setattr("ray_judge.config.load", broken)
    code, said = case.run("score", "x.yaml")
    assert (code, said.count("\n")) == (2, 1) and "SystemRandom" in said
    assert all(str(case.folder / name) in said for name in names)
    assert "mine.py" not in said and "no_module" not in said
    for name in names:
        os.unlink(case.folder / name)
    with pytest.raises(ImportError):
        case.run("score", "x.yaml")
