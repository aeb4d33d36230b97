"""What reading an answer has in common: how a spelling begins, what is a quotation, how to show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ray_judge.judging.formats.format import Parsed

BLANK = " \t\r\n"
PAIRED_QUOTES = (("“", "”"), ("„", "“"), ("«", "»"), ("「", "」"), ("『", "』"))
OPENS_QUOTE = re.compile(r"[\"'`“”„\u2018\u2019«「『]\s*\Z")
BREAK = re.compile(r"\n[ \t\r]*\n")


def spelled(verdicts: Mapping[str, str], leads: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Turn text → alternative into alternative → texts, each with every lead before it."""
    found: dict[str, list[str]] = {}
    for text, alternative in verdicts.items():
        found.setdefault(alternative, []).extend(lead + text for lead in leads)
    return {alternative: tuple(texts) for alternative, texts in found.items()}


def spelling_start(answer: str, begin: int, leads: Sequence[str]) -> int:
    """Where the spelling begins whose first visible character is at `begin`."""
    return begin - 1 if begin and answer[begin - 1] in leads else begin


def none(reason: str) -> Parsed:
    """No verdict, and why."""
    return Parsed(None, reason=reason)


def shown(text: str, limit: int = 40) -> str:
    """Quote the beginning of a text for a message."""
    text = " ".join(text.split())
    return f'"{text}"' if len(text) <= limit else f'"{text[:limit]}…"'


def quoted(answer: str, place: int) -> bool:
    """Whether the text at `place` is said to be somebody else's: in quotes, a quote block, code.

    Only the paragraph counts, since quotation marks do not reach beyond one; a quotation that
    was opened and not closed before `place` counts, whether or not it is closed later (an answer
    may be cut off). An inch sign makes a verdict look quoted: that costs a row, not a verdict.
    """
    before = answer[:place]
    if before.count("```") % 2:
        return True
    breaks = list(BREAK.finditer(before))
    paragraph = before[breaks[-1].end() :] if breaks else before
    line = paragraph.rpartition("\n")[2]
    if line.lstrip().startswith(">") or OPENS_QUOTE.search(paragraph):
        return True
    if paragraph.count('"') % 2 or paragraph.replace("```", "").count("`") % 2:
        return True
    return any(paragraph.rfind(left) > paragraph.rfind(right) for left, right in PAIRED_QUOTES)
