"""Batch mode: the questions go out as files, at half the price, and come back within a day.

One batch is one lease whose slots are its requests. Each step is durable before the next:

    intent → lease → upload → creating → CREATE → submitted → ended → journal → ledger → read
    └───── given back ─────┘└─── looked for ───┘└────────── read, or read again ─────────┘
    (where runs share a journal, a notice says from the lease until `read` what is being asked)

Whoever comes after a crash does with each batch what stands below its last durable step, so no
batch is created twice, none is forgotten, and no answer counts twice. What is not obvious about
that stands in docs/decisions/0020-batch-mode.md.

Why two processes cannot create one batch each (on object stores; on a local disk the run's lock is
the kernel's): `creating` is written, and *then* the ledger makes sure that it has no newer owner.
A newer owner reads the records after it claimed the ledger, so it sees `creating` and looks for
the batch; a process that has lost the ledger stops before the call, or finds its file deleted.
The same reading shows it every batch that it does not know yet, and whose questions are not its to
ask: so it is done at each claim, before anything is sent (`_claim`).
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from ray_judge.config import RunConfig, api_key
from ray_judge.errors import EscalationError, PausedError, RayJudgeError
from ray_judge.escalation.batch.batch_books import BatchBooks
from ray_judge.escalation.batch.notices import BatchNotices
from ray_judge.escalation.batch.provider import QUEUE_FULL, Provider, View, explained, gone
from ray_judge.escalation.batch.queue import BatchQueue
from ray_judge.escalation.batch.records import (
    BatchFolder,
    BatchState,
    Request,
    RequestReader,
    Stage,
    Wanted,
    wanted,
)
from ray_judge.escalation.batch.results import History, Result, ResultReader, read_results
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.escalation.books.places import month_is_full
from ray_judge.escalation.client import Kind, RequestFailed
from ray_judge.escalation.online.asker import LOST_TRIES, TRIES
from ray_judge.escalation.pricing import price_of
from ray_judge.escalation.turn import Turn
from ray_judge.run.columns import Columns
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.storage.local import open_storage

STRIKES = 3
"""So many batches in a row that the provider refused as a whole end the run."""

Progress = Callable[[Mapping[str, Any]], None]


def ask_in_batches(
    config: RunConfig, plan: Plan, routed: Iterable[pl.DataFrame], progress: Progress
) -> None:
    """Ask every routed question that the journal does not answer yet, once all are known.

    Raises PausedError with batches pending (the next `score` goes on), ProviderDown,
    EscalationError, StorageError; whatever was read by then is in the journal.
    """
    frames = list(routed)
    chunks = {chunk.name: chunk for chunk in plan.chunks()}
    questions = wanted(pl.concat(frames), chunks) if frames else []
    session = BatchSession(config, plan.columns, questions, progress)
    try:
        session.run()
    except RayJudgeError:
        with contextlib.suppress(RayJudgeError):  # the first error is the one to be told
            session.close()
        raise
    session.close()


class BatchSession:
    """One process's work on a run's batches. After a crash at any point another one goes on."""

    def __init__(
        self,
        config: RunConfig,
        columns: Columns,
        questions: Sequence[Wanted],
        progress: Progress = lambda figures: None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        checkpoint: Callable[[str], None] = lambda step: None,
    ) -> None:
        """Take the questions in the order in which they deserve the money.

        `clock` gives Unix seconds. `checkpoint` is called behind every step with its name: tests
        let a crash happen there.
        """
        self._config, self._strong = config, config.strong
        override = self._strong.price
        price = price_of(
            self._strong.model, override.model_dump(exclude_none=True) if override else None
        )
        self._progress, self._clock, self._sleep = progress, clock, sleep
        self._checkpoint = checkpoint
        self._folder = BatchFolder(open_storage(config.output))
        self._notices = BatchNotices(config)
        reader = RequestReader(config, columns, price)
        self._queue = BatchQueue(self._strong.batch, questions, reader)
        self._keys = [question.key for question in questions]
        self._results = ResultReader(config, price, tries=TRIES, lost_tries=LOST_TRIES)
        self._pending: dict[str, BatchState] = {}
        turn = Turn(config, progress, clock=clock, sleep=sleep)
        self._books = BatchBooks(config, self._owners, clock, checkpoint, turn)
        self._connection: Provider | None = None
        self._completed: Counter[str] = Counter()
        self._ended_at: dict[str, float] = {}
        self._history = History()
        self._known: set[str] = set()
        self._claimed: Ledger | None = None
        """The ledger that this process owned when it last read the records."""
        self._strikes = self._denied = 0
        self._stop: Result | None = None

    def run(self) -> None:
        """Ask until every question is answered or denied. Raises as `ask_in_batches` does."""
        answered = set(self._books.journal().answers)
        noticed = self._notices.mine()
        states = self._folder.states()
        stages = {state.id: state.stage for state in states if not state.over}
        for batch in noticed - stages.keys():
            self._notices.take_down(batch)  # its process died before it could
        if not stages and answered.issuperset(self._keys):
            return  # nothing to ask: no lease, no owner, nothing changed
        RunDirectory(self._config.output).reopen()  # a scored shard knows less than is to come
        self._queue.fill(answered)
        if set(stages.values()) <= {Stage.SUBMITTED}:
            self._take_over(states)  # they are only to be waited for: that needs no turn
        else:
            self._claim()
        begun = self._clock()
        while True:
            self._collect()
            self._submit()
            if not self._pending and not self._queue:
                break
            rest_s = begun + self._strong.batch.wait_s - self._clock()
            if rest_s <= 0:
                raise PausedError(self._waiting_for())
            self._books.let_go()
            self._show()
            self._sleep(min(self._strong.batch.poll_s, rest_s))
        if self._books.left:
            raise month_is_full(self._config, self._books.left)
        if self._queue.elsewhere:
            raise self._notices.asked(self._queue.elsewhere)

    def close(self) -> None:
        """Let go of ledger, journal and connections, in good order."""
        if self._connection is not None:
            self._connection.close()
        self._books.close()
        self._show()

    # --- continuing what another process began ---

    def _claim(self) -> None:
        """Own the ledger. Its new owner reads the records, for those who can add none any more."""
        ledger = self._books.ledger()
        if ledger is not self._claimed:
            self._claimed = ledger
            self._take_over(self._folder.states())
            self._leave_to_others()

    def _take_over(self, states: Iterable[BatchState]) -> None:
        """Go on with the batches that this process does not know yet."""
        new = [state for state in states if state.id not in self._known]
        self._known.update(state.id for state in new)
        self._remember(new)
        self._recover([state for state in new if not state.over])
        for state in new:
            if state.id in self._pending:
                self._queue.forget(ask.key for ask in self._folder.asked(state.id))

    def _leave_to_others(self) -> None:
        """Do not ask what was answered meanwhile, or is in a batch of another run."""
        asked = self._notices.others()  # before the journal
        self._queue.forget(self._books.journal().answers)
        self._queue.set_aside(asked)

    def _remember(self, states: Sequence[BatchState]) -> None:
        """Keep what the run's earlier batches say about the questions that are still open."""
        for state in states:
            if state.words or state.refused:
                self._queue.ask_in_words()
            if state.lease is not None:
                self._history.leased(state.lease)
            if state.stage is Stage.READ and state.unanswered:
                self._history.not_run(self._folder.asked(state.id), state.unanswered)

    def _recover(self, states: Sequence[BatchState]) -> None:
        for state in states:
            if state.stage is Stage.SUBMITTED:
                self._wait_for(state)
            elif state.stage is Stage.CREATING:
                self._find(state)
            else:
                self._abandon(state)

    def _find(self, state: BatchState) -> bool:
        """Look for a batch whose creation nobody saw; False: there is none, and never will be."""
        try:
            batch = self._provider().find(state)
        except RequestFailed as failure:  # still unknown: its money stays where it is
            raise explained(failure, self._strong) from None
        if batch is None:
            self._abandon(state)
            return False
        self._created(state, batch)
        return True

    def _created(self, state: BatchState, batch: str) -> None:
        self._checkpoint("created")
        self._wait_for(self._step(state, Stage.SUBMITTED, batch=batch))

    def _wait_for(self, state: BatchState) -> None:
        self._pending[state.id] = state
        self._books.adopt(state.actor)

    def _abandon(self, state: BatchState) -> None:
        """Close the record of a batch of which nothing ran, nor will; its money comes back."""
        self._books.give_back(state.actor)
        self._checkpoint("released")
        self._step(state, Stage.ABANDONED)

    # --- sending ---

    def _submit(self) -> None:
        """Send what money, limits and the provider's queue have room for."""
        if self._config.strong.books and (self._queue or self._queue.elsewhere):
            self._leave_to_others()  # where nothing is left for us we need no turn
        if not self._queue.open(self._clock()):
            return
        self._claim()
        while self._queue.open(self._clock()):
            enqueued = sum(state.tokens for state in self._pending.values())
            requests = self._queue.take(enqueued if self._pending else None)
            costs = [request.asked.max_cost_usd for request in requests]
            denied, end = self._books.affordable(costs, pending=bool(self._pending))
            self._denied += denied
            self._queue.put_back(request.asked.key for request in requests[end:])
            if denied < end:
                if not self._send(requests[denied:end]):
                    self._queue.put_back(request.asked.key for request in requests[denied:end])
            elif not denied:
                return  # no room, or no money, until a pending batch has ended

    def _send(self, requests: Sequence[Request]) -> bool:
        """Submit one batch; False: it was not created, and its questions are still to be asked."""
        asked = [request.asked for request in requests]
        state = BatchState(
            id=f"rj-{secrets.token_hex(12)}",
            requests=len(asked),
            tokens=sum(request.tokens for request in requests),
            at=self._clock(),
            words=self._queue.words,
        )
        self._folder.begin(state, asked)
        self._known.add(state.id)
        self._checkpoint("intent")
        ledger = self._books.ledger()
        lease = ledger.grant(state.actor, [ask.max_cost_usd for ask in asked])
        self._checkpoint("granted")
        if lease.slots < len(asked):  # a month began between looking and granting
            self._abandon(state)
            return False
        self._history.leased(lease.id)
        state = self._step(state, Stage.LEASED, lease=lease.id)
        self._notices.put_up(state.id, [ask.key for ask in asked])
        try:
            file = self._provider().upload(state, b"".join(request.line for request in requests))
            self._checkpoint("stored")
            state = self._step(state, Stage.UPLOADED, file=file)
            state = self._step(state, Stage.CREATING)
            batch = self._provider().create(state, ledger.commit)
        except RequestFailed as failure:
            self._refused(state, failure)
            return False
        if batch is not None:
            self._created(state, batch)
            return True
        self._checkpoint("unknown")
        if self._find(state):
            return True
        self._strike("the provider did not answer their creation, and does not list them")
        return False

    def _step(self, state: BatchState, stage: Stage, **found: str) -> BatchState:
        state = replace(state, stage=stage, **found)  # type: ignore[arg-type]
        self._folder.save(state)
        if state.over:
            self._notices.take_down(state.id)
        self._checkpoint(stage.value)
        return state

    def _refused(self, state: BatchState, failure: RequestFailed) -> None:
        """The provider said no, so nothing was created. Raises unless smaller batches may help."""
        self._abandon(state)
        if failure.code != QUEUE_FULL:
            raise explained(failure, self._strong)
        self._queue_full(state)

    def _queue_full(self, state: BatchState) -> None:
        others = sum(other.tokens for other in self._pending.values())
        self._queue.full(state.tokens + others, self._clock())

    def _strike(self, why: str) -> None:
        self._strikes += 1
        if self._strikes >= STRIKES:
            raise EscalationError(f"{STRIKES} batches in a row were refused: {why}")

    # --- reading ---

    def _collect(self) -> None:
        """Read every batch that has ended; only then say what one of them found for all."""
        for state in list(self._pending.values()):
            try:
                view = self._provider().look(str(state.batch))
                self._completed[state.id] = view.completed or 0
                if self._ready(state, view):
                    self._read(state, view)
            except RequestFailed as failure:
                record = f"{self._config.output}/batches/{state.id}.json"
                raise gone(failure, self._strong, state.batch, record) from None
        if self._stop is not None:
            kind = self._stop.kind or Kind.RUN
            raise explained(RequestFailed(kind, self._stop.reason), self._strong)

    def _ready(self, state: BatchState, view: View) -> bool:
        """Whether the batch has ended, and its answers can be expected to be there."""
        if view.status not in ("validating", "failed"):
            self._strikes = 0
            self._queue.accepted()
        if not view.ended:
            return False
        ended_at = self._ended_at.setdefault(state.id, self._clock())
        late = self._clock() - ended_at >= self._strong.batch.patience_s
        return late or not view.completed or view.output_file is not None

    def _read(self, state: BatchState, view: View) -> None:
        """Take an ended batch to the journal and the ledger; what it lacks waits again."""
        asked = self._folder.asked(state.id)
        if view.nothing_ran:
            self._abandon(state)
            del self._pending[state.id]
            self._queue.put_back(ask.key for ask in asked)
            if QUEUE_FULL in view.codes:
                self._queue_full(state)
            else:
                self._strike(", ".join(view.codes) or "no reason given")
            return
        results = read_results(*self._provider().results(view))
        self._checkpoint("downloaded")
        journal = self._books.journal()
        past = self._history.before(state, journal.rows)
        reading = self._results.read(state, asked, results, past, view.billed, self._clock())
        self._books.keep(reading.answers, journal.paid)
        self._books.settle(str(state.lease), reading.answers, reading.free, journal.paid)
        state = replace(state, unanswered=tuple(reading.unanswered), refused=reading.refused)
        self._step(state, Stage.READ)
        del self._pending[state.id]
        self._history.not_run(asked, reading.unanswered)
        if reading.refused:
            self._queue.ask_in_words()
        final = {answer.key for answer in reading.answers if answer.final}
        self._queue.put_back(ask.key for ask in asked if ask.key not in final)
        self._stop = self._stop or reading.stop

    # --- parts ---

    def _owners(self) -> list[str]:
        return [state.actor for state in self._pending.values()]

    def _provider(self) -> Provider:
        if self._connection is None:
            key = api_key(self._strong)
            self._connection = Provider(self._strong, key, clock=self._clock, sleep=self._sleep)
        return self._connection

    def _show(self) -> None:
        asked = sum(state.requests for state in self._pending.values())
        denied = self._denied - self._books.left
        more = {"denied": denied, "waiting": len(self._queue), "in_batches": asked}
        self._progress({**self._books.figures(), **more})

    def _waiting_for(self) -> str:
        total = sum(state.requests for state in self._pending.values())
        done = sum(self._completed[batch] for batch in self._pending)
        more = f", {len(self._queue)} questions wait for a batch" if self._queue else ""
        return f"batch pending: {done} of {total} requests done{more}; run again to go on"
