"""All spellings of all verdicts as one tree of tokens, and the probability of each. Pure.

A verdict may take several tokens (`Response 1`; the two scores `8 7`), and one spelling may begin
another (`1`, `10`). So the probability of a spelling is the product of the conditional ones along
its path, and where a spelling ends while others go on, it has what none of those took:

    P(1) = P("1") · (1 − P("0" | "1")),   P(10) = P("1") · P("0" | "1")

which holds for tokenizers that split `10` and for those that do not. Each inner node is one
position to be read; what is `PRUNE` times less likely than the likeliest is not followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray_judge.errors import ConfigError

PRUNE = math.log(1e-7)
"""Branches so much less likely than the likeliest are left out (JudgeLM has 100 pairs)."""


@dataclass
class Node:
    """One position: which tokens lead on, and the alternative whose spelling ends here."""

    children: dict[Any, Node] = field(default_factory=dict)
    ends: str | None = None

    def is_leaf(self) -> bool:
        return not self.children

    def depth(self) -> int:
        return 1 + max(child.depth() for child in self.children.values()) if self.children else 0


@dataclass(frozen=True, slots=True)
class Position:
    """The next token's distribution: natural logs for the tokens asked for, in their order.

    `entropy`: Σ p ln p over the whole vocabulary (0 is certain, lower is less so), if asked for.
    `likeliest`: the token that the model would write here.
    """

    logprobs: Sequence[float]
    entropy: float | None = None
    likeliest: Any = None


@dataclass(frozen=True, slots=True)
class Place:
    """A node as it was reached; `entropies` are of the positions its tokens were chosen at."""

    node: Node
    ids: tuple[Any, ...] = ()
    logprob: float = 0.0
    entropies: tuple[float, ...] = ()


def build_tree(
    spellings: Mapping[str, Sequence[str]], encode: Callable[[str], list[int]], tail: str
) -> Node:
    """Lay all spellings into one tree, as they are tokenised behind `tail`.

    `tail` is the end of the text in front of the verdict. A spelling whose first letter melts into
    its last token is not what a model would say there, and is left out. Raises ConfigError.
    """
    # A prompt's last tokens are fixed, and a tokenizer that keeps the second of two line ends for
    # the letter behind them would not find them again: behind one line end there is no choice.
    if tail.endswith("\n\n"):
        tail = tail.rstrip("\n") + "\n"
    root, before = Node(), encode(tail)
    size = len(before)
    for name, texts in spellings.items():
        paths = [ids[size:] for text in texts if (ids := encode(tail + text))[:size] == before]
        if not any(paths):
            raise ConfigError(f"this model's tokenizer has no tokens of their own for {name!r}")
        for path in filter(None, paths):
            node = root
            for token in path:
                node = node.children.setdefault(token, Node())
            if node.ends not in (None, name):
                both = f"{node.ends!r} and {name!r}"
                raise ConfigError(f"{both} are the same tokens in this model's tokenizer")
            node.ends = name
    return root


class Walk:
    """The reading of one prompt's tree, level by level: the frontier is what to read next."""

    def __init__(self, root: Node) -> None:
        self.frontier = [Place(root)]
        self.spellings: list[Place] = []  # where one ended, with its probability
        self.would_write: Any = None  # the likeliest token where the verdict is to begin

    def take(self, positions: Sequence[Position]) -> None:
        """Take the positions of the frontier, in their order, and step down."""
        below: list[Place] = []
        if self.would_write is None and positions:
            self.would_write = positions[0].likeliest
        for place, position in zip(self.frontier, positions, strict=True):
            node = place.node
            seen = () if position.entropy is None else (position.entropy,)
            rest = 1.0 - math.fsum(map(math.exp, position.logprobs))
            if node.ends is not None and rest > 0:
                self.spellings.append(replace(place, logprob=place.logprob + math.log(rest)))
            for (token, child), step in zip(node.children.items(), position.logprobs, strict=True):
                found = Place(
                    child, (*place.ids, token), place.logprob + step, place.entropies + seen
                )
                (self.spellings if child.is_leaf() else below).append(found)
        likeliest = max((place.logprob for place in (*below, *self.spellings)), default=0.0)
        self.frontier = [place for place in below if not place.logprob < likeliest + PRUNE]

    def logprobs(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Alternative → log-probabilities of its spellings; −∞ where none was worth following."""
        found: dict[str, list[float]] = {name: [] for name in names}
        for place in self.spellings:
            found[str(place.node.ends)].append(place.logprob)
        return {name: values or [-math.inf] for name, values in found.items()}

    def likeliest(self) -> Place:
        return max(self.spellings, key=lambda place: place.logprob)
