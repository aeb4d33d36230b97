"""What a judge is asked, and how its answer is read.

A format is a pure value: it is made once, where the run starts, and travels to the engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ray_judge.judging.formats.answers import AnswerForm, Parsed, no_verdict
from ray_judge.records import Example, Task

DEFAULT_RUBRIC = (
    "Does the response do what the instruction asks, correctly, completely and clearly?"
)
"""For prompts with a place for criteria, where neither the row nor the configuration has any."""
MEANINGS = {
    "question_body": "instruction", "answer_body": "response",
    "answer1_body": "response_a", "response_A": "response_a",
    "answer2_body": "response_b", "response_B": "response_b",
}  # fmt: skip
"""Placeholder of an upstream template → ours; the others have our names already."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `opening` is the beginning of the answer, forced upon the model.

    A model with a chat template gets `system` and `user` as messages and `opening` behind the
    assistant's header; a plain model gets the three as one text.
    """

    user: str
    system: str | None = None
    opening: str = ""

    def plain(self) -> str:
        return (f"{self.system}\n\n" if self.system else "") + self.user + self.opening

    def messages(self) -> list[dict[str, str]]:
        """Give the messages in front of the answer, so without the opening."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


class Layout(Protocol):
    """Turns an example into the text that a judge reads. Its own rubric goes before `rubric`."""

    def fill(self, example: Example, rubric: str) -> str: ...


@dataclass(frozen=True)
class Format:
    """How one judge is asked, and how it answers.

    `task` is what it judges by nature: a pointwise format judges a pair by scoring both responses.
    `chat`: always by chat template, never, or (null) when the tokenizer has one. `stop` and
    `max_output_tokens` end an answer with decode: full.
    """

    task: Task
    layout: Layout
    answers: AnswerForm
    system: str | None = None
    opening: str = ""
    rubric: str = DEFAULT_RUBRIC
    chat: bool | None = None
    stop: tuple[str, ...] = ()
    max_output_tokens: int = 512

    @property
    def spellings(self) -> Mapping[str, tuple[str, ...]]:
        return self.answers.spellings

    def render(self, example: Example) -> Prompt:
        return Prompt(self.layout.fill(example, self.rubric), self.system, self.opening)

    def parse(self, answer: str) -> Parsed:
        return self.answers.parse(answer) if answer.strip() else no_verdict("the answer is empty")


@dataclass(frozen=True)
class Template:
    """A template, cut where an example's texts go: pieces[0], names[0], pieces[1], ...

    Nothing inside a text is ever looked at: a response that contains `{rubric}` stays as it is.
    """

    pieces: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def split(cls, text: str, placeholders: Iterable[str]) -> Template:
        """Cut a template at `{placeholder}`; all other braces are text."""
        parts = re.split(rf"\{{({'|'.join(map(re.escape, placeholders))})\}}", text)
        return cls(tuple(parts[::2]), tuple(MEANINGS.get(name, name) for name in parts[1::2]))

    def fill(self, example: Example, rubric: str) -> str:
        """Fill the places; an input without one goes behind the instruction."""
        instruction = example.instruction
        if example.input and "input" not in self.names:
            instruction = f"{instruction}\n{example.input}"
        texts = {
            "instruction": instruction,
            "input": example.input or "",
            "reference": example.reference or "",
            "rubric": example.rubric or rubric,
            "response": example.responses[0],
            "response_a": example.responses[0],
            "response_b": example.responses[-1],
        }
        filled = (
            texts[name] + piece for name, piece in zip(self.names, self.pieces[1:], strict=True)
        )
        return self.pieces[0] + "".join(filled)
