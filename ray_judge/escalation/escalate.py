"""Phase B: every routed question is asked once, by whichever actor is free.

A *session* is one governor and its askers. Whatever dies in it (an actor, a node) ends the
session; the next one starts as after a crash of the whole run, from the ledger and the journal.
So there is one way of recovering, and it is used every time.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import polars as pl
import ray
from ray.exceptions import RayActorError, RayTaskError

from ray_judge.cluster import alone, our_error
from ray_judge.config import RunConfig, api_key
from ray_judge.errors import EscalationError, LedgerFenced, RayJudgeError
from ray_judge.escalation.batch.courier import ask_in_batches
from ray_judge.escalation.batch.notices import BatchNotices
from ray_judge.escalation.books.journal import load_journal
from ray_judge.escalation.books.ledger import recorded
from ray_judge.escalation.books.places import (
    compact_journal,
    journal_name,
    journal_storage,
    ledger_name,
    ledger_storage,
    month_is_full,
)
from ray_judge.escalation.feed import Feed, Unit
from ray_judge.escalation.online.actors import AskerActor, Secret
from ray_judge.escalation.online.governor_actor import AskerDied, GovernorActor, GovernorDied
from ray_judge.escalation.pricing import price_of
from ray_judge.escalation.turn import Turn
from ray_judge.records import Answer
from ray_judge.run.directory import Plan, RunDirectory
from ray_judge.storage.local import Missing

PER_ASKER = 64
"""Requests in flight that one asker process serves."""
MOST_ASKERS = 8
BARREN_SESSIONS = 3
"""So many sessions in a row that died without a single new answer end the run."""
POLL_S = 0.25

log = logging.getLogger(__name__)
Progress = Callable[[Mapping[str, Any]], None]


@dataclass
class Answers:
    """What the journal holds for a run when phase B is over.

    `final`: the answers, whoever paid for them. `cost`: question key → dollars of this run's own
    attempts. `requests`: how many those were.
    """

    final: Mapping[str, Answer]
    cost: Mapping[str, Decimal]
    requests: int
    settled_usd: Decimal
    unproven_usd: Decimal
    """Promised to requests whose fate a crash hid: counted as spent."""

    def paid(self) -> dict[str, tuple[Answer | None, Decimal]]:
        """Question key → what this run's attempts at it cost, and its final answer.

        A question that was paid for and then denied by the cap has no answer, but has a cost.
        """
        return {key: (self.final.get(key), cost) for key, cost in self.cost.items()}


def check_strong(config: RunConfig) -> None:
    """Refuse what can be known to fail before anything is sent: price and key. ConfigError."""
    strong = config.strong
    price_of(strong.model, strong.price.model_dump(exclude_none=True) if strong.price else None)
    if strong.max_cost_usd > 0:
        api_key(strong)


def check_books(config: RunConfig) -> None:
    """Refuse a ledger or a journal that cannot be read, before the local judge begins its work.

    Raises CorruptedError for what is damaged or was written by a newer version. What another run
    that shares them tidies away meanwhile is no damage.
    """
    with contextlib.suppress(LedgerFenced, Missing):
        recorded(*ledger_storage(config), run=ledger_name(config))
        load_journal(*journal_storage(config))


def escalate(
    config: RunConfig, plan: Plan, routed: Iterable[pl.DataFrame], progress: Progress
) -> Answers:
    """Ask every routed question that the journal does not answer yet.

    `routed` may still be growing (phase A goes on): its frames are taken as they come. Raises
    PausedError with everything kept, EscalationError, StorageError.
    """
    if config.strong.mode == "batch":
        ask_in_batches(config, plan, routed, progress)
        compact_journal(config)
        return answers_of(config)
    feed = Feed(routed, {chunk.name: chunk for chunk in plan.chunks()})
    try:
        _ask_all(config, plan, feed, progress)
    except RayJudgeError:
        feed.stop()  # phase A must not go on behind the back of whoever takes the lock next
        raise
    compact_journal(config)
    return answers_of(config)


def _ask_all(config: RunConfig, plan: Plan, feed: Feed, progress: Progress) -> None:
    """Session after session, until one ends with nothing left to ask."""
    turn = Turn(config, progress)
    try:
        _ask_in_turn(config, plan, feed, progress, turn)
    finally:
        turn.give_back()


def _ask_in_turn(config: RunConfig, plan: Plan, feed: Feed, progress: Progress, turn: Turn) -> None:
    barren, before = 0, -1
    while True:
        on_file = OnFile.look(config)
        barren = barren + 1 if len(on_file.answered) == before else 0
        before = len(on_file.answered)
        session = _Session(config, plan, feed, turn, on_file)
        try:
            session.run(progress)
        except (RayActorError, GovernorDied, AskerDied) as error:
            log.warning("an actor of phase B died (%s): starting again from the journal", error)
            if barren >= BARREN_SESSIONS:
                raise EscalationError(f"phase B's actors keep dying: {error}") from None
        else:
            return
        finally:
            session.end()


def answers_of(config: RunConfig) -> Answers:
    """Read the run's answers back from the journal, and its dollars from the ledger."""
    journal, me = load_journal(*journal_storage(config)), journal_name(config)
    costs = dict.fromkeys(journal.answers, Decimal(0))  # what others paid for costs nothing here
    ours = [attempt for attempt in journal.rows if attempt.run == me]
    for attempt in ours:
        costs[attempt.key] = costs.get(attempt.key, Decimal(0)) + attempt.cost_usd
    settled, unproven = recorded(*ledger_storage(config), run=ledger_name(config))
    return Answers(journal.answers, costs, len(ours), settled, unproven)


