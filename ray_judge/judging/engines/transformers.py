"""`transformers`: the plain reference, on CPU, CUDA or Apple's MPS: slower, and easy to trust.

Every figure comes from a whole-vocabulary softmax in float32. Prompts are padded on the left, so
that the positions that matter are the last ones of every row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError, EngineError
from ray_judge.judging.engines.checkpoint import check_model, where
from ray_judge.judging.engines.engine import Written, answer_text
from ray_judge.judging.engines.verdict_tree import Position
from ray_judge.records import Scored

TOKENS_AT_ONCE = 16_384
"""Of one batch, padding included."""


class TransformersModel:
    """One model, asked in batches of prompts of similar length."""

    def __init__(self, judge: JudgeConfig) -> None:
        """Load the model. Raises ConfigError (no such model) or EngineError."""
        check_model("judge.model", str(judge.model))
        self._torch, self.tokenizer, self._model = _load(judge)
        self._device = self._model.device
        longest: int = getattr(self._model.config, "max_position_embeddings", 1 << 20)
        self.context = judge.max_model_len or longest
        self.name = str(judge.model) if not judge.revision else f"{judge.model}@{judge.revision}"
        if judge.adapter:
            self.name += f"+{judge.adapter}"
        self._lock = threading.Lock()

    def positions(
        self, asks: Sequence[tuple[Sequence[int], Sequence[int]]], *, entropy: bool
    ) -> list[Position]:
        """See `LanguageModel.positions`."""
        found: list[Position | None] = [None] * len(asks)
        for batch in self._batches([len(ids) for ids, _ in asks]):
            logprobs = self._last([asks[n][0] for n in batch], 1)[:, 0]
            entropies = self._entropy(logprobs).tolist()
            for n, row, value in zip(batch, logprobs, entropies, strict=True):
                wanted = self._torch.tensor(list(asks[n][1]), device=self._device)
                found[n] = Position(row[wanted].tolist(), value if entropy else None)
        return [position for position in found if position is not None]

    def write(
        self, prompts: Sequence[Sequence[int]], *, most: int, stop: Sequence[str], entropy: bool
    ) -> list[Written]:
        """See `LanguageModel.write`."""
        return [self._write(list(prompt), most, stop) for prompt in prompts]

    def entropies(self, scored: Sequence[Scored]) -> list[list[float]]:
        """See `LanguageModel.entropies`."""
        found: list[list[float]] = [[] for _ in scored]
        for batch in self._batches([len(item.prompt) + len(item.answer) for item in scored]):
            keep = max(len(scored[n].answer) for n in batch)
            # The last token's own successor is not asked for: the row ends in front of it.
            rows = [(*scored[n].prompt, *scored[n].answer[:-1]) for n in batch]
            values = self._entropy(self._last(rows, keep))
            for n, row in zip(batch, values, strict=True):
                found[n] = row[keep - len(scored[n].answer) :].tolist()
        return found

    def _write(self, prompt: list[int], most: int, stop: Sequence[str]) -> Written:
        """Greedy decoding, one token after the other, with the keys and values kept."""
        torch = self._torch
        ids: list[int] = []
        entropies: list[float] = []
        ends = _end_tokens(self._model)
        cache, step, ended = None, prompt, False
        with self._lock, torch.inference_mode():
            while len(ids) < most and not ended:
                out = self._model(
                    input_ids=torch.tensor([step], device=self._device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                logprobs = out.logits[0, -1].float().log_softmax(-1)
                cache = out.past_key_values
                entropies.append(float(self._entropy(logprobs)))
                ids.append(int(logprobs.argmax()))
                step = ids[-1:]
                ended = ids[-1] in ends or _stopped(self.tokenizer, ids, stop)
        text = answer_text(self.tokenizer, ids, stop)
        return Written(tuple(ids), text, tuple(entropies), ended)

    def _last(self, rows: Sequence[Sequence[int]], keep: int) -> Any:
        """Log-probabilities at the last `keep` positions: [rows, keep, vocabulary], float32."""
        torch = self._torch
        width = max(len(row) for row in rows)
        keep = min(keep, width)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for n, row in enumerate(rows):
            ids[n, width - len(row) :] = torch.tensor(list(row))
            mask[n, width - len(row) :] = 1
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        with self._lock, torch.inference_mode():
            logits = self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=places.to(self._device),
                logits_to_keep=keep,
            ).logits
            return logits.float().log_softmax(-1)

    def _entropy(self, logprobs: Any) -> Any:
        """Σ p ln p over the last axis (p = 0 counts 0)."""
        return -self._torch.special.entr(logprobs.exp()).sum(-1)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of rows, longest first, as many as fit `TOKENS_AT_ONCE`."""
        batch: list[int] = []
        for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
            if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS_AT_ONCE:
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch


def _stopped(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> bool:
    return bool(stop) and any(word in tokenizer.decode(ids) for word in stop)


def _end_tokens(model: Any) -> set[int]:
    given = model.generation_config.eos_token_id
    return set(given) if isinstance(given, list) else {given}


def _load(judge: JudgeConfig) -> tuple[Any, Any, Any]:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"engine: transformers needs torch and transformers: install ray-judge[cpu] or "
            f"ray-judge[gpu] ({error})"
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.backends.mps.is_available():
        device = "mps"
    name = where(str(judge.model))
    dtype = judge.dtype if judge.dtype == "auto" else getattr(torch, judge.dtype, None)
    if dtype is None:
        raise ConfigError(f"judge.dtype: torch has no type {judge.dtype}")
    options = {"revision": judge.revision, **judge.engine_options}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=judge.revision)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
        if judge.adapter:
            model.load_adapter(where(judge.adapter))
    except OSError as error:  # what the hub's client raises for a missing model
        raise ConfigError(f"judge.model {judge.model} cannot be loaded: {error}") from None
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        raise EngineError(f"the model did not load: {type(error).__name__}: {error}") from None
    return torch, tokenizer, model.to(device).eval()
