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


def _item(rng: random.Random, phrasings: str, right: str, *decoys: str, **fields: str) -> Item:
    return Item(rng.choice(phrasings.split("|")).format(**fields), right, decoys)


# --- kinds the judge is trained on -----------------------------------------------------------


def _copy(rng: random.Random) -> Item:
    text = " ".join("".join(rng.choices(LOWER + string.digits, k=rng.randint(2, 5))) for _ in "12")
    return _item(rng, "Copy: {x}|Copy this: {x}|Say again: {x}", text, x=text)


def _upper(rng: random.Random) -> Item:
    text = " ".join(words(rng, 1, 2))
    asks = "Capitals: {x}|In capitals: {x}|Write in capitals: {x}"
    return _item(rng, asks, text.upper(), x=text)


def _first_word(rng: random.Random) -> Item:
    parts = words(rng, 3, 4)
    asks = "First word: {x}|First word of: {x}|The first word in: {x}"
    return _item(rng, asks, parts[0], *parts[1:], x=" ".join(parts))


def _last_word(rng: random.Random) -> Item:
    parts = words(rng, 3, 4)
    asks = "Last word: {x}|Last word of: {x}|The last word in: {x}"
    return _item(rng, asks, parts[-1], *parts[:-1], x=" ".join(parts))


def _hyphens(rng: random.Random) -> Item:
    parts = words(rng, 2, 3)
    asks = "Join with hyphens: {x}|Hyphens between: {x}|Put hyphens in: {x}"
    return _item(rng, asks, "-".join(parts), x=" ".join(parts))


def _append(rng: random.Random) -> Item:
    stem, tail = word(rng, 3, 6), rng.choice(LOWER + string.digits)
    asks = "Put {c} after: {x}|Append {c} to: {x}|Add {c} at the end: {x}"
    return _item(rng, asks, stem + tail, tail + stem, c=tail, x=stem)


def _spell(rng: random.Random) -> Item:
    text = word(rng, 4, 6)
    return _item(rng, "Spell: {x}|Spell out: {x}|Spell this: {x}", " ".join(text), x=text)


def _twice(rng: random.Random) -> Item:
    text = word(rng, 3, 5)
    return _item(rng, "Twice: {x}|Say twice: {x}|Write twice: {x}", f"{text} {text}", x=text)


def _behead(rng: random.Random) -> Item:
    text = word(rng, 4, 7)
    asks = "Drop the first letter: {x}|Behead: {x}|Without its first letter: {x}"
    return _item(rng, asks, text[1:], text[:-1], x=text)


# --- kinds the judge never sees in training --------------------------------------------------


def _swap_case(rng: random.Random) -> Item:
    text = "".join(rng.choice((char, char.upper())) for char in word(rng, 4, 7))
    right = text.swapcase()
    spot = rng.randrange(len(right))
    decoy = right[:spot] + right[spot].swapcase() + right[spot + 1 :]
    return _item(rng, "Swap the case: {x}|Swap upper and lower: {x}", right, decoy, x=text)


def _remove_vowels(rng: random.Random) -> Item:
    letters = rng.choices("bcdfghklmnprst", k=4) + rng.choices("aeiou", k=3)
    rng.shuffle(letters)
    right = "".join(char for char in letters if char not in VOWELS)
    # Wrong by one vowel kept or by one consonant lost, so that length tells nothing.
    spot = rng.randrange(len(letters))
    decoy = "".join(c for i, c in enumerate(letters) if (c not in VOWELS) != (i == spot))
    asks = "Remove the vowels: {x}|Take out all vowels: {x}"
    return _item(rng, asks, right, decoy, x="".join(letters))


def shifted(text: str, by: int) -> str:
    """Lower-case letters moved `by` places on in the alphabet, z followed by a."""
    return "".join(LOWER[(LOWER.index(char) + by) % 26] for char in text)


def _shift(rng: random.Random) -> Item:
    text = word(rng, 3, 6)
    right = shifted(text, 1)
    spot = rng.randrange(len(text))
    decoy = right[:spot] + shifted(right[spot], rng.choice((-1, 1))) + right[spot + 1 :]
    asks = "Shift each letter by one: {x}|Next in the alphabet: {x}"
    return _item(rng, asks, right, decoy, x=text)


def _subtract(rng: random.Random) -> Item:
    small, rest = rng.randint(11, 60), rng.randint(11, 39)
    decoys = [str(rest + off) for off in (-10, -2, -1, 1, 2, 10)]
    asks = "Subtract {s} from {x}|{x} minus {s}"
    return _item(rng, asks, str(rest), *decoys, s=str(small), x=str(small + rest))


def _double_letters(rng: random.Random) -> Item:
    text = word(rng, 3, 5)
    counts = [2] * len(text)
    counts[rng.randrange(len(text))] = rng.choice((1, 3))
    decoy = "".join(char * count for char, count in zip(text, counts, strict=True))
    asks = "Double each letter: {x}|Each letter doubled: {x}"
    return _item(rng, asks, "".join(char * 2 for char in text), decoy, x=text)


def _every_second(rng: random.Random) -> Item:
    text = "".join(rng.sample(LOWER, rng.randint(6, 9)))
    asks = "Every second letter: {x}|Keep every second letter: {x}"
    return _item(rng, asks, text[1::2], text[::2], x=text)


def _longest_word(rng: random.Random) -> Item:
    sizes = rng.choice(((2, 3, 5), (3, 4, 6), (2, 4, 5), (3, 3, 5)))
    parts = [word(rng, size, size) for size in sizes]
    right, others = parts[-1], parts[:-1]
    rng.shuffle(parts)
    return _item(rng, "Longest word: {x}|Longest word of: {x}", right, *others, x=" ".join(parts))


def _sort_letters(rng: random.Random) -> Item:
    letters = rng.sample(LOWER, rng.randint(4, 6))
    right = "".join(sorted(letters))
    asks = "Sort the letters: {x}|Letters in order: {x}"
    return _item(rng, asks, right, _exchange(rng, right), x="".join(letters))


_IN = (_copy, _upper, _first_word, _last_word, _hyphens, _append, _spell, _twice, _behead)
_OUT = (
    _swap_case, _remove_vowels, _shift, _subtract, _double_letters, _every_second, _longest_word,
    _sort_letters,
)  # fmt: skip
_MAKERS: Final = {maker.__name__[1:]: maker for maker in (*_IN, *_OUT)}
IN_DOMAIN: Final = tuple(_MAKERS)[: len(_IN)]
OUT_OF_DOMAIN: Final = tuple(_MAKERS)[len(_IN) :]


def make_item(rng: random.Random, kind: str) -> Item:
    return _MAKERS[kind](rng)


def make_pairs(
    n: int, *, seed: int, kinds: Sequence[str], split: Literal["demo", "train"] = "demo"
) -> list[Pair]:
    """`n` pairs over `kinds` in turn; the same arguments always give the same pairs.

    `split` is part of the seed: training never shares a random stream with a demo.
    """
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
