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
from dataclasses import dataclass, field

from ray_judge.errors import ConfigError

PRUNE = math.log(1e-7)
"""Natural log: branches so much less likely than the likeliest one of their level are left out
(JudgeLM has 100 pairs of scores)."""

Encode = Callable[[str], list[int]]


@dataclass
class Node:
    """One position: which tokens lead on, and the alternative whose spelling ends here."""

    children: dict[int, Node] = field(default_factory=dict)
    ends: str | None = None

    def depth(self) -> int:
        """Tokens of the longest spelling from here."""
        return 1 + max(child.depth() for child in self.children.values()) if self.children else 0


@dataclass(frozen=True, slots=True)
class Position:
    """The next token's distribution at one position.

    `logprobs`: natural logs for the tokens asked for, in their order. `entropy`: Σ p ln p over
    the whole vocabulary (the paper's sign: 0 is certain, lower is less so), where it was asked.
    """

    logprobs: Sequence[float]
    entropy: float | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One spelling as it was read; `entropies` are of the positions its tokens were chosen at."""

    name: str
    path: tuple[int, ...]
    logprob: float
    entropies: tuple[float, ...]


def build_tree(spellings: Mapping[str, Sequence[str]], encode: Encode, tail: str) -> Node:
    """Lay all spellings into one tree, as they are tokenised behind `tail`.

    `tail` is the constant end of the text in front of the verdict. A spelling whose first letter
    melts into the tail's last token is not what a model would say there, and is left out. Raises
    ConfigError when an alternative has no spelling, or two share one.
    """
    root, before = Node(), encode(tail)
    for name, texts in spellings.items():
        found = False
        for text in texts:
            ids = encode(tail + text)
            if ids[: len(before)] != before or len(ids) == len(before):
                continue
            found = True
            node = root
            for token in ids[len(before) :]:
                node = node.children.setdefault(token, Node())
            if node.ends not in (None, name):
                raise ConfigError(
                    f"{node.ends!r} and {name!r} are the same tokens in this model's tokenizer"
                )
            node.ends = name
        if not found:
            raise ConfigError(f"this model's tokenizer has no tokens of their own for {name!r}")
    return root


@dataclass
class Walk:
    """The reading of one prompt's tree, level by level."""

    root: Node
    leaves: list[Leaf] = field(default_factory=list)
    frontier: list[tuple[Node, tuple[int, ...], float, tuple[float, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin at the verdict's first position."""
        self.frontier = [(self.root, (), 0.0, ())]

    def wanted(self) -> list[tuple[tuple[int, ...], list[int]]]:
        """The positions to be read next: (tokens behind the prompt, tokens asked for)."""
        return [(path, list(node.children)) for node, path, _, _ in self.frontier]

    def take(self, positions: Sequence[Position]) -> None:
        """Take the positions that were wanted, in their order, and step down."""
        below = []
        for (node, path, logprob, seen), position in zip(self.frontier, positions, strict=True):
            entropies = (*seen, position.entropy) if position.entropy is not None else seen
            if node.ends is not None:
                rest = 1.0 - math.fsum(map(math.exp, position.logprobs))
                if rest > 0:
                    self.leaves.append(Leaf(node.ends, path, logprob + math.log(rest), seen))
            for (token, child), step in zip(node.children.items(), position.logprobs, strict=True):
                here, to = logprob + step, (*path, token)
                if not child.children:
                    assert child.ends is not None
                    self.leaves.append(Leaf(child.ends, to, here, entropies))
                else:
                    below.append((child, to, here, entropies))
        likeliest = max(
            (
                here
                for here in (*(step[2] for step in below), *(leaf.logprob for leaf in self.leaves))
            ),
            default=0.0,
        )
        self.frontier = [step for step in below if not step[2] < likeliest + PRUNE]

    def logprobs(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Alternative → log-probabilities of its spellings; −∞ where none was worth following."""
        found: dict[str, list[float]] = {name: [] for name in names}
        for leaf in self.leaves:
            found[leaf.name].append(leaf.logprob)
        return {name: values or [-math.inf] for name, values in found.items()}

    def likeliest(self) -> Leaf:
        """The most probable spelling: what greedy decoding among the verdicts would write."""
        return max(self.leaves, key=lambda leaf: leaf.logprob)


def walk_all(
    walks: Sequence[Walk],
    read: Callable[[Sequence[tuple[int, tuple[int, ...], list[int]]]], Sequence[Position]],
) -> None:
    """Read many trees together: every level of all of them is one batch.

    `read` gets (number of the walk, tokens behind its prompt, tokens asked for).
    """
    while True:
        asks = [
            (number, path, tokens)
            for number, walk in enumerate(walks)
            for path, tokens in walk.wanted()
        ]
        if not asks:
            return
        positions = iter(read(asks))
        for walk in walks:
            walk.take([next(positions) for _ in walk.frontier])
