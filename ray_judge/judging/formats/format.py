"""What a judge is asked, and how its answer is read.

A format is a pure value: it is made once, where the run starts, and travels to the engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from ray_judge.judging.formats.reasoning import answer_begins
from ray_judge.records import Example, Task

DEFAULT_RUBRIC = (
    "Does the response do what the instruction asks, correctly, completely and clearly?"
)
"""For prompts with a place for criteria, where neither the row nor the configuration has any."""
MEANINGS = {
    "question_body": "instruction", "answer_body": "response",
    "answer1_body": "response_a", "response_A": "response_a",
    "answer2_body": "response_b", "response_B": "response_b",
}  # fmt: skip
"""Placeholder of an upstream template → ours; the others have our names already."""
BLANK, LEADS = " \t\r\n", ("", " ")
"""What counts for nothing, and what may stand in front of a verdict (tokenizers differ)."""
NEAR = 200
"""Characters in front of a marker that say whose words it is."""
PAIRED_QUOTES = (("“", "”"), ("„", "“"), ("«", "»"), ("「", "」"), ("『", "』"))
OPENS_QUOTE = re.compile(r"[\"'`“”„\u2018\u2019«「『]\s*\Z")
BREAK = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `opening` is the beginning of the answer, forced upon the model.

    A model with a chat template gets `system` and `user` as messages and `opening` behind the
    assistant's header; a plain model gets the three as one text.
    """

    user: str
    system: str | None = None
    opening: str = ""

    def plain(self) -> str:
        return (f"{self.system}\n\n" if self.system else "") + self.user + self.opening

    def messages(self, *, joined: bool = False) -> list[dict[str, str]]:
        """Give the messages in front of the answer, so without the opening.

        `joined`: in one message of the user's, for templates that take no system's (Gemma).
        """
        if joined or not self.system:
            return [{"role": "user", "content": replace(self, opening="").plain()}]
        system = {"role": "system", "content": self.system}
        return [system, {"role": "user", "content": self.user}]


