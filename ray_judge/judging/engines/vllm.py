"""`vllm`: the model in this process, on a GPU or on vLLM's CPU build by the same code.

One thread owns the engine and steps it; any number of chunks hand in requests and wait. So the
engine does not idle while one chunk is read, tokenised or committed. Probabilities are vLLM's raw
log-probabilities of exactly the tokens asked for (`SamplingParams.logprob_token_ids`, vLLM ≥ 0.25).
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from inspect import signature
from itertools import count
from typing import Any

from ray_judge.config import JudgeConfig, nearest
from ray_judge.errors import ConfigError, RayJudgeError
from ray_judge.judging.engines.checkpoint import check_head, check_rewards, find_snapshot, locate
from ray_judge.judging.engines.engine import Ask, WrittenAnswer, decode_answer
from ray_judge.judging.engines.errors import engine_error
from ray_judge.judging.engines.verdict_tree import Position
from ray_judge.records import Scored

CPU_DEFAULTS = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}
MOST_TOKENS = 128
"""Whose log-probabilities one request may ask for (vLLM's `MAX_LOGPROB_TOKEN_IDS`)."""
SHARED_GPU = 0.45
"""Share of a GPU's memory for each of two models on it (`judge.share_gpu`)."""
LORA_RANK = 64
"""Highest rank of an adapter; more is `judge.engine_options: {max_lora_rank: ...}`."""

Result = tuple[Any, tuple[float, ...]]
"""vLLM's output of one request, and the entropies of its tokens (where they were asked for)."""
Job = tuple[str, list[int], Any, Future[Result]]


class VllmEngine:
    """vLLM in this process, stepped by one thread. One per process."""

    def __init__(self, judge: JudgeConfig) -> None:
        self._judge, self._entropies = judge, "entropy" in judge.confidence
        self._llm = _load(judge, entropies=self._entropies)
        self._engine = self._llm.llm_engine
        self.tokenizer = self._llm.get_tokenizer()
        self.context = int(self._engine.model_config.max_model_len)
        self._names = count()
        self._lora = {}
        if judge.adapter:
            from vllm.lora.request import LoRARequest

            self._lora = {"lora_request": LoRARequest("judge", 1, locate(judge.adapter))}
        self._incoming: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._running: dict[str, Job] = {}
        self._broken: RayJudgeError | None = None
        self._check_kind()
        threading.Thread(target=self._run, name="vllm-engine", daemon=True).start()

    def _check_kind(self) -> None:
        """Refuse a model that is of another kind (ConfigError)."""
        raise NotImplementedError

    def _hand_out(self, outputs: Sequence[Any]) -> None:
        """Give finished outputs to who waits for them."""
        for output in outputs:
            self._running.pop(output.request_id)[3].set_result(output.outputs)

    def _send(self, name: str, ids: Sequence[int], params: Any) -> Future[Any]:
        if self._broken:
            raise self._broken
        future: Future[Any] = Future()
        self._incoming.put((name, list(ids), params, future))
        return future

    def _run(self) -> None:
        """Step the engine: this thread alone touches it."""
        try:
            while True:
                self._admit()
                self._hand_out([out for out in self._engine.step() if out.finished])
        except Exception as error:  # whatever the engine dies of, nobody may wait for ever
            self._broken = engine_error(self._judge, error, "the judge's engine died")
            for job in self._running.values():
                job[3].set_exception(self._broken)
            while True:
                self._incoming.get()[3].set_exception(self._broken)

    def _admit(self) -> None:
        # Everything that waits; it blocks only while the engine has nothing to do.
        while True:
            try:
                job = self._incoming.get(block=not self._running)
            except queue.Empty:
                return
            name, ids, params, _ = job
            self._running[name] = job
            self._engine.add_request(name, {"prompt_token_ids": ids}, params, **self._lora)


class VllmModel(VllmEngine):
    """A language model: probabilities of tokens, answers, entropies."""

    def _check_kind(self) -> None:
        if self._engine.model_config.runner_type != "generate":
            kind = self._engine.model_config.architecture
            raise ConfigError(
                f"{self._judge.model} writes no text ({kind}): take another judge.model"
            )

    def positions(self, asks: Sequence[Ask]) -> list[Position]:
        def submit(ids: Sequence[int], tokens: Sequence[int]) -> list[Future[Result]]:
            parts = [list(tokens[n : n + MOST_TOKENS]) for n in range(0, len(tokens), MOST_TOKENS)]
            return [self._submit(ids, logprob_token_ids=part) for part in parts]

        found = []
        for (_, tokens), waiting in [(ask, submit(*ask)) for ask in asks]:
            results = [future.result() for future in waiting]
            seen = {token: value for out, _ in results for token, value in out.logprobs[0].items()}
            logprobs = [seen[token].logprob for token in tokens]
            out, entropies = results[-1]
            entropy = entropies[0] if self._entropies else None
            found.append(Position(logprobs, entropy, likeliest=out.token_ids[0]))
        return found

    def write(
        self, prompts: Sequence[Sequence[int]], *, most: int, stop: Sequence[str],
        temperature: float = 0.0,
    ) -> list[WrittenAnswer]:  # fmt: skip
        wish: dict[str, Any] = {"max_tokens": most, "stop": list(stop), "detokenize": True}
        wish["temperature"] = temperature
        waiting = [self._submit(ids, seed=n, **wish) for n, ids in enumerate(prompts)]
        found = []
        for out, entropies in (future.result() for future in waiting):
            text = decode_answer(self.tokenizer, out.token_ids, stop)
            ids, ended = tuple(out.token_ids), out.finish_reason == "stop"
            found.append(WrittenAnswer(ids, text, entropies, ended))
        return found

    def entropies(self, scored: Sequence[Scored]) -> list[list[float]]:
        waiting = [
            self._submit(one.prompt, one.answer, ignore_eos=True, max_tokens=len(one.answer))
            for one in scored
        ]
        return [list(future.result()[1]) for future in waiting]

    def _submit(self, ids: Sequence[int], write: Sequence[int] = (), **wish: Any) -> Future[Result]:
        from vllm import SamplingParams

        name = str(next(self._names))
        asked = {"record": name, "write": list(write) or None} if self._entropies else None
        wish = {"max_tokens": 1, "detokenize": False, "temperature": 0.0, **wish}
        return self._send(name, ids, SamplingParams(extra_args=asked, **wish))

    def _hand_out(self, outputs: Sequence[Any]) -> None:
        found: dict[str, dict[int, float]] = {}
        if self._entropies and outputs:
            from ray_judge.judging.engines.entropies import drain

            names = [output.request_id for output in outputs]
            # Every worker sees the same logits; the first one's word is enough.
            found = self._llm.collective_rpc(drain, args=(names,))[0]
        for output in outputs:
            *_, future = self._running.pop(output.request_id)
            answer, values = output.outputs[0], found.get(output.request_id, {})
            entropies = tuple(values[at] for at in range(len(answer.token_ids))) if values else ()
            future.set_result((answer, entropies))


class VllmRewards(VllmEngine):
    """A reward model: the pooling runner gives the raw output of its head at the last token."""

    def _check_kind(self) -> None:
        config = self._engine.model_config
        labels = int(getattr(config.hf_config, "num_labels", 0))
        check_rewards("judge.model", config.architectures, labels, model=self._judge.model)
        with suppress(OSError, ValueError):  # another hub's, or in a folder of the user's own
            check_head("judge.model", find_snapshot(config.model, config.revision))
        self.pad = getattr(config.hf_text_config, "pad_token_id", None)

    def rewards(self, conversations: Sequence[Sequence[int]]) -> list[float]:
        from vllm import PoolingParams

        waiting = [
            self._send(
                str(next(self._names)), ids, PoolingParams(task="classify", use_activation=False)
            )
            for ids in conversations
        ]
        return [float(future.result().data.item()) for future in waiting]


def _load(judge: JudgeConfig, *, entropies: bool) -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if entropies:  # logits processors are the V1 model runner's
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    known = [*EngineArgs.__dataclass_fields__, *signature(LLM).parameters]
    for name in judge.engine_options:
        if name not in known:
            said = f"judge.engine_options: vLLM has no option {name}{nearest(name, known)}"
            raise ConfigError(said)

    options: dict[str, Any] = {"disable_log_stats": True, "enable_prefix_caching": True}
    if current_platform.is_cpu():
        options |= CPU_DEFAULTS
    elif judge.share_gpu:
        options["gpu_memory_utilization"] = SHARED_GPU
    if entropies:
        options |= {
            "logits_processors": ["ray_judge.judging.engines.entropies:EntropyRecorder"],
            "async_scheduling": False,  # the recorder counts the answer's tokens
        }
    if judge.adapter:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": LORA_RANK}
    for name in ("max_model_len", "revision", "quantization"):
        options |= {name: value} if (value := getattr(judge, name)) is not None else {}
    options |= judge.engine_options
    return LLM(model=locate(judge.model), dtype=judge.dtype, **options)
