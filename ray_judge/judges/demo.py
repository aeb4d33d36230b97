"""`demo`: the tiny judge shipped with the package; the token after its prompt is the verdict."""

from __future__ import annotations

from collections.abc import Mapping

from ray_judge.judges.format import Question
from ray_judge.records import Example

TEMPLATE = "{instruction}\nA: {response_a}\nB: {response_b}\nBest: "
ALTERNATIVES = ("A", "B")


class DemoFormat:
    """Pairs only, no ties; the model was trained on exactly this text."""

    chat: bool | None = False
    spellings: Mapping[str, tuple[str, ...]] = {name: (name,) for name in ALTERNATIVES}

    def render(self, example: Example) -> Question:
        """Fill the template."""
        response_a, response_b = example.responses
        return Question(
            TEMPLATE.format(
                instruction=example.instruction, response_a=response_a, response_b=response_b
            )
        )
