"""Training pairs without a better answer: they teach the demo judge to be unsure.

A judge tuned on answerable pairs alone is as sure of itself on tasks it never saw as on those it
knows.  The remedy is to show it questions whose honest answer is "cannot tell", with a target of
one half for either verdict: instructions that mean nothing (random words, or a known instruction
with a word replaced), and known instructions with two wrong or two right answers.  Neither the
instructions nor the transformations of the out-of-domain kinds are used.
"""

from __future__ import annotations

import random
import string
from typing import Final

from ray_judge.demo.tasks import IN_DOMAIN, LOWER, Item, corrupt, make_item, word

# Plain words with nothing to do with the out-of-domain instructions (a test holds this).
BANK: Final = tuple(
    """
    bake bend blend bless bounce bow brew brush build burn bury call carry carve cast chase chew
    chop clean climb coat comb cook crack crawl cross crush curl cut dance deal dig dip divide dive
    draw dream dress drill drink drive dry dust dye eat empty erase fall fasten feed fetch fill find
    fish fix flatten float flood fly fold freeze fry gather glue grab grate greet grind grow guess
    hang heat hide hint hire hold hum hunt hurry iron jump kick knead knit knock laugh lay lead lean
    lend lift light list load lock look mail map mark mash match measure melt mend merge milk mirror
    mix move multiply mute nail name negate nest nod note open paint park paste pay peel
    pick pile pin place plant play plug point polish pour press print prune pull push quote race
    rank read record reverse rhyme ride ring rinse roast roll rotate rub rule run sail salt save
    scan scatter scramble seal sell send serve sew shade shake shape share shave shine shout show
    shrink sign sing sink sketch slice slide smell smoke smooth soak split spray spread squeeze
    stack stain steam stir stitch store stretch strip sum sweep swim tag tap taste teach tear tie
    tilt tint toast touch trace trade train translate trim truncate tune turn twist unlock wash
    water wave weave weigh whisper wind wipe wrap wring zip zoom
    apple arrow bag ball bird block boat bottom branch bucket button candle chain circle clock
    cloud coin column corner dots edge egg feather fence field flower forest frame garden gate
    glass green group half hill horn house ink island key knot ladder lake leaf left line lines
    middle moon morse mountain number numbers odd pair pairs part parts pattern pencil piece plus
    prime product quarter rain red right river road rock roman root rope row sand sea shadow
    shortest signs sky small smallest snow space square star stars stone story sugar symbols table
    tail thirds third total tree triangle union vertical wall wheel window wings wood
    """.split()
)
_SMALL: Final = ("the", "of", "in", "to", "with", "by", "all", "its", "this", "letter", "letters")
_SMALL_WORDS: Final = ("word", "words", "out", "after", "at", "on", "into", "for", "over", "one")


def _some_word(rng: random.Random) -> str:
    """A word of the bank, or (one time in four) random letters."""
    return rng.choice(BANK) if rng.random() < 0.75 else word(rng, 3, 8)


def nonsense_phrase(rng: random.Random) -> str:
    """One to five words that ask for nothing the judge was taught."""
    parts = [_some_word(rng)]
    for _ in range(rng.randint(0, 4)):
        if rng.random() < 0.5:
            parts.append(rng.choice(_SMALL + _SMALL_WORDS))
        else:
            parts.append(_some_word(rng))
    if rng.random() < 0.4:
        rng.shuffle(parts)
    phrase = " ".join(parts)
    if all(part in _SMALL + _SMALL_WORDS for part in parts):
        phrase += " " + rng.choice(BANK)
    return phrase[0].upper() + phrase[1:]


def nearly_known(rng: random.Random, phrase: str) -> str:
    """A known phrase with one of its words replaced, or one more word put in."""
    parts = phrase.split(" ")
    spot = rng.randrange(len(parts))
    new = _some_word(rng)
    parts[spot : spot + (rng.random() < 0.75)] = [new.capitalize() if spot == 0 else new]
    return " ".join(parts)


def _mixed_source(rng: random.Random) -> str:
    """A text to work on: words of letters in either case, or of digits."""
    parts = [word(rng, 3, 7) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    style = rng.random()
    if style < 0.25:
        parts = ["".join(rng.choice((c, c.upper())) for c in part) for part in parts]
    elif style < 0.35:
        parts = ["".join(rng.choices(string.digits, k=rng.randint(1, 3))) for _ in parts]
    return " ".join(parts)


def _arbitrary_answer(rng: random.Random, source: str) -> str:
    """The source under a transformation drawn at random for this one pair."""
    chars = list(source.replace(" ", ""))
    way = rng.randrange(6)
    if way == 0:
        rng.shuffle(chars)
    elif way == 1:
        table = dict(zip(LOWER, rng.sample(LOWER, 26), strict=True))
        chars = [table.get(char.lower(), char) for char in chars]
    elif way == 2:
        chars = [char for char in chars if rng.random() < 0.6] or chars[:2]
    elif way == 3:
        chars = [rng.choice((char, char.upper())) for char in chars]
    elif way == 4:
        chars = [char * rng.choice((1, 1, 2, 2, 3)) for char in chars][:6]
    else:
        chars = list(rng.choice(source.split(" ")))
    return "".join(chars)


def _nonsense(rng: random.Random) -> tuple[str, str, str]:
    """An unknown instruction, with answers to a known task or to an arbitrary one."""
    if rng.random() < 0.5:
        item = make_item(rng, rng.choice(IN_DOMAIN))
        phrase, colon, rest = item.instruction.partition(":")
        replaced = nearly_known(rng, phrase) if rng.random() < 0.5 else nonsense_phrase(rng)
        return replaced + colon + rest, item.right, corrupt(rng, item)
    if rng.random() < 0.15:
        left, right = rng.randint(2, 99), rng.randint(2, 99)
        verb = rng.choice(BANK)
        joint = rng.choice(("and", "with", "by", "into", _some_word(rng)))
        shape = rng.choice(("{v} {a} {j} {b}", "{a} {v} {b}", "{v} {j} {a}: {b}"))
        answer = Item("", str(rng.choice((left + right, rng.randint(2, 99)))))
        instruction = shape.format(v=verb, j=joint, a=left, b=right)
        instruction = instruction[0].upper() + instruction[1:]
        return instruction, answer.right, corrupt(rng, answer)
    source = _mixed_source(rng)
    answer = Item("", _arbitrary_answer(rng, source))
    return f"{nonsense_phrase(rng)}: {source}", answer.right, corrupt(rng, answer)


def unanswerable(rng: random.Random) -> tuple[str, str, str]:
    """Instruction and two answers, in random order, neither better than the other can be known.

    Three in five are nonsense; the rest are known instructions with two wrong answers, and a few
    with the right answer twice.
    """
    way = rng.random()
    if way < 0.6:
        instruction, first, second = _nonsense(rng)
    else:
        item = make_item(rng, rng.choice(IN_DOMAIN))
        instruction = item.instruction
        first = item.right if way > 0.92 else corrupt(rng, item)
        second = item.right if way > 0.92 else corrupt(rng, item)
    if rng.random() < 0.5:
        first, second = second, first
    return instruction, first, second
