"""What a batch comes back as: the lines of its output and error files, and what each one means.

Pure. The rules for an answer are those of a request that is sent alone (`reading.py`, `client.py`).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from ray_judge.config import RunConfig
from ray_judge.escalation.batch.records import Asked, BatchState
from ray_judge.escalation.client import Kind, RequestFailed, classify, reply_of
from ray_judge.escalation.pricing import Price
from ray_judge.escalation.question import StrongQuestion
from ray_judge.escalation.reading import counted, read_answer
from ray_judge.records import Answer, Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """One line that came back: a completion, or the kind of failure and a sentence."""

    body: Any = None
    kind: Kind | None = None
    reason: str = ""


NOT_RUN = Result(kind=Kind.TRANSIENT, reason="batch: did not run")


def read_results(output: bytes, errors: bytes) -> dict[str, Result]:
    """Question key → its result, from both files, in whatever order.

    A line that is no result is left out (its slot then has none); a line that comes twice counts
    once; an answer is worth more than an error about the same question.
    """
    found: dict[str, Result] = {}
    for line in (*output.split(b"\n"), *errors.split(b"\n")):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            key, result = str(document["custom_id"]), _result(document)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            log.warning("a line of a batch's results cannot be read: %r", line[:200])
            continue
        if key not in found or (found[key].kind is not None and result.kind is None):
            found[key] = result
    return found


def _result(document: Mapping[str, Any]) -> Result:
    response, error = document.get("response"), document.get("error")
    if not isinstance(response, dict):
        code = error.get("code") if isinstance(error, dict) else None
        return replace(NOT_RUN, reason=f"batch: {code}") if code else NOT_RUN
    status, body = int(response.get("status_code") or 0), response.get("body")
    if status == 200:
        return Result(body=body)
    told = body.get("error") if isinstance(body, dict) else None
    told = told if isinstance(told, dict) else {}
    code, kind = told.get("code"), told.get("type")
    meaning = classify(status, code, kind, told.get("param")) if status >= 400 else Kind.TRANSIENT
    if meaning is Kind.BROKEN:  # a line of the error file was not billed, whatever its status
        meaning = Kind.TRANSIENT
    return Result(kind=meaning, reason=f"HTTP {status} {code or kind or ''}".strip())


@dataclass(slots=True)
class Reading:
    """What an ended batch means. Every slot is in `answers` or in `free`.

    `unanswered`: slots whose questions did not run, for no fault of theirs. `refused`: the server
    does not take `response_format`. `stop`: a failure that holds for the whole run.
    """

    answers: list[Answer] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    unanswered: list[int] = field(default_factory=list)
    refused: bool = False
    stop: Result | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What earlier batches of this run made of a question: how often each happened."""

    unusable: int = 0
    lost: int = 0
    not_run: int = 0


class History:
    """How often the questions of a run were asked in vain, whichever of its processes did it."""

    def __init__(self) -> None:
        """Know of no batch."""
        self._leases: set[str] = set()
        self._not_run: Counter[str] = Counter()

    def leased(self, lease: str) -> None:
        """A batch of the run has this lease."""
        self._leases.add(lease)

    def not_run(self, asked: Sequence[Asked], slots: Iterable[int]) -> None:
        """These slots of a batch that was read did not run."""
        self._not_run.update(asked[slot].key for slot in slots)

    def before(self, state: BatchState, attempts: Iterable[Answer]) -> Mapping[str, Past]:
        """Question key → what the run's other batches made of it, by all attempts on file."""
        unusable: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        for answer in attempts:
            ours = answer.lease in self._leases and answer.lease != state.lease
            if ours and not answer.final:
                (lost if answer.usage is None else unusable)[answer.key] += 1
        return {
            key: Past(unusable[key], lost[key], self._not_run[key])
            for key in unusable.keys() | lost.keys() | self._not_run.keys()
        }