class Layout(Protocol):
    """Turns an example into the text that a judge reads. Its own rubric goes before `rubric`."""

    def fill(self, example: Example, rubric: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a whole answer says: an alternative and where it stands, or why it says none.

    `start`: characters of the answer in front of the verdict's spelling (its leading space
    belongs to the spelling, so that the tokens before and after `start` are the model's own).
    """

    verdict: str | None
    start: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class AnswerForm:
    """Answers whose verdict is one of some texts, with one of some leads in front of it."""

    verdicts: Mapping[str, str]
    """Text → the alternative that it means: `A`, `B`, `tie`, or a whole number."""
    leads: tuple[str, ...] = field(default=LEADS, kw_only=True)

    @property
    def spellings(self) -> Mapping[str, tuple[str, ...]]:
        """Alternative → the texts that mean it.

        They stand right behind the prompt's `opening` (decode: verdict), or at `Parsed.start`
        (decode: full), may have several tokens, and one may begin another (`1`, `10`).
        """
        found: dict[str, tuple[str, ...]] = {}
        for text, name in self.verdicts.items():
            found[name] = (*found.get(name, ()), *(lead + text for lead in self.leads))
        return found

    def parse(self, answer: str) -> Parsed:
        """Read a whole answer; what is not plainly a verdict is none."""
        raise NotImplementedError

    def found_at(self, answer: str, begin: int, name: str) -> Parsed:
        """Take the verdict whose first visible character is at `begin`."""
        has_lead = begin and answer[begin - 1] in self.leads
        return Parsed(name, begin - 1 if has_lead else begin)


@dataclass(frozen=True)
class Format:
    """How one judge is asked, and how it answers.

    `task` is what it judges by nature: a pointwise format judges a pair by scoring both responses.
    `chat`: always by chat template, never, or (null) when the tokenizer has one. `stop` and
    `max_output_tokens` end an answer with decode: full.
    """

    task: Task
    layout: Layout
    answers: AnswerForm
    system: str | None = None
    opening: str = ""
    rubric: str = DEFAULT_RUBRIC
    chat: bool | None = None
    stop: tuple[str, ...] = ()
    max_output_tokens: int = 512

    @property
    def spellings(self) -> Mapping[str, tuple[str, ...]]:
        return self.answers.spellings

    def render(self, example: Example) -> Prompt:
        return Prompt(self.layout.fill(example, self.rubric), self.system, self.opening)

    def parse(self, answer: str, *, opened: bool = False) -> Parsed:
        """Read a whole answer, behind its reasoning; `opened`: the prompt began that."""
        begin = 0 if self.chat is False else answer_begins(answer, opened=opened)
        if begin is None:
            return no_verdict("the answer is reasoning without an end")
        if not answer[begin:].strip():
            return no_verdict("the answer is empty")
        parsed = self.answers.parse(answer[begin:])
        return replace(parsed, start=begin + parsed.start)


@dataclass(frozen=True)
class Template:
    """A template, cut where an example's texts go: pieces[0], names[0], pieces[1], ...

    Nothing inside a text is ever looked at: a response that contains `{rubric}` stays as it is.
    """

    pieces: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def split(cls, text: str, placeholders: Iterable[str]) -> Template:
        """Cut a template at `{placeholder}`; all other braces are text."""
        parts = re.split(rf"\{{({'|'.join(map(re.escape, placeholders))})\}}", text)
        return cls(tuple(parts[::2]), tuple(MEANINGS.get(name, name) for name in parts[1::2]))

    def fill(self, example: Example, rubric: str) -> str:
        """Fill the places; an input without one goes behind the instruction."""
        instruction = example.instruction
        if example.input and "input" not in self.names:
            instruction = f"{instruction}\n{example.input}"
        texts = {
            "instruction": instruction,
            "input": example.input or "",
            "reference": example.reference or "",
            "rubric": example.rubric or rubric,
            "response": example.responses[0],
            "response_a": example.responses[0],
            "response_b": example.responses[-1],
        }
        filled = (
            texts[name] + piece for name, piece in zip(self.names, self.pieces[1:], strict=True)
        )
        return self.pieces[0] + "".join(filled)


@dataclass(frozen=True)
class FirstLine(AnswerForm):
    """Judges that answer first and explain then: the first line is a verdict and nothing else."""

    wanted: str
    """What the line should have been, for people."""

    def parse(self, answer: str) -> Parsed:
        """Read the first line that is not blank. The line behind it must not be another verdict."""
        begin = len(answer) - len(answer.lstrip(BLANK))
        line, _, rest = answer[begin:].partition("\n")
        said = line.rstrip(BLANK)
        if said not in self.verdicts:
            return no_verdict(f"the answer's first line is {quote(said)}, not {self.wanted}")
        then = rest.lstrip(BLANK).partition("\n")[0].strip(BLANK + ".,;:!*")
        if then in self.verdicts and then != said:
            return no_verdict(f'the answer begins with two verdicts, "{said}" and "{then}"')
        return self.found_at(answer, begin, self.verdicts[said])


@dataclass(frozen=True)
class Marked(AnswerForm):
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
        texts = "|".join(re.escape(text) for text in sorted(self.verdicts, key=len, reverse=True))
        # Not a part of something longer: 4.5, 8/10, 4-5, 45, 4th, Response 1 / Response 2.
        whole = rf"(?P<text>{texts}){re.escape(self.closing)}(?!\w|[.,]\d|\s*[/|%]|[–—-])"
        names, where, last = set(), "nowhere", None
        for found in re.finditer(self.like, answer, re.IGNORECASE):
            rest = answer[found.end() :].lstrip(self.skip)
            begin = len(answer) - len(rest)
            if read := re.match(whole, rest):
                names.add(self.verdicts[read["text"]])
            if not answer.endswith(self.marker, 0, found.end()):
                continue  # not as the judge was trained to write it
            start = found.end() - len(self.marker)
            before = answer[max(0, start - NEAR) : start]
            if is_quoted(answer, start) or not re.search(self.before, before):
                where = "only in a quotation"
            elif read is None:
                said = f"behind {quote(self.marker)} stands {quote(rest[:60])}, not a verdict"
                return no_verdict(said)
            else:
                last = (begin, rest[read.end() :], self.verdicts[read["text"]])
        if last is None:
            said = f"the answer says {quote(self.marker)} {where}, and begins {quote(answer)}"
            return no_verdict(said)
        if len(names) > 1:
            return no_verdict("the answer concludes several times, differently")
        begin, rest, verdict = last
        if not re.match(self.goes_on, rest) or self._takes_back(rest, verdict):
            return no_verdict(f"the answer goes on after its verdict: {quote(rest)}")
        return self.found_at(answer, begin, verdict)

    def _takes_back(self, rest: str, verdict: str) -> bool:
        known = {text.casefold(): name for text, name in self.verdicts.items()}
        for pattern in self.takes_back:
            for found in re.finditer(pattern, rest, re.IGNORECASE):
                named = " ".join(found[1].split()).casefold() if found.re.groups else ""
                if known.get(named) != verdict:
                    return True
        return False


@dataclass(frozen=True)
class Searched(AnswerForm):
    """Answers in which the user's own regular expression finds the verdict."""

    pattern: str | None
    """Finds a verdict as its group `verdict`; `^` and `$` are at every line."""

    def parse(self, answer: str) -> Parsed:
        """Find the verdict. Several matches must say the same; the last one is where it sits."""
        if self.pattern is None:
            return no_verdict("judge.custom.verdict is not given: an answer cannot be read")
        found: Parsed | None = None
        for match in re.finditer(self.pattern, answer, re.MULTILINE):
            said = match["verdict"] or ""
            texts = [text for text in self.verdicts if text.strip() == said.strip()]
            if not texts:
                return no_verdict(f"{quote(said)} is not one of judge.custom.choices")
            if found is not None and found.verdict != self.verdicts[texts[0]]:
                return no_verdict("the answer has several verdicts that differ")
            # White space in front belongs to the spelling: the most of it that is there.
            begin = match.start("verdict") + len(said) - len(said.lstrip())
            leads = [text.removesuffix(text.lstrip()) for text in texts]
            there = (len(lead) for lead in leads if answer.endswith(lead, 0, begin))
            found = Parsed(self.verdicts[texts[0]], begin - max(there, default=0))
        said = "judge.custom.verdict finds no verdict in the answer, which begins"
        return found or no_verdict(f"{said} {quote(answer)}")


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


def no_verdict(reason: str) -> Parsed:
    return Parsed(None, reason=reason)


def quote(text: str, limit: int = 40) -> str:
    text = " ".join(text.split())
    return f'"{text}"' if len(text) <= limit else f'"{text[:limit]}…"'
