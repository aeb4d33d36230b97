"""Judges that answer first and explain then: the verdict is all of the answer's first line."""

from __future__ import annotations

from dataclasses import dataclass

from ray_judge.judging.formats.format import BLANK, Parsed, Spelled, no_verdict, quote


@dataclass(frozen=True)
class FirstLine(Spelled):
    """Answers that begin with a line that is a verdict and nothing else."""

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
