"""What a batch is made of: the queue, the provider's calls, and what its results mean."""

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any
from unittest.mock import Mock

import pytest

from ray_judge.config import BatchConfig
from ray_judge.errors import CorruptedError, LedgerFenced, ProviderDown
from ray_judge.escalation.batch.provider import METADATA, Provider, View, lost_batch_error
from ray_judge.escalation.batch.queue import LONGEST_HOLD_S, BatchQueue
from ray_judge.escalation.batch.results import BatchReading, ResultReader, read_results
from ray_judge.escalation.books.batches import BatchRecord, Stage, load, save
from ray_judge.escalation.books.journal import InVain
from ray_judge.escalation.books.ledger import HeldSlot
from ray_judge.escalation.questions import Question
from ray_judge.failures import LOST_TRIES, TRIES, Kind, RequestFailed
from ray_judge.records import Example, Outcome
from tests.fault.batch_night import NightClock

from .memory import MemoryStorage
from .test_questions import config, maker
from .virtual_time import virtual


def queue(**settings: Any) -> BatchQueue:
    return BatchQueue(BatchConfig(**settings), lambda questions: questions)


BODY = {"model": "m", "messages": ["€\u2028"], "response_format": {}}


def waiting(*tokens: int) -> list[Question]:
    return [Question(f"k{n}", BODY, 9, t, Decimal(1)) for n, t in enumerate(tokens)]


LINE = len(queue().take(waiting(1), None)[0].line)


@pytest.mark.parametrize(
    ("settings", "tokens", "enqueued", "taken"),
    [
        ({"max_requests": 2}, [1, 1, 1], None, 2),
        ({"max_bytes": 2 * LINE}, [1, 1, 1], None, 2),
        ({"max_bytes": 2 * LINE - 1}, [1, 1, 1], None, 1),
        ({"enqueued_tokens": 10}, [5, 5, 1], None, 2),
        ({"enqueued_tokens": 10}, [5, 5, 1], 5, 1),
        ({"enqueued_tokens": 10}, [5], 6, 0),
        ({"enqueued_tokens": 10}, [50, 1], None, 1),  # alone it goes in any case
        ({"enqueued_tokens": 10}, [50, 1], 0, 0),
        ({}, [], None, 0),
    ],
)
def test_the_first_questions_go_as_many_as_fit(
    settings: dict[str, Any], tokens: list[int], enqueued: int | None, taken: int
) -> None:
    found = queue(**settings).take(waiting(*tokens), enqueued)
    lines = [json.loads(request.line.decode("ascii")) for request in found]
    wanted = [(f"k{n}", BODY) for n in range(taken)]
    assert [(line["custom_id"], line["body"]) for line in lines] == wanted


def test_no_more_bodies_are_made_than_may_be_sent() -> None:
    bodies = Mock(side_effect=lambda questions: questions)
    BatchQueue(BatchConfig(max_requests=3), bodies).take(questions := waiting(*[1] * 1000), None)
    bodies.assert_called_once_with(questions[:3])


def test_a_full_queue_is_asked_less_and_later_each_time() -> None:
    asked, now, holds, taken = queue(poll_s=30), 0.0, [], []
    for _ in range(7):
        asked.shrink(100, now)
        begun = now
        while not asked.is_open(now):
            now += 1
        holds.append(now - begun)
        taken.append(len(asked.take(waiting(*[10] * 20), None)))
    assert holds == [30, 60, 120, 240, 480, LONGEST_HOLD_S, LONGEST_HOLD_S]
    assert taken == [5, 2, 1, 1, 1, 1, 1]
    asked.accept()
    asked.shrink(100, now)
    assert asked.is_open(now + 30)


def test_records_of_a_run_the_oldest_first() -> None:
    storage = MemoryStorage()
    one = BatchRecord("rj-1", "a", 2, 20, at=5.0)
    for record in (one, replace(one, id="rj-0", at=9.0), replace(one, id="rj-2", run="b")):
        save(storage, record)
    save(storage, replace(one, stage=Stage.SUBMITTED, file="f", batch="b", words=True))
    found = load(storage, "a")
    assert [(record.id, record.stage, record.over) for record in found] == [
        ("rj-1", "submitted", False), ("rj-0", "intent", False),
    ]  # fmt: skip
    assert found[0] == replace(one, stage=Stage.SUBMITTED, file="f", batch="b", words=True)
    for text in (storage.files["batches/rj-1.json"][:-20], b"[]", b"null", b'{"version": 2}'):
        storage.files["batches/rj-1.json"] = text
        with pytest.raises(CorruptedError, match=r"(damaged|newer).*batches/rj-1\.json"):
            load(storage, "a")


