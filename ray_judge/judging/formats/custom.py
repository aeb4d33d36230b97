"""`custom`: the user's own judge, from `judge.custom` in the YAML alone (docs/custom-judge.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ray_judge.config import CustomFormat, JudgeConfig
from ray_judge.judging.formats.format import (
    DEFAULT_RUBRIC,
    Format,
    Parsed,
    Template,
    no_verdict,
    quote,
)
from ray_judge.records import OPTIONAL, REQUIRED


@dataclass(frozen=True)
class Searched:
    """Answers in which the user's own regular expression finds the verdict."""

    spellings: Mapping[str, tuple[str, ...]]
    pattern: str | None
    """Finds a verdict as its group `verdict`; `^` and `$` are at every line."""

    def parse(self, answer: str) -> Parsed:
        """Find the verdict. Several matches must say the same; the last one is where it sits."""
        if self.pattern is None:
            return no_verdict("judge.custom.verdict is not given: an answer cannot be read")
        meant = {text: name for name, texts in self.spellings.items() for text in texts}
        found: Parsed | None = None
        for match in re.finditer(self.pattern, answer, re.MULTILINE):
            said = match["verdict"] or ""
            texts = [text for text in meant if text.strip() == said.strip()]
            if not texts:
                return no_verdict(f"{quote(said)} is not one of judge.custom.choices")
            if found is not None and found.verdict != meant[texts[0]]:
                return no_verdict("the answer has several verdicts that differ")
            # White space in front belongs to the spelling: the most of it that is there.
            begin = match.start("verdict") + len(said) - len(said.lstrip())
            leads = [text.removesuffix(text.lstrip()) for text in texts]
            there = (len(lead) for lead in leads if answer.endswith(lead, 0, begin))
            found = Parsed(meant[texts[0]], begin - max(there, default=0))
        return found or no_verdict("judge.custom.verdict finds no verdict in the answer")


def make(judge: JudgeConfig, custom: CustomFormat) -> Format:
    """Take the configuration over; its choices say whether it judges pairs or responses."""
    task = custom.task()
    return Format(
        task,
        Template.split(custom.template, (*REQUIRED[task], *OPTIONAL)),
        Searched(dict(custom.choices), custom.verdict),
        system=custom.system,
        opening=custom.opening,
        rubric=judge.rubric or DEFAULT_RUBRIC,
        chat=judge.chat,
        stop=custom.stop,
        max_output_tokens=custom.max_output_tokens,
    )
