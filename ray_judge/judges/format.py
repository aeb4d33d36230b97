"""The narrow seam between an example and a model: what is asked, and which answers count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ray_judge.records import Example


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt. `opening` is the beginning of the answer, forced upon the model.

    A model with a chat template gets `system` and `user` as messages and `opening` behind the
    assistant's header; a plain model gets the three as one text.
    """

    user: str
    system: str | None = None
    opening: str = ""

    def plain(self) -> str:
        """The whole prompt as one text."""
        head = f"{self.system}\n\n" if self.system else ""
        return f"{head}{self.user}{self.opening}"


class Format(Protocol):
    """How one family of judges is asked."""

    chat: bool | None
    """True: always by chat template; False: never; None: when the tokenizer has one."""
    spellings: Mapping[str, tuple[str, ...]]
    """Alternative (as in `judge_probs`) → the texts that mean it at the verdict's position,
    which is the first generated token. Each must be one token in the judge's tokenizer."""

    def render(self, example: Example) -> Question:
        """Turn an example into what the judge is asked."""
        ...
