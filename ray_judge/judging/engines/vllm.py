"""`vllm`: the model in this process, on a GPU or on vLLM's CPU build by the same code.

One thread owns the engine and steps it; any number of chunks hand in requests and wait. So the
scheduler always holds work of several chunks, and the engine does not idle while one chunk is
read, tokenised or committed. Probabilities are vLLM's raw log-probabilities of exactly the
tokens asked for (`SamplingParams.logprob_token_ids`, vLLM ≥ 0.25), unmasked and untempered.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError, EngineError
from ray_judge.judging.engines.checkpoint import check_model, where
from ray_judge.judging.engines.engine import Written, answer_text
from ray_judge.judging.engines.verdict_tree import Position
from ray_judge.records import Scored

CPU_DEFAULTS: Mapping[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}
MOST_TOKENS = 128
"""Whose log-probabilities one request may ask for (vLLM's `MAX_LOGPROB_TOKEN_IDS`)."""
SHARED_GPU = 0.45
"""Share of a GPU's memory for each of two models on it."""


class VllmModel:
    """In-process vLLM. One per process."""

    def __init__(self, judge: JudgeConfig) -> None:
        """Load the model. Raises ConfigError (no such model) or EngineError."""
        self._tapped = judge.confidence in ("entropy", "calibrated_entropy")
        self._llm = _load(judge, tapped=self._tapped)
        self.tokenizer = self._llm.get_tokenizer()
        self.context = int(self._llm.llm_engine.model_config.max_model_len)
        self.name = str(judge.model) if not judge.revision else f"{judge.model}@{judge.revision}"
        if judge.adapter:
            self.name += f"+{judge.adapter}"
        self._names = count()
        self._loop = EngineLoop(self._llm, lora=_lora(judge), tapped=self._tapped)

    def positions(
        self, asks: Sequence[tuple[Sequence[int], Sequence[int]]], *, entropy: bool
    ) -> list[Position]:
        """See `LanguageModel.positions`."""
        waiting = [
            [
                self._submit(ids, {"logprob_token_ids": list(part)}, most=1, tap=entropy)
                for part in batched(tokens, MOST_TOKENS)
            ]
            for ids, tokens in asks
        ]
        found = []
        for (_, tokens), futures in zip(asks, waiting, strict=True):
            values: dict[int, Any] = {}
            for future in futures:
                output, entropies = future.result()
                values |= output.logprobs[0]
            found.append(
                Position(
                    [values[token].logprob for token in tokens], entropies[0] if entropy else None
                )
            )
        return found

    def write(
        self, prompts: Sequence[Sequence[int]], *, most: int, stop: Sequence[str], entropy: bool
    ) -> list[Written]:
        """See `LanguageModel.write`."""
        wish = {"stop": list(stop), "detokenize": True}
        waiting = [self._submit(ids, wish, most=most, tap=entropy) for ids in prompts]
        answers = [future.result() for future in waiting]
        return [
            Written(
                tuple(output.token_ids),
                answer_text(self.tokenizer, output.token_ids, stop),
                entropies,
                output.finish_reason == "stop",
            )
            for output, entropies in answers
        ]

    def entropies(self, scored: Sequence[Scored]) -> list[list[float]]:
        """See `LanguageModel.entropies`."""
        waiting = [
            self._submit(
                item.prompt,
                {"ignore_eos": True},
                most=len(item.answer),
                tap=True,
                write=item.answer,
            )
            for item in scored
        ]
        return [list(future.result()[1]) for future in waiting]

    def _submit(
        self,
        ids: Sequence[int],
        wish: Mapping[str, Any],
        *,
        most: int,
        tap: bool,
        write: Sequence[int] | None = None,
    ) -> Future[tuple[Any, tuple[float, ...]]]:
        from vllm import SamplingParams

        name = str(next(self._names))
        asked: dict[str, Any] = {"tap": name} if tap else {}
        if write is not None:
            asked["write"] = list(write)
        wishes = {"detokenize": False, **wish}
        params = SamplingParams(
            max_tokens=most, temperature=0.0, extra_args=asked or None, **wishes
        )
        return self._loop.submit(name, list(ids), params)


def batched(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cut a sequence into parts of at most `size` (itertools has it from Python 3.12 on)."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


Job = tuple[str, list[int], Any, Future[tuple[Any, tuple[float, ...]]]]


class EngineLoop:
    """The one thread that touches the engine: takes prompts in, steps, hands results out."""

    def __init__(self, llm: Any, *, lora: Any = None, tapped: bool = False) -> None:
        """Start stepping; the thread ends with the process."""
        self._llm = llm
        self._engine = llm.llm_engine
        self._lora = lora
        self._tapped = tapped
        self._incoming: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._running: dict[str, Job] = {}
        self._broken: EngineError | None = None
        threading.Thread(target=self._run, name="vllm-engine", daemon=True).start()

    def submit(
        self, name: str, ids: list[int], params: Any
    ) -> Future[tuple[Any, tuple[float, ...]]]:
        """Queue one prompt (token ids); the future gives (its output, entropies per token)."""
        if self._broken:
            raise self._broken
        future: Future[tuple[Any, tuple[float, ...]]] = Future()
        self._incoming.put((name, ids, params, future))
        return future

    def _run(self) -> None:
        try:
            while True:
                self._admit()
                self._hand_out([out for out in self._engine.step() if out.finished])
        except Exception as error:  # whatever the engine dies of, nobody may wait for ever
            self._broken = EngineError(f"the engine died: {type(error).__name__}: {error}")
            for job in self._running.values():
                job[3].set_exception(self._broken)
            while True:
                self._incoming.get()[3].set_exception(self._broken)

    def _hand_out(self, outputs: Sequence[Any]) -> None:
        if not outputs:
            return
        found: dict[str, dict[int, float]] = {}
        if self._tapped:
            from ray_judge.judging.engines.entropy_tap import drain

            names = [output.request_id for output in outputs]
            # Every worker sees the same logits; the first one's word is enough.
            found = self._llm.collective_rpc(drain, args=(names,))[0]
        for output in outputs:
            _, _, _, future = self._running.pop(output.request_id)
            answer, values = output.outputs[0], found.get(output.request_id, {})
            entropies = tuple(values[at] for at in range(len(answer.token_ids))) if values else ()
            future.set_result((answer, entropies))

    def _admit(self) -> None:
        """Take everything that waits; block only while the engine has nothing to do."""
        while True:
            try:
                job = self._incoming.get(block=not self._running)
            except queue.Empty:
                return
            name, ids, params, _ = job
            self._running[name] = job
            lora = {"lora_request": self._lora} if self._lora else {}
            self._engine.add_request(name, {"prompt_token_ids": ids}, params, **lora)


def _load(judge: JudgeConfig, *, tapped: bool) -> Any:
    check_model("judge.model", str(judge.model))
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if tapped:  # the tap is a processor of the V1 model runner
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
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
    elif judge.share_gpu:
        options["gpu_memory_utilization"] = SHARED_GPU
    if tapped:
        options |= {
            "logits_processors": ["ray_judge.judging.engines.entropy_tap:EntropyTap"],
            "async_scheduling": False,  # the tap counts the answer's tokens
        }
    if judge.adapter:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": LORA_RANK}
    for name in ("max_model_len", "revision", "quantization"):
        if (value := getattr(judge, name)) is not None:
            options[name] = value
    options |= judge.engine_options
    try:
        return LLM(model=where(str(judge.model)), dtype=judge.dtype, **options)
    except OSError as error:  # what the hub's client and transformers raise for a missing model
        raise ConfigError(f"judge.model {judge.model} cannot be loaded: {error}") from None
    except (RuntimeError, ValueError, TypeError) as error:
        raise EngineError(f"vLLM did not start: {type(error).__name__}: {error}") from None


LORA_RANK = 64
"""Highest rank of an adapter; more is `judge.engine_options: {max_lora_rank: ...}`."""


def _lora(judge: JudgeConfig) -> Any:
    if not judge.adapter:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("judge", 1, where(judge.adapter))