class Account:
    """A client whose calls fail as scripted; the list shows the batch from a look on."""

    def __init__(self, *failures: RequestFailed | None, shown_at: float = 0) -> None:
        self.failures, self.shown_at = list(failures), shown_at
        self.calls: list[str] = []
        self.told: list[Mapping[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            self.calls.append(name)
            failure = self.failures.pop(0) if self.failures else None
            if failure is not None:
                raise failure
            return {"id": "b"} if name == "create" else f"{name}d"

        return call

    async def page(self, after: str | None) -> tuple[list[Mapping[str, Any]], bool]:
        self.calls.append("page")
        pages = self.calls.count("page")
        assert after == {2: "o1", 3: "o2"}.get(pages), "the first look has three pages"
        ours = {"id": "b", "metadata": {METADATA: RECORD.id}, "created_at": 1e6}
        other = {"id": f"o{pages}", "metadata": None, "created_at": 1e6 - 40_000.0 * pages}
        return ([ours] if self.shown_at and pages >= self.shown_at else [other]), True


RECORD = BatchRecord("rj-1", "run", 1, 1, at=1e6, stage=Stage.CREATING, file="f")
RESET = RequestFailed(Kind.AMBIGUOUS, "reset")
LIMITED = RequestFailed(Kind.RATE_LIMIT, "HTTP 429", status=429, headers={"retry-after": "7"})
DOWN = RequestFailed(Kind.TRANSIENT, "no connection")
NO_ROOM = RequestFailed(Kind.RATE_LIMIT, "HTTP 429", status=429, code="token_limit_exceeded")
NO_FILE = RequestFailed(Kind.DENIED, "HTTP 404", status=404)


def provider(account: Any, **strong: Any) -> tuple[Provider, NightClock]:
    clock = NightClock(lambda: None, 1e6)
    return Provider(config(**strong).strong, account, clock, account.told.append), clock


@pytest.mark.parametrize(
    ("failures", "batch", "creations"),
    [
        ([], "b", 1),
        ([LIMITED, DOWN], "b", 3),  # surely not created: once more
        ([RESET], None, 1),  # nobody knows: never again
        ([RequestFailed(Kind.BROKEN, "HTTP 500", status=500)], None, 1),
        ([RequestFailed(Kind.TRANSIENT, "HTTP 503", status=503)], None, 1),
        ([NO_ROOM], RequestFailed, 1),
        ([RequestFailed(Kind.BILLING, "HTTP 402", status=402)], RequestFailed, 1),
        ([], LedgerFenced, 0),  # who lost the books creates nothing
    ],
)
@virtual
async def test_a_batch_is_created_once(failures: Any, batch: Any, creations: int) -> None:
    """Before each try the fence is asked whether this process still owns the books."""
    account, fenced = Account(*failures), []

    async def fence() -> None:
        if batch is LedgerFenced:
            raise LedgerFenced("a newer owner")
        fenced.append(len(account.calls))

    asked, clock = provider(account)
    if batch in ("b", None):
        assert await asked.create(RECORD, fence) == batch
    else:
        with pytest.raises(batch):
            await asked.create(RECORD, fence)
    assert account.calls == ["create"] * creations
    assert fenced == list(range(creations))
    assert clock.slept >= 7 or LIMITED not in failures, "as long as the provider says"


@pytest.mark.parametrize(
    ("account", "found", "deleted"),
    [
        (Account(shown_at=1), "b", False),
        (Account(shown_at=3), "b", False),  # on the third page
        (Account(shown_at=6), "b", True),  # the list lags behind
        (Account(), None, True),
        (Account(NO_FILE), None, True),  # deleted before, which is just as good
    ],
)
@virtual
async def test_a_batch_is_looked_for(account: Account, found: str | None, deleted: bool) -> None:
    asked, clock = provider(account)
    assert await asked.find(RECORD) == found
    assert account.calls.count("delete") == deleted
    assert (clock.slept >= 60) == (found is None), "given up only after patience_s"


@virtual
async def test_what_passes_is_waited_for_and_not_for_ever() -> None:
    account = Account(RESET, LIMITED, DOWN)
    asked, _ = provider(account)
    assert await asked.upload(RECORD, b"") == "uploadd"
    waits = [told["waits"].rpartition(": ")[2] for told in account.told]
    assert waits == ["reset", "HTTP 429", "no connection"]
    asked, clock = provider(Account(*[DOWN] * 500), give_up_after_s=600)
    with pytest.raises(RequestFailed):
        await asked.upload(RECORD, b"")
    assert 600 <= clock.slept < 700
    told = lost_batch_error(DOWN, config().strong, "b", "file")
    assert isinstance(told, ProviderDown)


@pytest.mark.parametrize(
    ("document", "view", "nothing_ran", "billed"),
    [
        ({"status": "completed", "errors": {"data": [{"code": "x"}, None]}, "completed_at": 7},
         View("completed", None, None, None, ("x",), 7.0), False, None),
        ({"status": "failed", "request_counts": {"completed": 0}, "errors": None},
         View("failed", None, None, 0, (), None), True, 0),
        ({"status": "cancelled", "request_counts": {"completed": 3}, "output_file_id": "o"},
         View("cancelled", "o", None, 3, (), None), False, 3),
        ({"status": "failed", "error_file_id": "e"}, View("failed", None, "e", None, (), None),
         False, None),
    ],
)  # fmt: skip
def test_a_view_survives_what_other_servers_leave_out(
    document: dict[str, Any], view: View, nothing_ran: bool, billed: int | None
) -> None:
    assert View.of(document) == view
    assert (view.nothing_ran, view.billed, view.ended) == (nothing_ran, billed, True)


def line(key: str, status: int | None, body: Any = None, error: Any = None) -> bytes:
    response = None if status is None else {"status_code": status, "body": body}
    document = {"custom_id": key, "response": response, "error": error}
    return json.dumps(document).encode() + b"\n"


def error(code: str, status: int = 400, **more: Any) -> bytes:
    return line("k", status, {"error": {"code": code, **more}})


LINES: dict[bytes, Kind | None] = {
    line("k", 200, {"x": 1}): None,
    line("k", 200, {"x": 1}) + line("k", 500, {}): None,  # an answer is worth more than an error
    line("k", 500, {}) + line("k", 200, {"x": 1}): None,
    line("k", None, error={"code": "batch_expired"}): Kind.TRANSIENT,
    line("k", None): Kind.TRANSIENT,
    line("k", 0): Kind.TRANSIENT,
    error("", 500): Kind.TRANSIENT,  # not billed, whatever its status
    error("rate_limit_exceeded", 429): Kind.RATE_LIMIT,
    error("content_filter"): Kind.REFUSED,
    error("unsupported", param="response_format"): Kind.NO_SCHEMA,
    error("insufficient_quota", 429): Kind.BILLING,
    error("model_not_found", 404): Kind.DENIED,
    line("k", 400, "text"): Kind.ROW,
    b'\n{torn\n[1]\nnull\n"k"\n{"custom_id": "other"}\n' + line("k", 200): None,
}


@pytest.mark.parametrize("lines", LINES)
def test_what_a_line_says(lines: bytes) -> None:
    for found in (read_results(lines, b""), read_results(b"", lines)):
        failure = found["k"].failure
        assert (failure and failure.kind) is LINES[lines]


MAKER = maker(reasks=1)
ASKED = MAKER.of_example(Example("Say hi.", ("hi", "hello")))[0]


def completion(text: str, usage: Any = None) -> bytes:
    message = {"content": text, "refusal": None}
    choices = [{"message": message, "finish_reason": "stop"}]
    return line("a", 200, {"id": "i", "model": "gpt-4.1", "choices": choices, "usage": usage})


def read(
    output: bytes = b"",
    billed: int | None = None,
    words: bool = False,
    **past: InVain,
) -> BatchReading:
    """What a batch of `a`, `b` and `c` (for at most 1, 2 and 3 dollars) comes to."""
    held = [HeldSlot("l-1", n, key, Decimal(n + 1)) for n, key in enumerate("abc")]
    return ResultReader(MAKER).read(
        held, {"a": ASKED}, read_results(output, b""), past,
        billed=billed, at=1.0, words=words,
    )  # fmt: skip


def outcomes(reading: BatchReading) -> list[tuple[str, str, Decimal, bool]]:
    return [(a.key, str(a.outcome), a.cost_usd, a.final) for a in reading.answers]


@pytest.mark.parametrize(
    ("billed", "past", "costs"),
    [
        # What stands in no file counts as billed, as far as it may have been, the dearest first.
        (None, {}, [1, 2, 3]),
        (1, {}, [0, 0, 3]),
        (0, {}, [0, 0, 0]),
        (0, {"b": InVain(not_run=TRIES - 1)}, [0, 0, 0]),
        (1, {"c": InVain(lost=LOST_TRIES - 1)}, [0, 0, 3]),
    ],
)
def test_what_is_missing(billed: int | None, past: Any, costs: list[int]) -> None:
    found = read(billed=billed, **past)
    assert [(a.key, a.cost_usd, a.final) for a in found.answers] == [
        (key, cost, False) for key, cost in zip("abc", costs, strict=True)
    ]
    assert found.ended == dict.fromkeys(past, Outcome.FAILED)  # the next session asks it again
    assert not found.free


USAGE = {"prompt_tokens": 100, "completion_tokens": 10}
DENIED = {"error": {"message": "flagged", "code": 403}}
HALF = (Decimal(100) * 2 + Decimal(10) * 8) / 2 / 1_000_000


@pytest.mark.parametrize(
    ("output", "past", "answer"),
    [
        (completion('{"verdict": "A"}', USAGE), {}, ("resolved", HALF, True)),
        (completion("A, I think", USAGE), {}, ("unparseable", HALF, False)),
        (completion("A", USAGE), {"a": InVain(unusable=1)}, ("unparseable", HALF, True)),
        (line("a", 200, {"no": "choices"}), {}, ("failed", Decimal(1), False)),
        (line("a", 400, {"error": {"code": "content_filter"}}), {}, ("refused", Decimal(0), True)),
        (line("a", 400, {"error": {"code": "too_long"}}), {}, ("failed", Decimal(0), True)),
        (line("a", 500, {}), {}, ("failed", Decimal(0), False)),
        (line("a", 403, DENIED), {}, ("refused", Decimal(0), True)),
    ],
)
def test_what_an_answer_becomes(output: bytes, past: Any, answer: Any) -> None:
    found = outcomes(read(output, 0, **past))[0]
    assert found == ("a", *answer)


def test_an_answer_nobody_knows_the_question_of_costs_what_it_may() -> None:
    """Its input changed, so it is asked no more; without usage only its slot tells."""
    text = completion('{"verdict": "A"}').replace(b'"a"', b'"b"')
    assert outcomes(read(text, 1))[1] == ("b", "resolved", Decimal(2), True)


@pytest.mark.parametrize(
    ("output", "stop"),
    [
        (line("a", 429, {"error": {"code": "insufficient_quota"}}), Kind.BILLING),
        (line("a", 400, {"error": {"param": "response_format"}}), None),
    ],
)
def test_what_holds_for_the_whole_run_gives_its_slot_back(output: bytes, stop: Kind | None) -> None:
    found = read(output, 0)
    assert [slot.key for slot in found.free] == ["a"]
    assert found.words == (stop is None)
    assert (found.stop and found.stop.kind) == stop
    if found.words:  # a server that refuses words, too, ends the question
        assert outcomes(read(output, 0, words=True))[0] == ("a", "failed", Decimal(0), True)


def test_what_befalls_a_whole_batch_is_no_fault_of_a_question() -> None:
    """One refused line among others is the row's; all of them are the run's, and not final."""
    held = [HeldSlot("l-1", n, f"q{n}", Decimal(1)) for n in range(16)]

    def reading(good: int, bad: tuple[int, Any]) -> BatchReading:
        text = completion('{"verdict": "A"}', USAGE)
        lines = [text.replace(b'"a"', f'"q{n}"'.encode()) for n in range(good)]
        lines += [line(f"q{n}", *bad) for n in range(good, 16)]
        return ResultReader(MAKER).read(
            held, {}, read_results(b"".join(lines), b""), {},
            billed=None, at=1.0, words=False,
        )  # fmt: skip

    some = reading(1, (403, DENIED))
    assert {(a.outcome, a.final) for a in some.answers[1:]} == {(Outcome.REFUSED, True)}
    assert some.usable and some.stop is None and not some.free
    none = reading(0, (403, DENIED))
    assert none.stop is not None and len(none.free) == 16 and not none.answers
    odd = reading(0, (400, {"error": {"message": "no such endpoint"}}))
    assert not any(answer.final for answer in odd.answers)
    assert odd.useless == ["HTTP 400: no such endpoint"] * 16 and len(odd.ended) == 16
