"""Reads Σ p ln p over the whole vocabulary out of vLLM, and makes it write given tokens.

vLLM hands out log-probabilities token by token; for an entropy that would be the whole vocabulary
per position, in Python. A logits processor (vLLM's own seam, V1) sees the raw logits where they
are computed and leaves one number per position. A request asks for it in its `extra_args`:

    {"record": name, "write": [token, ...] or null}

With `write` the request "generates" exactly those tokens: so the base model scores an answer that
the judge wrote at the price of writing it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

if TYPE_CHECKING:
    from vllm.v1.sample.logits_processor import BatchUpdate

_found: dict[str, dict[int, float]] = {}
"""Request's name → position in its answer → Σ p ln p. In the process that runs the model."""


def drain(_: Any, names: list[str]) -> dict[str, dict[int, float]]:
    """Take what was found for finished requests; run by `collective_rpc` in vLLM's worker."""
    return {name: _found.pop(name) for name in names if name in _found}


class EntropyRecorder(LogitsProcessor):  # type: ignore[misc]
    """One per worker; keeps who sits in which row of the batch."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[str, list[int], list[int] | None]] = {}

    def is_argmax_invariant(self) -> bool:
        return False  # it forces tokens, and is to run for greedy requests

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: removed, then added, then moved (the interface's order)."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, output in batch_update.added:
            self._rows.pop(index, None)
            if asked := params.extra_args:
                self._rows[index] = (asked["record"], output, asked["write"])
        for source, target, direction in batch_update.moved:
            here, there = self._rows.pop(source, None), self._rows.pop(target, None)
            if here is not None:
                self._rows[target] = here
            if there is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = there

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Record the entropies of the raw logits; then force what is to be written."""
        if not self._rows:
            return logits
        rows = sorted(self._rows)
        chosen = logits[rows].float().log_softmax(dim=-1)
        values = -torch.special.entr(chosen.exp()).sum(dim=-1)
        for row, value in zip(rows, values.tolist(), strict=True):
            name, output, write = self._rows[row]
            at = len(output)  # of a prompt that is computed in parts the last part's value stays
            _found.setdefault(name, {})[at] = value
            if write is not None and at < len(write):
                logits[row] = -torch.inf
                logits[row, write[at]] = 0.0
        return logits
