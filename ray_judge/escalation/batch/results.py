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
from ray_judge.escalation.online.limiter import FIRST
from ray_judge.escalation.questions import Question, QuestionMaker, Unparseable
from ray_judge.failures import DENIALS, TRIES, Bill, Fault, Kind, RequestFailed, failure_of
from ray_judge.records import Answer, Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """One line that came back: a completion, or a failure."""

    body: Any = None
    failure: RequestFailed | None = None


def _not_run(reason: str) -> Result:
    return Result(failure=RequestFailed(Kind.TRANSIENT, f"batch: {reason}"))


NOT_RUN = _not_run("did not run")


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
        if key not in found or (found[key].failure and not result.failure):
            found[key] = result
    return found


def _result(document: Mapping[str, Any]) -> Result:
    response, error = document.get("response"), document.get("error")
    if not isinstance(response, dict):
        code = error.get("code") if isinstance(error, dict) else None
        return _not_run(str(code)) if code else NOT_RUN
    status, body = int(response.get("status_code") or 0), response.get("body")
    if status == 200:
        return Result(body)
    if status < 400:
        return Result(failure=RequestFailed(Kind.TRANSIENT, f"HTTP {status}"))
    failure = failure_of(status, body.get("error") if isinstance(body, dict) else body, {})
    # A line of the error file was not billed, whatever its status.
    failure.kind = Kind.TRANSIENT if failure.kind is Kind.BROKEN else failure.kind
    return Result(failure=failure)


@dataclass(slots=True)
class BatchReading:
    """What an ended batch means. Every slot is in `answers` or in `free`.

    `ended`: key → outcome of the questions that were asked often enough for now, without a final
    answer. `words`: the server does not take `response_format`. `stop`: why no question of the run
    can be answered. `usable`: whether there is a verdict; `useless`: why others are none.
    """

    answers: list[Answer] = field(default_factory=list)
    free: list[HeldSlot] = field(default_factory=list)
    ended: dict[str, Outcome] = field(default_factory=dict)
    words: bool = False
    stop: RequestFailed | None = None
    usable: bool = False
    useless: list[str] = field(default_factory=list)

    def keep(self, answer: Answer, *, over: bool) -> None:
        self.answers.append(answer)
        if over and not answer.final:
            self.ended[answer.key] = answer.outcome


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
        The server has given verdicts: what befalls all of many is no question's fault all the same.
        """
        reading = BatchReading()
        reading.usable = any(map(self._has_verdict, results.values()))
        sound = reading.usable or len(held) < FIRST
        kinds = [result.failure.kind for result in results.values() if result.failure]
        few = kinds.count(Kind.DENIED) < DENIALS
        lost = self._missing(held, results, billed)
        for slot in held:
            past, found = in_vain.get(slot.key, InVain()), results.get(slot.key, NOT_RUN)
            failure = found.failure
            try:
                if slot in lost:
                    raise RequestFailed(Kind.AMBIGUOUS, "its batch ended without a result for it")
                if failure is None:
                    question = questions.get(slot.key)
                    self._take(reading, slot, question, past, found.body, at, sound=sound)
            except RequestFailed as no_reply:
                failure = no_reply
            if failure is not None:
                of_text = few and (sound or failure.status == 403)  # moderated, perhaps
                if failure.kind is Kind.DENIED and (reading.usable or of_text):
                    failure = replace(failure, kind=Kind.REFUSED)
                if failure.kind is Kind.NO_SCHEMA and words:
                    failure = replace(failure, kind=Kind.ROW)
                self._fail(reading, slot, past, failure, at, sound=sound)
        return reading

    def _has_verdict(self, result: Result) -> bool:
        try:
            return bool(result.body) and self._maker.read(read_reply(result.body, {}).text) != ""
        except (RequestFailed, Unparseable):
            return False

    def _missing(
        self, held: Sequence[HeldSlot], results: Mapping[str, Result], billed: int | None
    ) -> set[HeldSlot]:
        """The slots without a result that count as billed."""
        missing = [slot for slot in held if slot.key not in results]
        if billed is not None:
            here = sum(result.failure is None for result in results.values())
            missing.sort(key=lambda slot: slot.max_usd, reverse=True)
            missing = missing[: max(0, billed - here)]
        return set(missing)

    def _take(
        self,
        reading: BatchReading,
        slot: HeldSlot,
        question: Question | None,
        past: InVain,
        body: Any,
        at: float,
        *,
        sound: bool,
    ) -> None:
        """Take a completion. Raises RequestFailed where it is none."""
        reply = read_reply(body, {})
        over = past.unusable >= self._maker.strong.reasks
        answer = read_answer(
            self._maker,
            slot.key,
            question.input_bound if question else 0,
            reply,
            (slot.lease, slot.slot),
            at,
            last=over and sound,
            tier="batch",  # the answer's own `service_tier` does not say so
        )
        if answer.verdict is None:
            reading.useless.append(str(answer.error))
        unknown = question is None and reply.usage is None
        reading.keep(replace(answer, cost_usd=slot.max_usd) if unknown else answer, over=over)

    def _fail(
        self,
        reading: BatchReading,
        slot: HeldSlot,
        past: InVain,
        failure: RequestFailed,
        at: float,
        *,
        sound: bool,
    ) -> None:
        """Take a failure. Only what concerns the question itself is final."""
        meaning, of_question = failure.meaning, failure.meaning.fault is Fault.QUESTION
        if meaning.fault is Fault.RUN:
            reading.free.append(slot)
            reading.words |= failure.kind is Kind.NO_SCHEMA
            if not meaning.again:
                reading.stop = reading.stop or failure
            return
        if of_question:
            reading.useless.append(failure.reason)
        final = of_question and sound and failure.status not in (401, 404)
        cost = slot.max_usd if meaning.bill is Bill.MOST else Decimal(0)
        tried = past.lost if meaning.bill is Bill.MOST else past.not_run
        place = slot.lease, slot.slot
        answer = failed_answer(slot.key, failure.kind, failure.reason, cost, place, at, final=final)
        reading.keep(answer, over=of_question or tried + 1 >= (meaning.tries or TRIES))
