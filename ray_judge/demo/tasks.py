"""Synthetic preference pairs whose better answer is known by construction.

Every pair has an instruction in words, the right answer, and a corrupted one (a single changed,
moved, missing or extra character, or an answer taken from the wrong place). The shipped judge was
trained on the `IN_DOMAIN` kinds; of the `OUT_OF_DOMAIN` kinds it should be unsure.

Words are random letters on purpose: a real word that is corrupted could be told by its looks.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

LOWER: Final = string.ascii_lowercase
VOWELS: Final = frozenset("aeiou")


@dataclass(frozen=True, slots=True)
class Pair:
    """One instruction with two different answers, exactly one of them right."""

    id: str
    kind: str
    domain: Literal["in", "out"]
    instruction: str
    response_a: str
    response_b: str
    label: Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class Item:
    """One instruction with its right answer; `decoys` are whole answers that are wrong."""

    instruction: str
    right: str
    decoys: tuple[str, ...] = ()


def word(rng: random.Random, low: int = 3, high: int = 6) -> str:
    """A word of `low` to `high` independent random lower-case letters."""
    return "".join(rng.choices(LOWER, k=rng.randint(low, high)))


def words(rng: random.Random, low: int, high: int, longest: int = 5) -> list[str]:
    """`low` to `high` random words; each has another first and last letter, to differ at once."""
    count = rng.randint(low, high)
    firsts, lasts = rng.sample(LOWER, count), rng.sample(LOWER, count)
    return [
        first + "".join(rng.choices(LOWER, k=rng.randint(1, longest - 2))) + last
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _substitute(rng: random.Random, text: str) -> str:
    """Change one letter or digit into another of the same class (a digit by at most 3)."""
    spot = rng.choice([i for i, char in enumerate(text) if char.isalnum()])
    old = text[spot]
    if old.isdigit():
        new = str((int(old) + rng.choice((-3, -2, -1, 1, 2, 3))) % 10)
    else:
        new = rng.choice([char for char in LOWER if char != old.lower()])
        new = new.upper() if old.isupper() else new
    return text[:spot] + new + text[spot + 1 :]


def _exchange(rng: random.Random, text: str) -> str:
    spots = [i for i in range(len(text) - 1) if text[i] != text[i + 1]]
    if not spots:
        return text
    spot = rng.choice(spots)
    return text[:spot] + text[spot + 1] + text[spot] + text[spot + 2 :]


def _drop(rng: random.Random, text: str) -> str:
    spot = rng.randrange(len(text))
    return (text[:spot] + text[spot + 1 :]).strip() or text


def _insert(rng: random.Random, text: str) -> str:
    spot = rng.randrange(len(text))
    like = rng.choice([char for char in text if char.isalnum()])
    new = rng.choice(string.digits if like.isdigit() else LOWER)
    return text[:spot] + (new.upper() if like.isupper() else new) + text[spot:]


_EDITS: Final = (_substitute, _exchange, _drop, _insert)


def corrupt(rng: random.Random, item: Item) -> str:
    """A wrong answer near the right one: a decoy (half the time, where there are some) or one edit.

    Dropping and inserting are equally likely, so the shorter answer is no give-away.
    """
    decoys = [decoy for decoy in item.decoys if decoy != item.right]
    if decoys and (rng.random() < 0.5 or len(item.right) < 2):
        return rng.choice(decoys)
    while True:
        wrong = rng.choice(_EDITS)(rng, item.right)
        if wrong != item.right:
            return wrong


_IN: Final = {
    "copy": "Copy: {x}|Copy this: {x}|Say again: {x}",
    "upper": "Capitals: {x}|In capitals: {x}|Write in capitals: {x}",
    "first_word": "First word: {x}|First word of: {x}|The first word in: {x}",
    "last_word": "Last word: {x}|Last word of: {x}|The last word in: {x}",
    "hyphens": "Join with hyphens: {x}|Hyphens between: {x}|Put hyphens in: {x}",
    "append": "Put {y} after: {x}|Append {y} to: {x}|Add {y} at the end: {x}",
    "spell": "Spell: {x}|Spell out: {x}|Spell this: {x}",
    "twice": "Twice: {x}|Say twice: {x}|Write twice: {x}",
    "behead": "Drop the first letter: {x}|Behead: {x}|Without its first letter: {x}",
}
_OUT: Final = {
    "swap_case": "Swap the case: {x}|Swap upper and lower: {x}",
    "remove_vowels": "Remove the vowels: {x}|Take out all vowels: {x}",
    "shift": "Shift each letter by one: {x}|Next in the alphabet: {x}",
    "subtract": "Subtract {y} from {x}|{x} minus {y}",
    "double_letters": "Double each letter: {x}|Each letter doubled: {x}",
    "every_second": "Every second letter: {x}|Keep every second letter: {x}",
    "longest_word": "Longest word: {x}|Longest word of: {x}",
    "sort_letters": "Sort the letters: {x}|Letters in order: {x}",
}
IN_DOMAIN: Final = tuple(_IN)
OUT_OF_DOMAIN: Final = tuple(_OUT)


def _in_domain(rng: random.Random, kind: str) -> tuple[str, ...]:
    """What a task is about (`x`, and `y` behind a space), its right answer, and decoys."""
    match kind:
        case "copy":
            symbols = LOWER + string.digits
            text = " ".join("".join(rng.choices(symbols, k=rng.randint(2, 5))) for _ in "12")
            return text, text
        case "upper":
            text = " ".join(words(rng, 1, 2))
            return text, text.upper()
        case "first_word":
            parts = words(rng, 3, 4)
            return " ".join(parts), *parts
        case "last_word":
            parts = words(rng, 3, 4)
            return " ".join(parts), parts[-1], *parts[:-1]
        case "hyphens":
            parts = words(rng, 2, 3)
            return " ".join(parts), "-".join(parts)
        case "append":
            text, tail = word(rng, 3, 6), rng.choice(LOWER + string.digits)
            return f"{text} {tail}", text + tail, tail + text
        case "spell":
            text = word(rng, 4, 6)
            return text, " ".join(text)
        case "twice":
            text = word(rng, 3, 5)
            return text, f"{text} {text}"
        case _:  # behead
            text = word(rng, 4, 7)
            return text, text[1:], text[:-1]


def _out_of_domain(rng: random.Random, kind: str) -> tuple[str, ...]:
    """The same for the kinds that the judge never sees in training."""
    match kind:
        case "swap_case":
            text = "".join(rng.choice((char, char.upper())) for char in word(rng, 4, 7))
            right, spot = text.swapcase(), rng.randrange(len(text))
            return text, right, right[:spot] + text[spot] + right[spot + 1 :]
        case "remove_vowels":
            letters = rng.choices("bcdfghklmnprst", k=4) + rng.choices("aeiou", k=3)
            rng.shuffle(letters)
            # Wrong by one vowel kept or by one consonant lost, so that length tells nothing.
            spot = rng.randrange(len(letters))
            decoy = "".join(c for i, c in enumerate(letters) if (c not in VOWELS) != (i == spot))
            text = "".join(letters)
            return text, "".join(char for char in text if char not in VOWELS), decoy
        case "shift":
            text = word(rng, 3, 6)
            right, spot = shifted(text, 1), rng.randrange(len(text))
            decoy = right[:spot] + shifted(right[spot], rng.choice((-1, 1))) + right[spot + 1 :]
            return text, right, decoy
        case "subtract":
            small, rest = rng.randint(11, 60), rng.randint(11, 39)
            decoys = [str(rest + off) for off in (-10, -2, -1, 1, 2, 10)]
            return f"{small + rest} {small}", str(rest), *decoys
        case "double_letters":
            text = word(rng, 3, 5)
            counts = [2] * len(text)
            counts[rng.randrange(len(text))] = rng.choice((1, 3))
            decoy = "".join(char * count for char, count in zip(text, counts, strict=True))
            return text, "".join(char * 2 for char in text), decoy
        case "every_second":
            text = "".join(rng.sample(LOWER, rng.randint(6, 9)))
            return text, text[1::2], text[::2]
        case "longest_word":
            sizes = rng.choice(((2, 3, 5), (3, 4, 6), (2, 4, 5), (3, 3, 5)))
            *others, right = [word(rng, size, size) for size in sizes]
            parts = [*others, right]
            rng.shuffle(parts)
            return " ".join(parts), right, *others
        case _:  # sort_letters
            text = "".join(rng.sample(LOWER, rng.randint(4, 6)))
            right = "".join(sorted(text))
            return text, right, _exchange(rng, right)


def shifted(text: str, by: int) -> str:
    """Lower-case letters moved `by` places on in the alphabet, z followed by a."""
    return "".join(LOWER[(LOWER.index(char) + by) % 26] for char in text)


def make_item(rng: random.Random, kind: str) -> Item:
    text, right, *decoys = (_in_domain if kind in _IN else _out_of_domain)(rng, kind)
    phrasing = rng.choice((_IN | _OUT)[kind].split("|"))
    x, _, y = text.partition(" ") if "{y}" in phrasing else (text, "", "")
    return Item(phrasing.format(x=x, y=y), right, tuple(decoys))


def make_pairs(
    n: int, *, seed: int, kinds: Sequence[str], split: Literal["demo", "train"] = "demo"
) -> list[Pair]:
    """`n` pairs over `kinds` in turn, a function of the arguments; training has its own `split`."""
    rng = random.Random(f"{split}/{seed}")
    pairs = []
    for index in range(n):
        kind = kinds[index % len(kinds)]
        item = make_item(rng, kind)
        wrong = corrupt(rng, item)
        label: Literal["A", "B"] = "A" if rng.random() < 0.5 else "B"
        texts = (item.right, wrong) if label == "A" else (wrong, item.right)
        domain: Literal["in", "out"] = "in" if kind in IN_DOMAIN else "out"
        name = f"{split}-{seed}-{index:06d}"
        pairs.append(Pair(name, kind, domain, item.instruction, *texts, label))
    return pairs
