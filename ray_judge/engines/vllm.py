"""`vllm`: the judge in this process, on a GPU or on vLLM's CPU build by the same code.

One thread owns the engine and steps it; any number of chunks hand in prompts and wait. So the
scheduler always holds work of several chunks, and the engine does not idle while one chunk is
read, tokenised or committed. Probabilities are vLLM's raw log-probabilities of exactly the
verdict's tokens (`SamplingParams.logprob_token_ids`, vLLM ≥ 0.25), unmasked and untempered.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from ray_judge.confidence import both_orders, judgment, verdict_probs
from ray_judge.config import JudgeConfig, RunConfig
from ray_judge.errors import ConfigError, EngineError
from ray_judge.judges import Question, format_for
from ray_judge.records import Example, Judgment

Reading = Mapping[str, Sequence[float]]
"""Alternative → natural log-probabilities of its spellings at the verdict's position."""

CPU_DEFAULTS: Mapping[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}


class VllmEngine:
    """In-process vLLM. One per process."""

    needs_text = True

    def __init__(self, config: RunConfig) -> None:
        """Load the model. Raises ConfigError (no such model) or EngineError."""
        judge = config.judge
        self._config = config
        self._format = format_for(judge, config.task)
        self._llm = _load(judge)
        self._tokenizer = self._llm.get_tokenizer()
        self._room = self._llm.llm_engine.model_config.max_model_len - 1
        self._tokens = verdict_tokens(self._tokenizer, self._format.spellings)
        chat = self._format.chat
        self._chat = bool(self._tokenizer.chat_template) if chat is None else chat
        if self._chat and not self._tokenizer.chat_template:
            raise ConfigError("judge.chat is true, but the tokenizer has no chat template")
        self.model = str(judge.model) if not judge.revision else f"{judge.model}@{judge.revision}"
        self._loop = EngineLoop(self._llm.llm_engine)
        self._tokenizing = threading.Lock()  # fast tokenizers refuse two threads at once

    def judge(self, examples: Sequence[Example], rows: pa.Table) -> list[Judgment]:
        """Judge each example, in both orders if the configuration says `swap`."""
        judge = self._config.judge
        straight = self._read([self._format.render(example) for example in examples])
        swapped: list[Reading | str] = []
        if judge.swap:
            swapped = self._read([self._format.render(example.swapped()) for example in examples])
        result = []
        for position, reading in enumerate(straight):
            other = swapped[position] if swapped else None
            result.append(self._judgment(reading, other))
        return result

    def _judgment(self, reading: Reading | str, swapped: Reading | str | None) -> Judgment:
        for part in (reading, swapped):
            if isinstance(part, str):
                return Judgment(None, None, None, None, f"judge: {part}")
        assert not isinstance(reading, str) and not isinstance(swapped, str)
        try:
            probs, mass = verdict_probs(reading)
            if swapped is not None:
                probs, mass = both_orders((probs, mass), verdict_probs(swapped))
        except ValueError as error:
            return Judgment(None, None, None, None, f"judge: {error}")
        return judgment(
            probs,
            mass,
            task=self._config.task,
            method=self._config.judge.confidence,
            min_mass=self._config.judge.min_mass,
        )

    def _read(self, questions: Sequence[Question]) -> list[Reading | str]:
        """Ask for the first token's log-probabilities; text instead says why there are none."""
        if not questions:
            return []
        with self._tokenizing:
            prompts = self._tokenize(questions)
        waiting: list[Future[dict[int, float]] | str] = []
        for ids in prompts:
            if len(ids) > self._room:
                waiting.append(
                    f"the prompt has {len(ids)} tokens, the model's context takes {self._room}"
                )
            else:
                waiting.append(self._loop.submit(ids, self._params()))
        return [item if isinstance(item, str) else self._spell(item.result()) for item in waiting]

    def _tokenize(self, questions: Sequence[Question]) -> list[list[int]]:
        if not self._chat:
            texts = [question.plain() for question in questions]
            return cast(list[list[int]], self._tokenizer(texts)["input_ids"])
        texts = [
            self._tokenizer.apply_chat_template(
                _messages(question), tokenize=False, add_generation_prompt=True
            )
            + question.opening.lstrip()
            for question in questions
        ]
        return cast(list[list[int]], self._tokenizer(texts, add_special_tokens=False)["input_ids"])

    def _params(self) -> Any:
        from vllm import SamplingParams

        ids = sorted({token for tokens in self._tokens.values() for token in tokens})
        return SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=ids, detokenize=False
        )

    def _spell(self, logprobs: Mapping[int, float]) -> Reading:
        return {
            name: [logprobs[token] for token in tokens] for name, tokens in self._tokens.items()
        }


