"""`transformers`: the plain reference, on CPU, CUDA or Apple's MPS: slower, and easy to trust.

Every figure comes from a whole-vocabulary softmax in float32. Prompts are padded on the left: the
positions that matter are the last ones of every row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.engines.checkpoint import check_rewards, locate
from ray_judge.judging.engines.engine import Ask, WrittenAnswer, decode_answer
from ray_judge.judging.engines.verdict_tree import Position
from ray_judge.records import Scored

TOKENS_AT_ONCE = 16_384
"""Of one batch, padding included."""


class TransformersEngine:
    """A model of one kind, asked in batches."""

    kind: Any
    """The class of transformers that loads it."""

    def __init__(self, judge: JudgeConfig) -> None:
        self.tokenizer, self._model = _load(judge, self.kind)
        self._device = self._model.device
        longest = getattr(self._model.config, "max_position_embeddings", 1 << 20)
        if (judge.max_model_len or 0) > longest:
            raise ConfigError(f"judge.max_model_len: this model's context has {longest:,} tokens")
        self.context: int = judge.max_model_len or longest
        self._lock = threading.Lock()

    def _forward(self, rows: Sequence[Sequence[int]], **options: Any) -> Any:
        """The model's logits, with rows filled up on the left."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        with self._lock, torch.inference_mode():
            return self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=places.to(self._device),
                **options,
            ).logits.float()

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


class TransformersModel(TransformersEngine):
    """A language model: probabilities of tokens, answers, entropies."""

    kind = AutoModelForCausalLM

    def positions(self, asks: Sequence[Ask]) -> list[Position]:
        found: dict[int, Position] = {}
        for batch in self._batches([len(ids) for ids, _ in asks]):
            logprobs = self._last([asks[n][0] for n in batch], 1)[:, 0]
            entropies = _entropy(logprobs).tolist()
            for n, row, value in zip(batch, logprobs, entropies, strict=True):
                wanted = torch.tensor(list(asks[n][1]), device=self._device)
                found[n] = Position(row[wanted].tolist(), value, likeliest=int(row.argmax()))
        return [found[n] for n in range(len(asks))]

    def write(
        self, prompts: Sequence[Sequence[int]], *, most: int, stop: Sequence[str],
        temperature: float = 0.0,
    ) -> list[WrittenAnswer]:  # fmt: skip
        return [self._write([*ids], most, stop, temperature, n) for n, ids in enumerate(prompts)]

    def entropies(self, scored: Sequence[Scored]) -> list[list[float]]:
        found: dict[int, list[float]] = {}
        for batch in self._batches([len(item.prompt) + len(item.answer) for item in scored]):
            keep = max(len(scored[n].answer) for n in batch)
            # The last token's own successor is not asked for: the row ends in front of it.
            rows = [(*scored[n].prompt, *scored[n].answer[:-1]) for n in batch]
            values = _entropy(self._last(rows, keep))
            for n, row in zip(batch, values, strict=True):
                found[n] = row[keep - len(scored[n].answer) :].tolist()
        return [found[n] for n in range(len(scored))]

    def _write(
        self, prompt: list[int], most: int, stop: Sequence[str], temperature: float, seed: int
    ) -> WrittenAnswer:
        chance = torch.Generator().manual_seed(seed)
        ids: list[int] = []
        entropies: list[float] = []
        end = self._model.generation_config.eos_token_id
        ends = end if isinstance(end, list) else [end]
        tail = 1 + max((len(word.encode()) for word in stop), default=0)  # a token has a byte
        cache, step, ended = None, prompt, False
        with self._lock, torch.inference_mode():
            while len(ids) < most and not ended:
                kept = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
                out = self._model(input_ids=torch.tensor([step], device=self._device), **kept)
                logprobs = out.logits[0, -1].float().log_softmax(-1)
                cache = out.past_key_values
                entropies.append(float(_entropy(logprobs)))
                drawn = logprobs.argmax()
                if temperature:
                    weights = (logprobs / temperature).softmax(-1).cpu()
                    drawn = torch.multinomial(weights, 1, generator=chance)
                ids.append(int(drawn))
                step = ids[-1:]
                text = self.tokenizer.decode(ids[-tail:]) if stop else ""
                ended = ids[-1] in ends or any(word in text for word in stop)
        text = decode_answer(self.tokenizer, ids, stop)
        return WrittenAnswer(tuple(ids), text, tuple(entropies), ended)

    def _last(self, rows: Sequence[Sequence[int]], keep: int) -> Any:
        """Log-probabilities at the last `keep` positions: [rows, keep, vocabulary], float32."""
        most = min(keep, max(len(row) for row in rows))
        return self._forward(rows, logits_to_keep=most).log_softmax(-1)


class TransformersRewards(TransformersEngine):
    """A reward model: the raw output of its head at the last token."""

    kind = AutoModelForSequenceClassification

    def __init__(self, judge: JudgeConfig) -> None:
        super().__init__(judge)
        config = self._model.config
        kinds = config.architectures or []
        check_rewards("judge.model", kinds, config.num_labels, model=judge.model)
        text = config.get_text_config()
        self.pad: int | None = text.pad_token_id
        text.pad_token_id = -1  # it would look for the last token that is another; all rows end

    def rewards(self, conversations: Sequence[Sequence[int]]) -> list[float]:
        found: dict[int, float] = {}
        for batch in self._batches([len(ids) for ids in conversations]):
            logits = self._forward([conversations[n] for n in batch])
            found |= zip(batch, logits[:, 0].tolist(), strict=True)
        return [found[n] for n in range(len(conversations))]


def _entropy(logprobs: Any) -> Any:
    """Σ p ln p over the last axis."""
    return -torch.special.entr(logprobs.exp()).sum(-1)


def _load(judge: JudgeConfig, kind: Any) -> tuple[Any, Any]:
    mps = torch.backends.mps.is_available()
    device = "mps" if mps else "cuda" if torch.cuda.is_available() else "cpu"
    name, dtype = locate(judge.model), judge.dtype
    options = {"revision": judge.revision, **judge.engine_options}
    tokenizer = AutoTokenizer.from_pretrained(name, revision=judge.revision)
    model, told = kind.from_pretrained(
        name,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        output_loading_info=True,
        **options,
    )
    # What a checkpoint lacks would be drawn at random, and would judge all the same.
    if lost := sorted(told["missing_keys"]):
        raise ConfigError(
            f"this checkpoint lacks {len(lost)} of the weights of {type(model).__name__} "
            f"({', '.join(lost[:3])}): it is of another kind (a reward model writes no text, one "
            "that writes gives no reward), or a body without a head. Take another judge.model",
            judge=judge.model,
        )
    if judge.adapter:
        model.load_adapter(locate(judge.adapter))
    return tokenizer, model.to(device).eval()
