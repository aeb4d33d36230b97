"""What a batch comes back as: the lines of its output and error files, and what each one means.

Pure. The rules for an answer are those of a request that is sent alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from ray_judge.escalation.answers import failed_answer, read_answer, read_reply
from ray_judge.escalation.books.journal import InVain
from ray_judge.escalation.books.ledger import HeldSlot
from ray_judge.escalation.questions import Question, QuestionMaker
from ray_judge.failures import LOST_TRIES, TRIES, Kind, RequestFailed, failure_of
from ray_judge.records import Answer

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
    if status < 400:
        return Result(kind=Kind.TRANSIENT, reason=f"HTTP {status}")
    failure = failure_of(status, body.get("error") if isinstance(body, dict) else body, {})
    # A line of the error file was not billed, whatever its status.
    kind = Kind.TRANSIENT if failure.kind is Kind.BROKEN else failure.kind
    return Result(kind=kind, reason=failure.reason)


@dataclass(slots=True)
class BatchReading:
    """What an ended batch means. Every slot is in `answers` or in `free`.

    `refused`: the server does not take `response_format`. `stop`: a failure that holds for the
    whole run.
    """

    answers: list[Answer] = field(default_factory=list)
    free: list[HeldSlot] = field(default_factory=list)
    refused: bool = False
    stop: Result | None = None


class ResultReader:
    """Turns the results of batches into answers."""

    def __init__(self, maker: QuestionMaker) -> None:
        self._maker = maker

    def read(
        self,
        held: Sequence[HeldSlot],
        questions: Mapping[str, Question],
        results: Mapping[str, Result],
        in_vain: Mapping[str, InVain],
        *,
        billed: int | None,
        at: float,
        words: bool,
    ) -> BatchReading:
        """Decide every slot that is still held. `at`: Unix seconds.

        `billed`: how many requests the provider says it completed, where a slot without a result
        need not have run; None: each of those counts as billed. Where only some of them do, the
        dearest ones: no other choice can cost more. `words`: asked without `response_format`.
        """
        reading = BatchReading()
        missing = [slot for slot in held if slot.key not in results]
        if billed is not None:
            here = sum(result.kind is None for result in results.values())
            missing.sort(key=lambda slot: slot.max_usd, reverse=True)
            missing = missing[: max(0, billed - here)]
        lost = {slot.slot for slot in missing}
        for slot in held:
            past = in_vain.get(slot.key, InVain())
            found = results.get(slot.key, NOT_RUN)
            if slot.slot in lost:
                reason = "its batch ended without a result for it"
                reading.answers.append(self._lost(slot, past, reason, at))
            elif found.kind is None:
                question = questions.get(slot.key)
                reading.answers.append(self._answer(slot, question, past, found.body, at))
            else:
                self._decide_failed(reading, slot, past, found, at, words=words)
        return reading

    def _answer(
        self, slot: HeldSlot, question: Question | None, past: InVain, body: Any, at: float
    ) -> Answer:
        try:
            reply = read_reply(body, {})
        except RequestFailed as failure:
            return self._lost(slot, past, failure.reason, at)
        answer = read_answer(
            self._maker,
            slot.key,
            question.input_bound if question else 0,
            reply,
            (slot.lease, slot.slot),
            at,
            last=past.unusable >= self._maker.strong.reasks,
            tier="batch",  # the answer's own `service_tier` does not say so
        )
        unknown = question is None and reply.usage is None
        return replace(answer, cost_usd=slot.max_usd) if unknown else answer

    def _lost(self, slot: HeldSlot, past: InVain, reason: str, at: float) -> Answer:
        """Computed, perhaps, and not here: it counts as billed in full, and is asked again."""
        final = past.lost + 1 >= LOST_TRIES
        return _failed(slot, Kind.AMBIGUOUS, slot.max_usd, reason, at, final=final)

    def _decide_failed(
        self,
        reading: BatchReading,
        slot: HeldSlot,
        past: InVain,
        found: Result,
        at: float,
        *,
        words: bool,
    ) -> None:
        kind = found.kind or Kind.TRANSIENT
        if kind in (Kind.BILLING, Kind.RUN):
            reading.stop = reading.stop or found
            reading.free.append(slot)
        elif kind is Kind.NO_SCHEMA and not words:
            reading.refused = True
            reading.free.append(slot)
        else:
            of_the_row = kind in (Kind.ROW, Kind.REFUSED, Kind.NO_SCHEMA)
            final = of_the_row or past.not_run + 1 >= TRIES
            answer = _failed(slot, kind, Decimal(0), found.reason, at, final=final)
            reading.answers.append(answer)


def _failed(
    slot: HeldSlot, kind: Kind, cost: Decimal, reason: str, at: float, *, final: bool
) -> Answer:
    return failed_answer(slot.key, kind, reason, cost, (slot.lease, slot.slot), at, final=final)