class EngineLoop:
    """The one thread that touches the engine: takes prompts in, steps, hands results out."""

    def __init__(self, engine: Any) -> None:
        """Start stepping; the thread ends with the process."""
        self._engine = engine
        self._incoming: queue.SimpleQueue[tuple[list[int], Any, Future[dict[int, float]]]]
        self._incoming = queue.SimpleQueue()
        self._running: dict[str, Future[dict[int, float]]] = {}
        self._numbers = count()
        self._broken: EngineError | None = None
        threading.Thread(target=self._run, name="vllm-engine", daemon=True).start()

    def submit(self, ids: list[int], params: Any) -> Future[dict[int, float]]:
        """Queue one prompt (token ids); the future gives token id → log-probability."""
        if self._broken:
            raise self._broken
        future: Future[dict[int, float]] = Future()
        self._incoming.put((ids, params, future))
        return future

    def _run(self) -> None:
        try:
            while True:
                self._admit()
                for output in self._engine.step():
                    if output.finished:
                        first = output.outputs[0].logprobs[0]
                        values = {token: entry.logprob for token, entry in first.items()}
                        self._running.pop(output.request_id).set_result(values)
        except Exception as error:  # whatever the engine dies of, nobody may wait for ever
            self._broken = EngineError(f"the engine died: {type(error).__name__}: {error}")
            for future in self._running.values():
                future.set_exception(self._broken)
            while True:
                self._incoming.get()[2].set_exception(self._broken)

    def _admit(self) -> None:
        """Take everything that waits; block only while the engine has nothing to do."""
        while True:
            try:
                ids, params, future = self._incoming.get(block=not self._running)
            except queue.Empty:
                return
            name = str(next(self._numbers))
            self._running[name] = future
            self._engine.add_request(name, {"prompt_token_ids": ids}, params)


def verdict_tokens(
    tokenizer: Any, spellings: Mapping[str, Sequence[str]]
) -> dict[str, tuple[int, ...]]:
    """Find the single tokens that spell each alternative in this tokenizer.

    A spelling of several tokens is left out: its first token alone would not be the verdict.
    Raises ConfigError when an alternative has none, or two alternatives share one.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, texts in spellings.items():
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        found[name] = tuple(dict.fromkeys(one[0] for one in ids if len(one) == 1))
        if not found[name]:
            raise ConfigError(f"no spelling of {name!r} ({texts}) is one token of this model")
    everything = [token for tokens in found.values() for token in tokens]
    if len(everything) != len(set(everything)):
        raise ConfigError("two alternatives begin with the same token in this model's tokenizer")
    return found


def check_model(model: str) -> None:
    """Refuse a path that leads nowhere. A name such as `org/model` is left to the hub."""
    path = Path(model).expanduser()
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1
    if path.exists():
        if not (path / "config.json").exists():
            raise ConfigError("judge.model is not a model directory: no config.json", path=path)
    elif looks_local:
        raise ConfigError("judge.model: there is no such path", path=path)


def _load(judge: JudgeConfig) -> Any:
    check_model(str(judge.model))
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigError(
            f"engine: vllm needs vLLM: install ray-judge[cpu] or ray-judge[gpu] ({error})"
        ) from None
    options: dict[str, Any] = {"disable_log_stats": True, "enable_prefix_caching": True}
    if current_platform.is_cpu():
        options |= CPU_DEFAULTS
    if judge.max_model_len:
        options["max_model_len"] = judge.max_model_len
    if judge.revision:
        options["revision"] = judge.revision
    options |= judge.engine_options
    try:
        return LLM(model=str(Path(judge.model or "").expanduser()), dtype=judge.dtype, **options)
    except OSError as error:  # what the hub's client and transformers raise for a missing model
        raise ConfigError(f"judge.model {judge.model} cannot be loaded: {error}") from None
    except (RuntimeError, ValueError, TypeError) as error:
        raise EngineError(f"vLLM did not start: {type(error).__name__}: {error}") from None


def _messages(question: Question) -> list[dict[str, str]]:
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": question.user}]
