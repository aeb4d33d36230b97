"""A template, split once where the texts of an example go in.

The pieces are joined with the example's texts between them: nothing inside a text is ever looked
at, so a response that contains `{rubric}` or a lone brace stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ray_judge.records import Example

MEANINGS: Mapping[str, str] = {
    "instruction": "instruction",
    "question_body": "instruction",
    "response_a": "response_a",
    "response_A": "response_a",
    "answer1_body": "response_a",
    "response_b": "response_b",
    "response_B": "response_b",
    "answer2_body": "response_b",
    "response": "response",
    "answer_body": "response",
    "input": "input",
    "reference": "reference",
    "rubric": "rubric",
}
"""Placeholder, as templates name it → what it stands for."""


@dataclass(frozen=True, slots=True)
class Slots:
    """`pieces[0]`, the text of `names[0]`, `pieces[1]`, ...: one piece more than names."""

    pieces: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def split(cls, template: str, placeholders: Iterable[str]) -> Slots:
        """Cut a template at `{placeholder}`; all other braces are text."""
        names = "|".join(re.escape(name) for name in placeholders)
        parts = re.split(rf"\{{({names})\}}", template) if names else [template]
        return cls(tuple(parts[::2]), tuple(MEANINGS[name] for name in parts[1::2]))

    def fill(self, example: Example, rubric: str) -> str:
        """Put an example's texts in. The row's own rubric goes before `rubric`.

        The input has its place behind the instruction where the template has none of its own.
        """
        texts = _texts(example, rubric, own_input="input" in self.names)
        filled = [self.pieces[0]]
        for name, piece in zip(self.names, self.pieces[1:], strict=True):
            filled += (texts[name], piece)
        return "".join(filled)


def _texts(example: Example, rubric: str, *, own_input: bool) -> dict[str, str]:
    instruction = example.instruction
    if example.input and not own_input:
        instruction = f"{instruction}\n{example.input}"
    texts = {
        "instruction": instruction,
        "input": example.input or "",
        "reference": example.reference or "",
        "rubric": example.rubric or rubric,
    }
    if len(example.responses) == 1:
        texts["response"] = example.responses[0]
    else:
        texts["response_a"], texts["response_b"] = example.responses
    return texts
