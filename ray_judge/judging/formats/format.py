"""The narrow seam between an example and a model: what is asked, and how an answer is read.

A format is pure and pickles: it is made once, where the run starts, and travels to the engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ray_judge.records import Example, Task


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


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a whole answer says: an alternative and where it stands, or why it says none.

    `verdict`: the alternative's name, as in `Format.spellings`; null when `reason` says why.
    `start`: characters of the answer in front of the verdict's spelling (its leading space
    belongs to the spelling, so that the tokens before and after `start` are the model's own).
    """

    verdict: str | None
    start: int = 0
    reason: str | None = None


class Format(Protocol):
    """How one family of judges is asked, and where its verdict sits."""

    @property
    def task(self) -> Task:
        """What it judges by nature. A pointwise format judges a pair by scoring both responses."""
        ...

    @property
    def chat(self) -> bool | None:
        """True: always by chat template; False: never; None: when the tokenizer has one."""
        ...

    @property
    def spellings(self) -> Mapping[str, tuple[str, ...]]:
        """Alternative → the texts that mean it, where the verdict sits.

        That is right behind the prompt's `opening` (decode: verdict), or at `Parsed.start`
        (decode: full). Texts may have several tokens and one may begin another (`1`, `10`).
        Alternatives are named as in `judge_probs`: `A`, `B`, `tie`, or a whole number. Two scores
        for a pair (JudgeLM) are spellings of the alternative that they decide for.
        """
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """decode: full: texts that end an answer, besides the model's own end."""
        ...

    @property
    def max_output_tokens(self) -> int:
        """decode: full: the most tokens of an answer."""
        ...

    def render(self, example: Example) -> Question:
        """Turn an example into what the judge is asked."""
        ...

    def parse(self, answer: str) -> Parsed:
        """Read a whole answer (decode: full), strictly: what is not plainly a verdict is none."""
        ...
