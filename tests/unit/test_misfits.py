"""Models that cannot judge: what is said of a folder, of an engine's error, of the first rows."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError, EngineError, RayJudgeError
from ray_judge.judging.engines.checkpoint import check_model
from ray_judge.judging.engines.engine import check_engine
from ray_judge.judging.engines.errors import engine_error
from ray_judge.judging.first_rows import FIRST_ROWS, check_first_rows, chunk_to_check
from ray_judge.records import Chunk

from . import builders

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
HERE = {"base_url": "http://127.0.0.1:9/v1"}
INDEX = json.dumps({"weight_map": {"v": "one.safetensors", "w": "two.safetensors"}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint, as far as can be told without loading it."""
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    return tmp_path


def _write(name: str, content: bytes | str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_write("config.json", None), r"no config\.json"),
        (_write("config.json", "{nope"), "this file is not JSON"),
        (_write("config.json", "[]"), "no JSON object"),
        (_write("config.json", '{"architectures": ["XForSequenceClassification"]}'),
         "no language model but XForSequenceClassification"),
        (_write("tokenizer.json", None), "no tokenizer"),
        (_write("model.safetensors", None), "no weights"),
        (_write("model.safetensors", WEIGHTS[:-1]), "has .* bytes, and is to have"),
        (_write("model.safetensors", WEIGHTS + b"."), "has .* bytes, and is to have"),
        (_write("model.safetensors", WEIGHTS[:20]), "cut or damaged"),
        (_write("model.safetensors", b""), "cut or damaged"),
        (_write("model.safetensors", b"\x80\x02" * 40), "cut or damaged"),
        (_write("model.safetensors", struct.pack("<Q", 4) + b"nope"), "is damaged"),
        (_write("model.safetensors", b"version https://git-lfs.github.com/spec/v1"), "Git LFS"),
        (_write("model.safetensors.index.json", INDEX), "2 of 2 files.*one.safetensors"),
    ],
)  # fmt: skip
def test_a_folder_of_half_a_model(folder: Path, change: Callable[[Path], None], said: str) -> None:
    check_model("judge.model", str(folder), {})
    change(folder)
    with pytest.raises(ConfigError, match=f"judge.model.*{said}"):
        check_model("judge.model", str(folder), {})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "no reward model but LlamaForCausalLM"),
        ({}, "no reward model but of no kind"),
        ({"architectures": ["XForSequenceClassification"]}, "has 2 labels"),
        ({"architectures": ["XForSequenceClassification"], "id2label": {"0": "a", "1": "b"}},
         "has 2 labels, and a reward model has one"),
        ({"architectures": ["XForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
         "no head among its 1 weights"),
        ({"architectures": ["XForSequenceClassification"], "id2label": {"0": "reward"}}, None),
    ],
)  # fmt: skip
def test_a_folder_of_no_rewards(folder: Path, config: dict[str, Any], said: str | None) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    judge = {"model": str(folder), "format": "reward"}
    if said is None:
        header = HEADER.replace(b'"w"', b'"score.weight"')
        whole = struct.pack("<Q", len(header)) + header + bytes(8)
        (folder / "model.safetensors").write_bytes(whole)
        assert check_engine(builders.config(judge=judge)) is None
        return
    with pytest.raises(ConfigError, match=rf"judge\.model .*{said}"):
        check_engine(builders.config(judge=judge))


QWEN, SEVERAL = "{% if enable_thinking %}a{% endif %}", [{"name": "default", "template": "x"}]
NO = "no switch for thinking"


@pytest.mark.parametrize(
    ("template", "changes", "said"),
    [
        (QWEN, {}, None),
        ("{% if not thinking is defined %}{% set thinking = 1 %}{% endif %}", {}, None),
        ("{{ message.thinking }} enable_thinking 'thinking' in message", {}, NO),
        ("{% set thinking = 1 %}{{ thinking }}", {}, NO),
        ("x", {"chat_template_kwargs": {"reasoning_effort": "none"}}, None),
        (SEVERAL, {}, NO),
        (None, {}, NO),
        (QWEN, {"format": "judgelm"}, "asked without a chat template"),
    ],
)
def test_whether_thinking_can_be_switched(
    folder: Path, templates: str, template: Any, changes: dict[str, Any], said: str | None
) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    judge = {"model": str(folder), "thinking": False, "templates": templates, **changes}
    for _ in range(2):  # by either of the places where tokenizers keep their template
        if said is None:
            check_engine(builders.config(judge=judge))
        else:
            with pytest.raises(ConfigError, match=said):
                check_engine(builders.config(judge=judge))
        if isinstance(template, str):
            (folder / "tokenizer_config.json").write_text("{}")
            (folder / "chat_template.jinja").write_text(template)


def test_paths_that_lead_to_no_model_and_names_that_are_the_hubs_to_say() -> None:
    for model in ("/nowhere/model", "./nowhere", "~/nowhere", "a/b/c", "nowhere"):
        with pytest.raises(ConfigError, match="no such path"):
            check_model("judge.model", model, {})
    check_model("judge.model", "org/model", {})


