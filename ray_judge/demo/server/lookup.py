"""Finding the row of a file that a judge prompt was made from."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_judge.demo.server.config import LookupAnswers

_WINDOW = 16
"""Characters of the anchor that finds a row whose texts do not start a line of the prompt."""
_JSON_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_SHORT_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Row:
    """One question of the file; `first` and `second` are its responses (second may be absent)."""

    instruction: str
    first: str
    second: str | None
    verdict: str | None
    score: float | None

    @property
    def texts(self) -> list[str]:
        """The texts that must occur in the prompt, longest first (fails fastest)."""
        texts = [t for t in (self.instruction, self.first, self.second) if t]
        return sorted(texts, key=len, reverse=True)

    def question_key(self) -> str:
        """Identity of the question, independent of the prompt around it."""
        joined = "\x1f".join((self.instruction, self.first, self.second or ""))
        return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Match:
    """A row found in a prompt; `swapped` when the prompt shows the second response first."""

    row: Row
    swapped: bool


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON, JSON Lines or Parquet file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

        records: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return records
    text = path.read_text("utf-8")
    if path.suffix in {".jsonl", ".ndjson"}:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    loaded = json.loads(text)
    if not isinstance(loaded, list):
        raise ValueError(f"{path}: expected a list of records")  # noqa: TRY004
    return loaded


def normal_verdict(value: object) -> str | None:
    """Give "A", "B" or "tie" for the usual spellings, else None."""
    text = str(value).strip().lower()
    if text in {"a", "model_a", "response_a", "first"}:
        return "A"
    if text in {"b", "model_b", "response_b", "second"}:
        return "B"
    return "tie" if text in {"tie", "c", "equal", "tie (bothbad)", "both_bad"} else None


class LookupIndex:
    """Rows indexed so that a prompt finds its row without comparing it with all of them.

    Rows are candidates if one of their texts starts with a line that stands alone in the prompt;
    failing that, if the first characters of their longest text occur anywhere in it. Candidates
    are then checked whole: all texts must occur. Of several that fit, the longest wins.
    """

    def __init__(self, settings: LookupAnswers) -> None:
        self._by_line: defaultdict[str, list[Row]] = defaultdict(list)
        self._by_window: defaultdict[str, list[Row]] = defaultdict(list)
        self._short: list[Row] = []
        self._by_digest: dict[str, Row] = {}
        self.rows = 0
        for record in read_records(settings.path):
            self._add(record, settings)

    def _add(self, record: dict[str, Any], settings: LookupAnswers) -> None:
        def text(column: str) -> str | None:
            value = record.get(column)
            if not isinstance(value, str):
                return None
            return value.strip()[: settings.match_chars or None].strip()

        score = record.get(settings.score)
        row = Row(
            instruction=text(settings.instruction) or "",
            first=text(settings.response_a) or "",
            second=text(settings.response_b),
            verdict=normal_verdict(record.get(settings.verdict)),
            score=float(score) if isinstance(score, int | float) else None,
        )
        if row.verdict is None and row.score is None:
            raise ValueError(f"{settings.path}: row {self.rows + 1} has no verdict and no score")
        self.rows += 1
        digest = record.get(settings.sha256)
        if isinstance(digest, str):
            self._by_digest[digest.lower()] = row
        texts = row.texts
        if not texts:
            if digest is None:
                raise ValueError(f"{settings.path}: row {self.rows} has no text to match")
            return
        for line in {t.split("\n", 1)[0].strip() for t in texts}:
            self._by_line[line].append(row)
        if len(texts[0]) >= _WINDOW:
            self._by_window[texts[0][:_WINDOW]].append(row)
        else:
            self._short.append(row)

    def find(self, prompt: str) -> Match | None:
        """The row of this prompt, or None. Escaped texts (JSON, HTML) are found too."""
        if self._by_digest:
            row = self._by_digest.get(hashlib.sha256(prompt.encode()).hexdigest())
            if row is not None:
                return Match(row, swapped=False)
        found = self._find_raw(prompt)
        if found is None and "\\" in prompt:
            found = self._find_raw(_JSON_ESCAPE.sub(_unescape, prompt))
        if found is None and "&" in prompt:
            found = self._find_raw(html.unescape(prompt))
        return found

    def _find_raw(self, prompt: str) -> Match | None:
        by_line = self._by_line
        lines = {line.strip() for line in prompt.split("\n")}
        row = _best((r for line in lines if line in by_line for r in by_line[line]), prompt)
        if row is None:
            row = _best(self._window_candidates(prompt), prompt)
        return None if row is None else Match(row, _is_swapped(row, prompt))

    def _window_candidates(self, prompt: str) -> list[Row]:
        by_window = self._by_window
        candidates = list(self._short)
        for start in range(len(prompt) - _WINDOW + 1):
            rows = by_window.get(prompt[start : start + _WINDOW])
            if rows is not None:
                candidates.extend(rows)
        return candidates


def _best(candidates: Any, prompt: str) -> Row | None:
    """The candidate with the most text of which every text occurs in the prompt."""
    best: Row | None = None
    best_length = -1
    for row in candidates:
        texts = row.texts
        length = sum(map(len, texts))
        if length > best_length and all(text in prompt for text in texts):
            best, best_length = row, length
    return best


def _is_swapped(row: Row, prompt: str) -> bool:
    """Whether the second response stands before the first one in the prompt.

    Looks behind the instruction when both are there (an instruction may quote its answers), and
    places the longer response first, so that a response contained in the other one is not found
    inside it.
    """
    if not row.second or not row.first or row.first == row.second:
        return False
    start = 0
    if row.instruction:
        end = prompt.find(row.instruction) + len(row.instruction)
        if row.first in prompt[end:] and row.second in prompt[end:]:
            start = end
    long, short = sorted((row.first, row.second), key=len, reverse=True)
    at_long = _place(long, prompt, start, (0, 0))
    at_short = _place(short, prompt, start, (at_long, at_long + len(long)))
    first_at, second_at = (at_long, at_short) if long == row.first else (at_short, at_long)
    return second_at < first_at


def _place(text: str, prompt: str, start: int, taken: tuple[int, int]) -> int:
    """Where the text stands outside `taken`; an occurrence that fills its lines is preferred."""
    first_free = -1
    at = prompt.find(text, start)
    while at >= 0:
        end = at + len(text)
        if end <= taken[0] or at >= taken[1]:
            if first_free < 0:
                first_free = at
            before = prompt[at - 1] if at else "\n"
            after = prompt[end] if end < len(prompt) else "\n"
            if before == "\n" and after == "\n":
                return at
        at = prompt.find(text, at + 1)
    return first_free if first_free >= 0 else prompt.find(text)


def _unescape(match: re.Match[str]) -> str:
    if match[1] is not None:
        return chr(int(match[1], 16))
    return _SHORT_ESCAPES.get(match[2], match[2])
