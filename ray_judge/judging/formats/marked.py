"""Judges that explain first and then conclude: the verdict stands behind a fixed marker."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ray_judge.judging.formats.answers import BLANK, none, quoted, shown, spelled, spelling_start
from ray_judge.judging.formats.format import Parsed, Question
from ray_judge.judging.formats.slots import Slots
from ray_judge.records import Example, Task

LEADS = ("", " ")
NEAR = 200
"""Characters in front of a marker that say whose words it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """One place where an answer seems to conclude."""

    exact: bool
    """The marker is written as the judge was trained to write it."""
    quoted: bool
    """The judge reports somebody else's words."""
    verdict: str | None
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Conclusion:
    """How a conclusion is written, and how it is read."""

    marker: str
    """Exactly what stands in front of the verdict."""
    like: str
    """A regular expression, blind to case, for whatever resembles the marker: a second
    conclusion in other words must not go unseen."""
    verdicts: Mapping[str, str]
    """Text behind the marker → the alternative that it means."""
    closing: str = ""
    """What closes the verdict, such as `]]`."""
    goes_on: str = r"\.?\s*\Z"
    """A regular expression for all that may follow."""
    before: str = r"\Z"
    """A regular expression for how the text in front of the marker ends; otherwise the words are
    somebody's that the judge reports."""
    takes_back: tuple[str, ...] = ()
    """Regular expressions for what may not be in the text that follows. Where one has a group, it
    is an alternative's text, and the verdict's own may be."""
    skip: str = BLANK
    """Characters that may stand between marker and verdict, and do not count."""

    def read(self, answer: str) -> Parsed:
        """Find the one verdict that the answer concludes with."""
        if not answer.strip():
            return none("the answer is empty")
        places = list(self._places(answer))
        own = [place for place in places if place.exact and not place.quoted]
        if not own:
            some = any(place.exact for place in places)
            where = "only in a quotation" if some else "nowhere"
            return none(f"the answer says {shown(self.marker)} {where}")
        for place in own:
            if place.verdict is None:
                said = answer[place.begin : place.begin + 60]
                return none(f"behind {shown(self.marker)} stands {shown(said)}, not a verdict")
        if len({place.verdict for place in places if place.verdict is not None}) > 1:
            return none("the answer concludes several times, differently")
        last = own[-1]
        rest = answer[last.end :]
        if not re.match(self.goes_on, rest) or self._taken_back(rest, last.verdict):
            return none(f"the answer goes on after its verdict: {shown(rest)}")
        return Parsed(last.verdict, spelling_start(answer, last.begin, LEADS))

    def _places(self, answer: str) -> Iterator[Place]:
        texts = "|".join(re.escape(text) for text in sorted(self.verdicts, key=len, reverse=True))
        # Not a part of something longer: 4.5, 8/10, 4-5, 45, 4th, Response 1 / Response 2.
        whole = rf"(?P<text>{texts}){re.escape(self.closing)}(?!\w|[.,]\d|\s*[/|%]|[–—-])"
        verdict = re.compile(whole)
        for found in re.finditer(self.like, answer, re.IGNORECASE):
            exact = answer.endswith(self.marker, 0, found.end())
            start = found.end() - len(self.marker) if exact else found.start()
            begin = found.end()
            while begin < len(answer) and answer[begin] in self.skip:
                begin += 1
            read = verdict.match(answer, begin)
            name = self.verdicts[read["text"]] if read else None
            end = read.end() if read else begin
            foreign = quoted(answer, start) or not re.search(
                self.before, answer[max(0, start - NEAR) : start]
            )
            yield Place(exact, foreign, name, begin, end)

    def _taken_back(self, rest: str, verdict: str | None) -> bool:
        known = {text.casefold(): name for text, name in self.verdicts.items()}
        for pattern in self.takes_back:
            for found in re.finditer(pattern, rest, re.IGNORECASE):
                named = " ".join(found[1].split()).casefold() if found.re.groups else ""
                if known.get(named) != verdict:
                    return True
        return False


@dataclass(frozen=True)
class Marked:
    """A format whose answers end with a conclusion.

    `decode: verdict` forces the marker upon the model as the opening of its answer, so that the
    first thing it says is its verdict.
    """

    template: Slots
    task: Task
    conclusion: Conclusion
    opening: str
    """The marker as it follows this template's end; nothing with decode: full."""
    rubric: str
    stop: tuple[str, ...]
    max_output_tokens: int = 1024
    chat: bool | None = False

    @property
    def spellings(self) -> Mapping[str, tuple[str, ...]]:
        """Every verdict's text, with and without the space before it."""
        return spelled(self.conclusion.verdicts, LEADS)

    def render(self, example: Example) -> Question:
        """Fill the template. These templates have no place for a reference answer."""
        return Question(self.template.fill(example, self.rubric), opening=self.opening)

    def parse(self, answer: str) -> Parsed:
        """Read the verdict behind the marker; several that differ are none."""
        return self.conclusion.read(answer)