@dataclass(frozen=True)
class OnFile:
    """What is known of questions before they are asked: final when the ledger is this session's."""

    answered: Collection[str]
    unusable: Mapping[str, int]
    """Key → how many of its re-asks earlier sessions have used up."""
    elsewhere: Mapping[str, str]
    """Key → notice of another run's batch that asks it (see `BatchNotices.others`)."""

    @classmethod
    def look(cls, config: RunConfig) -> OnFile:
        """Read it all. Raises StorageError, CorruptedError."""
        elsewhere = BatchNotices(config).others()  # before the journal
        journal = load_journal(*journal_storage(config))
        return cls(set(journal.answers), journal.unusable(), elsewhere)

    def free(self, key: str) -> bool:
        """Whether a question is this run's to ask."""
        return key not in self.answered and key not in self.elsewhere


@dataclass
class _Session:
    """One governor and its askers, from first lease to last settlement."""

    config: RunConfig
    plan: Plan
    feed: Feed
    turn: Turn
    on_file: OnFile
    askers: list[Any] = field(default_factory=list)
    governor: Any = None
    denied: int = 0
    left: int = 0
    """Questions for which this month's cap has no money."""
    _failure: RayJudgeError | None = None

    def run(self, progress: Progress) -> None:
        """Ask until nothing is left.

        After a failure nothing new is handed out, but what is in flight is waited for: an
        answer that was paid for is in the journal before anybody is sent home.
        """
        position = 0
        waiting: list[Unit] = []
        running: dict[Any, int] = {}
        over = False
        while not (over and not waiting and not running):
            over = self._failure is not None or self._poll()
            waiting = [] if self._failure else waiting + self._unasked(position)
            if waiting and self.turn.take(meanwhile=self.feed.poll):
                waiting = self._look_again()  # others may have asked the same meanwhile
            if waiting and self.governor is None:
                self._open()
                waiting = self._look_again()  # who owned the ledger until now can send no more
            position = len(self.feed.units)
            self._submit(waiting, running)
            self._collect(running, wait=not over)
            if self.governor is not None and self._failure is None:
                self._tell(progress)
        if self._failure is not None and (
            self.governor is None or isinstance(self._failure, GovernorDied | AskerDied)
        ):
            raise self._failure
        if self.governor is not None:  # else nothing to ask: no lease, no owner, nothing changed
            ray.get([asker.close.remote() for asker in self.askers])
            final: dict[str, Any] = ray.get(self.governor.close.remote())
            if self._failure is not None:
                raise self._failure
            progress({**final, "denied": self.denied})
        if self.left:
            raise month_is_full(self.config, self.left)
        if elsewhere := self._asked_elsewhere():
            raise BatchNotices(self.config).asked(elsewhere)

    def end(self) -> None:
        """Make sure that nobody of this session can send any more."""
        for actor in (*self.askers, *([self.governor] if self.governor else [])):
            ray.kill(actor, no_restart=True)

    def _open(self) -> None:
        config, strong = self.config, self.config.strong
        RunDirectory(config.output).reopen()  # a shard that is scored knows less than is to come
        governor: Any = GovernorActor
        self.governor = governor.remote(config, alone=alone())
        opened = self.governor.open.remote()  # the askers start in the meantime
        count = max(1, min(MOST_ASKERS, -(-strong.concurrency // PER_ASKER)))
        key = Secret(api_key(strong) if strong.max_cost_usd > 0 else "none")
        series = secrets.token_hex(4)
        asker: Any = AskerActor
        for number in range(count):
            in_flight = strong.concurrency // count + (number < strong.concurrency % count)
            name = f"{series}-{number}"
            self.askers.append(
                asker.remote(config, self.plan.columns, key, self.governor, name, in_flight)
            )
        failure = ray.get(opened)
        if failure is not None:
            raise failure

    def _look_again(self) -> list[Unit]:
        """Read what is on file anew; give what is to be asked of all units so far."""
        self.on_file = OnFile.look(self.config)
        return self._unasked(0)

    def _unasked(self, position: int) -> list[Unit]:
        """What is to be asked of the units from `position` on."""
        free = self.on_file.free
        units = (
            Unit(unit.chunk, tuple(ask for ask in unit.asks if free(ask[1])))
            for unit in self.feed.units[position:]
        )
        return [unit for unit in units if unit.asks]

    def _asked_elsewhere(self) -> dict[str, str]:
        known = self.on_file
        keys = [key for unit in self.feed.units for _, key, _ in unit.asks]
        return {
            key: known.elsewhere[key]
            for key in keys
            if key in known.elsewhere and key not in known.answered
        }

    def _submit(self, waiting: list[Unit], running: dict[Any, int]) -> None:
        """Keep two units with every asker: the next one starts while the last one's tail ends."""
        load = [0] * len(self.askers)
        for number in running.values():
            load[number] += 1
        while waiting and min(load, default=2) < 2:
            number = load.index(min(load))
            unit = waiting.pop(0)
            used_up = self.on_file.unusable
            unusable = {key: used_up[key] for _, key, _ in unit.asks if key in used_up}
            reference = self.askers[number].ask.remote(unit.chunk, unit.asks, unusable)
            running[reference] = number
            load[number] += 1

    def _collect(self, running: dict[Any, int], *, wait: bool) -> None:
        if not running:
            if wait:
                threading.Event().wait(POLL_S)
            return
        done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
        for reference in done:
            del running[reference]
            try:
                outcome = ray.get(reference)
            except RayTaskError as error:
                outcome = our_error(error)
            except RayActorError:
                outcome = AskerDied("an asker died")
            if not isinstance(outcome, RayJudgeError):
                self.denied += sum(value == "denied_budget" for value in outcome.values())
                self.left += sum(value == "pending" for value in outcome.values())
            else:
                self._fail(outcome)

    def _poll(self) -> bool:
        """Look for more work; an error of phase A ends this session in good order, too."""
        try:
            return self.feed.poll()
        except RayJudgeError as error:
            self._fail(error)
            return True

    def _fail(self, failure: RayJudgeError) -> None:
        """Keep the first failure, and let nobody send anything new."""
        if self._failure is None:
            self._failure = failure
            if self.governor is not None:
                with contextlib.suppress(RayActorError):  # dead, it lets nobody send either
                    ray.get(self.governor.pause.remote(str(failure)))

    def _tell(self, progress: Progress) -> None:
        try:
            state: dict[str, Any] = ray.get(self.governor.state.remote())
        except RayActorError:
            self._fail(GovernorDied("the governor died"))
        else:
            progress({**state, "denied": self.denied})