@dataclass(frozen=True, slots=True)
class _Slot:
    """One slot of the batch that is read. `at`: Unix seconds."""

    lease: str
    number: int
    asked: Asked
    past: Past
    at: float

    def failed(self, cost: Decimal, reason: str, *, final: bool) -> Answer:
        return Answer(
            key=self.asked.key,
            outcome=Outcome.FAILED,
            verdict=None,
            cost_usd=cost,
            usage=None,
            model=None,
            response_id=None,
            lease=self.lease,
            slot=self.number,
            at=self.at,
            final=final,
            error=reason,
        )


class ResultReader:
    """Turns the results of batches into answers."""

    def __init__(self, config: RunConfig, price: Price, *, tries: int, lost_tries: int) -> None:
        """Give a question up after so many batches in which it did not run, or was lost."""
        self._strong = config.strong
        self._question = StrongQuestion(config)
        self._price = price
        self._tries = tries
        self._lost_tries = lost_tries

    def read(
        self,
        state: BatchState,
        asked: Sequence[Asked],
        results: Mapping[str, Result],
        past: Mapping[str, Past],
        billed: int | None,
        at: float,
    ) -> Reading:
        """Decide every slot. `at`: Unix seconds.

        `billed`: how many requests the provider says it completed, where a slot without a result
        need not have run; None: each of those counts as billed. Where only some of them do, the
        dearest ones: no other choice can cost more.
        """
        reading = Reading()
        missing = [slot for slot, ask in enumerate(asked) if ask.key not in results]
        if billed is not None:
            here = sum(ask.key in results and results[ask.key].kind is None for ask in asked)
            missing.sort(key=lambda slot: asked[slot].max_cost_usd, reverse=True)
            missing = missing[: max(0, billed - here)]
        lost = set(missing)
        for number, ask in enumerate(asked):
            slot = _Slot(str(state.lease), number, ask, past.get(ask.key, Past()), at)
            found = results.get(ask.key, NOT_RUN)
            if number in lost:
                reading.answers.append(self._lost(slot, "its batch ended without a result for it"))
            elif found.kind is None:
                reading.answers.append(self._answer(slot, found.body))
            else:
                self._failed(reading, slot, found, words=state.words)
        return reading

    def _answer(self, slot: _Slot, body: Any) -> Answer:
        try:
            reply = reply_of(body, {})
        except RequestFailed as failure:
            return self._lost(slot, failure.reason)
        bounds = slot.asked.input_bound, self._strong.max_output_tokens
        usage = reply.usage or counted(reply, *bounds)
        return read_answer(
            self._question,
            self._price,
            slot.asked.key,
            reply,
            replace(usage, tier="batch"),  # the answer's own `service_tier` does not say so
            (slot.lease, slot.number),
            slot.at,
            model=self._strong.model,
            last=slot.past.unusable >= self._strong.reasks,
        )

    def _lost(self, slot: _Slot, reason: str) -> Answer:
        """Computed, perhaps, and not here: it counts as billed in full, and is asked again."""
        final = slot.past.lost + 1 >= self._lost_tries
        return slot.failed(slot.asked.max_cost_usd, reason, final=final)

    def _failed(self, reading: Reading, slot: _Slot, found: Result, *, words: bool) -> None:
        """Decide a slot that was not billed."""
        if found.kind in (Kind.BILLING, Kind.RUN):
            reading.stop = reading.stop or found
            reading.free.append(slot.number)
        elif found.kind is Kind.NO_SCHEMA and not words:
            reading.refused = True
            reading.free.append(slot.number)
        elif found.kind in (Kind.ROW, Kind.REFUSED, Kind.NO_SCHEMA):
            answer = slot.failed(Decimal(0), found.reason, final=True)
            refused = found.kind is Kind.REFUSED
            reading.answers.append(replace(answer, outcome=Outcome.REFUSED) if refused else answer)
        elif slot.past.not_run + 1 >= self._tries:
            reading.answers.append(slot.failed(Decimal(0), found.reason, final=True))
        else:
            reading.free.append(slot.number)
            reading.unanswered.append(slot.number)
