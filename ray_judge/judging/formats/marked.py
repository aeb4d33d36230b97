"""Judges that explain first and then conclude: the verdict stands behind a fixed marker."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ray_judge.judging.formats.format import BLANK, Parsed, Spelled, no_verdict, quote

NEAR = 200
"""Characters in front of a marker that say whose words it is."""
PAIRED_QUOTES = (("“", "”"), ("„", "“"), ("«", "»"), ("「", "」"), ("『", "』"))
OPENS_QUOTE = re.compile(r"[\"'`“”„\u2018\u2019«「『]\s*\Z")
BREAK = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True, slots=True)
class Conclusion:
    """One place where an answer seems to conclude.

    `exact`: the marker is written as the judge was trained to write it.
    `quoted`: the judge reports somebody else's words.
    """

    exact: bool
    quoted: bool
    verdict: str | None
    begin: int
    end: int


@dataclass(frozen=True)
class Marked(Spelled):
    """Answers that end with a conclusion: `verdicts` are the texts behind the marker.

    `like`, `goes_on`, `before` and `takes_back` are regular expressions.
    """

    marker: str
    """Exactly what stands in front of the verdict."""
    like: str
    """Whatever resembles the marker: a second conclusion in other words must not go unseen."""
    closing: str = ""
    """What closes the verdict, such as `]]`."""
    goes_on: str = r"\.?\s*\Z"
    """All that may follow."""
    before: str = r"\Z"
    """How the text in front of the marker ends; else the judge reports somebody's words."""
    takes_back: tuple[str, ...] = ()
    """What may not follow. A group is an alternative's text, and the verdict's own may."""
    skip: str = BLANK
    """Characters that may stand between marker and verdict, and do not count."""

    def parse(self, answer: str) -> Parsed:
        """Find the one verdict that the answer concludes with; several that differ are none."""
        found = list(self._conclusions(answer))
        own = [one for one in found if one.exact and not one.quoted]
        if not own:
            where = "only in a quotation" if any(one.exact for one in found) else "nowhere"
            return no_verdict(f"the answer says {quote(self.marker)} {where}")
        for one in own:
            if one.verdict is None:
                said = quote(answer[one.begin : one.begin + 60])
                return no_verdict(f"behind {quote(self.marker)} stands {said}, not a verdict")
        if len({one.verdict for one in found if one.verdict is not None}) > 1:
            return no_verdict("the answer concludes several times, differently")
        last = own[-1]
        rest = answer[last.end :]
        if not re.match(self.goes_on, rest) or self._takes_back(rest, last.verdict):
            return no_verdict(f"the answer goes on after its verdict: {quote(rest)}")
        return self.found_at(answer, last.begin, last.verdict)

    def _conclusions(self, answer: str) -> Iterator[Conclusion]:
        texts = "|".join(re.escape(text) for text in sorted(self.verdicts, key=len, reverse=True))
        # Not a part of something longer: 4.5, 8/10, 4-5, 45, 4th, Response 1 / Response 2.
        whole = rf"(?P<text>{texts}){re.escape(self.closing)}(?!\w|[.,]\d|\s*[/|%]|[–—-])"
        for found in re.finditer(self.like, answer, re.IGNORECASE):
            exact = answer.endswith(self.marker, 0, found.end())
            start = found.end() - len(self.marker) if exact else found.start()
            rest = answer[found.end() :].lstrip(self.skip)
            begin = len(answer) - len(rest)
            read = re.match(whole, rest)
            name = self.verdicts[read["text"]] if read else None
            before = answer[max(0, start - NEAR) : start]
            foreign = is_quoted(answer, start) or not re.search(self.before, before)
            yield Conclusion(exact, foreign, name, begin, begin + (read.end() if read else 0))

    def _takes_back(self, rest: str, verdict: str | None) -> bool:
        known = {text.casefold(): name for text, name in self.verdicts.items()}
        for pattern in self.takes_back:
            for found in re.finditer(pattern, rest, re.IGNORECASE):
                named = " ".join(found[1].split()).casefold() if found.re.groups else ""
                if known.get(named) != verdict:
                    return True
        return False


def is_quoted(answer: str, place: int) -> bool:
    """Say whether the text at `place` is somebody else's: in quotes, a quote block, code.

    Only its paragraph counts. A quotation that was opened before `place` counts, whether or not
    it is closed. An inch sign makes a verdict look quoted: that costs a row, not a verdict.
    """
    before = answer[:place]
    if before.count("```") % 2:
        return True
    paragraph = BREAK.split(before)[-1]
    line = paragraph.rpartition("\n")[2].lstrip()
    single = paragraph.replace("```", "").count("`")
    if line.startswith(">") or OPENS_QUOTE.search(paragraph) or single % 2:
        return True
    pairs = (paragraph.rfind(left) > paragraph.rfind(right) for left, right in PAIRED_QUOTES)
    return bool(paragraph.count('"') % 2) or any(pairs)
