"""What an engine's own exception means for the user: one sentence, its words, the key to set. Pure.

Engines raise whatever they like, and name their own options, not ours. So the words decide which
key is named, and never more than that: an error that nobody foresaw still arrives as ours.
"""

from __future__ import annotations

import re
from typing import Any

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError, EngineError, RayJudgeError, brief
from ray_judge.judging.formats import base_of

MEMORY = (
    "judge.engine_options (gpu_memory_utilization, kv_cache_memory_bytes, tensor_parallel_size), "
    "judge.max_model_len and judge.quantization"
)
OPTION = r"unexpected keyword argument '(\w+)'|multiple values for keyword argument '(\w+)'"
OF_MODEL = (
    "safetensor", "deserializ", "unpickl", "central directory", "model weights",
    "from checkpoint", "parameter named", "mismatch", "architecture", "support generation",
    "valid model", "snapshot folder", "huggingface.co", "no file named", "valid JSON", "gated repo",
)  # fmt: skip
"""What engines and hubs say of a checkpoint that is not there, not whole, or of another kind."""
KEYS: tuple[tuple[str, str, type[RayJudgeError]], ...] = (
    (OPTION, "judge.engine_options", ConfigError),
    (r"trust_remote_code", "judge.engine_options: {trust_remote_code: true}", ConfigError),
    (r"greater than the derived max_model_len", "judge.max_model_len", ConfigError),
    (r"out of memory|cache blocks|kv.cache|memory utilization|can't allocate", MEMORY, EngineError),
    (r"\blora\b", "judge.adapter and judge.engine_options.max_lora_rank", ConfigError),
    (r"quantiz", "judge.quantization", ConfigError),
    (r"\bdtype\b|bfloat16|float16", "judge.dtype", ConfigError),
    (r"TemplateError", "judge.chat (false goes without the chat template)", ConfigError),
    (r"tokenizer|sentencepiece", "the tokenizer's files of judge.model", ConfigError),
    ("|".join(OF_MODEL), "judge.model", ConfigError),
)
"""What an engine's words are about → the keys to look at, and whose fault that is."""


def engine_error(
    judge: JudgeConfig, error: Exception, doing: str, *, base: bool = False
) -> RayJudgeError:
    """The error of ours that an exception stands for.

    `doing`: what failed, for the sentence. `base`: it is about the judge's base model.
    """
    if isinstance(error, RayJudgeError):
        return error
    where = {"judge": base_of(judge) if base else judge.model}
    words = _words(error)
    if isinstance(error, ImportError):
        needed = (error.name or "").partition(".")[0] in ("vllm", "torch", "transformers")
        install = ": install ray-judge[cpu] or ray-judge[gpu]" if needed else ""
        said = f"engine: {judge.engine} needs a package that is not there{install} ({words})"
        return ConfigError(said, **where)
    words = words if words.endswith((".", "…")) else f"{words}."
    known = _key(error, f"{type(error).__name__}: {error}", judge)
    if known is None:
        check = "Check judge.engine_options. " if judge.engine_options else ""
        show = "RAY_JUDGE_WORKER_LOGS=1 shows all that the engine says"
        return EngineError(f"{doing}: {words} {check}{show}", **where)
    key, kind = known
    key = key.replace("judge.model", "judge.base_model") if base else key
    return kind(f"{doing}: {words} Check {key}", **where)


def _key(error: Exception, said: str, judge: JudgeConfig) -> tuple[str, type[RayJudgeError]] | None:
    fields = {str(part) for problem in _problems(error) for part in problem["loc"]}
    if named := sorted(fields & set(judge.engine_options)):
        return f"judge.engine_options.{named[0]}", ConfigError
    for pattern, key, kind in KEYS:
        if found := re.search(pattern, said, re.IGNORECASE):
            name = next(filter(None, found.groups()), None)
            return f"{key}: {name}" if name else key, kind
    return None


def _words(error: Exception) -> str:
    """What it says, on one line; by its type where that is all there is to say."""
    problems = [problem["msg"].removeprefix("Value error, ") for problem in _problems(error)]
    said, name = problems[0] if problems else str(error), type(error).__name__
    plain = said and name in ("ValidationError", "ValueError", "RuntimeError", "OSError")
    return brief(said if plain else f"{name}: {said}")


def _problems(error: Exception) -> list[dict[str, Any]]:
    """What pydantic found wrong with an option's value; its own text would print all options."""
    found = getattr(error, "errors", None)
    return list(found()) if callable(found) and type(error).__name__ == "ValidationError" else []