def test_what_the_engine_is_told_may_stand_in_for_files(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    check_model("judge.model", str(folder), {"tokenizer": "org/other", "load_format": "dummy"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float23"}, r"judge\.dtype: there is no type 'float23' \(did you mean float"),
        ({"engine": "transformers", "quantization": "awq"}, "quantization goes with engine: vllm"),
        ({"adapter": "/no/adapter"}, r"judge\.adapter: there is no such path"),
        ({"engine": "nothing"}, "needs the package no_such_package"),
        ({"engine": "http", "http": HERE, "overlong": "cut"}, "overlong: cut needs"),
        ({"engine": "http", "http": {**HERE, "api": "chat"}, "chat": False}, "api: completions"),
        ({"engine": "http", "http": {**HERE, "api_key_env": "NO_KEY"}}, "set NO_KEY"),
    ],
)
def test_what_is_known_before_anything_starts(
    folder: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_judge.judging.engines.engine.is_own_machine", lambda: True)
    if changes.get("engine") == "nothing":
        changes = {}
        needs = {"vllm": ("no_such_package",)}
        monkeypatch.setattr("ray_judge.judging.engines.engine.NEEDS", needs)
    config = builders.config(judge={"model": str(folder), **changes})
    with pytest.raises(ConfigError, match=said):
        check_engine(config)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (RuntimeError("CUDA out of memory. Tried to"), EngineError, r"judge\.max_model_len"),
        (OSError("org/m is not a valid model identifier"), ConfigError, r"Check judge\.model"),
        (ImportError("no module", name="vllm.x"), ConfigError, r"install ray-judge\[cpu\]"),
        (ImportError("it needs peft"), ConfigError, r"not there \(ImportError: it needs peft"),
        (KeyError("x"), EngineError, "cannot: KeyError: 'x'.*RAY_JUDGE_WORKER_LOGS"),
        (RuntimeError(), EngineError, "cannot: RuntimeError"),
        (ValueError("a\n  b " * 300), EngineError, "a b a b.*…"),
        (EngineError("ours"), EngineError, "^ours$"),
    ],
)  # fmt: skip
def test_what_an_engine_raises(error: Exception, kind: type[RayJudgeError], said: str) -> None:
    """Where tests/engines/test_engine_errors.py cannot make a real one raise it."""
    judge = JudgeConfig(model="org/m")
    found = engine_error(judge, error, "it cannot")
    assert type(found) is kind and "\n" not in str(found) and len(str(found)) < 600
    with pytest.raises(kind, match=said):
        raise found


def test_what_is_wrong_with_the_base_model_is_told_of_it() -> None:
    judge = JudgeConfig(model="org/m", base_model="org/b", confidence="calibrated_entropy")
    found = engine_error(judge, OSError("not a valid model"), "it cannot", base=True)
    assert "judge.base_model" in str(found) and found.where == {"judge": "org/b"}


def rows(*masses: float | None, text: bool = True) -> Any:
    reason = "judge: it would rather write 'The'"
    return builders.judged(
        *({"judge_mass": mass, "has_text": text, "error": reason} for mass in masses)
    )


FITS, LOW = 0.9, 0.002


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        (rows(*[LOW] * 100), r"does not fit m: on half of the first 100 rows .* 0\.002 of"),
        (rows(*[LOW] * 51, *[FITS] * 49), "the first such row says: it would rather write 'The'"),
        (rows(*[FITS] * 51, *[LOW] * 49), None),
        (rows(*[None] * 99, FITS), None),  # one that can be read is enough
        (rows(*[None] * 99, LOW), "does not fit"),
        (rows(*[None] * 100), "none of the first 100 rows got a verdict"),
        (rows(LOW), "of the first 1 rows"),
        (rows(*[None] * 100, text=False), None),
    ],
)
def test_the_first_rows(judged: Any, said: str | None) -> None:
    judge = JudgeConfig(model="m")
    if said is None:
        check_first_rows(judged, judge)
    else:
        with pytest.raises(EngineError, match=f"(?i){said}.*judge.chat and judge.min_mass"):
            check_first_rows(judged, judge)


@pytest.mark.parametrize(
    ("counts", "first", "later"),
    [
        ([1000, 1000], "0", "0"), ([99, 100, 1000], "1", "1"), ([40, 60], "1", None),
        ([0, 7, 7], "1", None), ([0, 0], "0", None),
    ],
)  # fmt: skip
def test_which_chunk_is_looked_at(counts: list[int], first: str, later: str | None) -> None:
    chunks = [Chunk(str(n), "in", "in", 0, 1000) for n in range(len(counts))]
    sizes = {str(n): count for n, count in enumerate(counts)}
    assert FIRST_ROWS == 100
    judge = JudgeConfig(model="m")
    assert chunk_to_check(judge, 0, chunks, sizes) == first
    assert chunk_to_check(judge, 1, chunks, sizes) == later
    takes_all = judge.model_copy(update={"min_mass": 0.0})
    assert chunk_to_check(takes_all, 0, chunks, sizes) is None
