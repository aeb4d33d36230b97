"""How a run in batches begins: its first questions are asked online, one by one, at full price.

What goes wrong for the first ones would go wrong for a whole batch, a day later: a parameter that
the server refuses, a limit that is too small, bills above the lease. The rules are those of a run
that is online from its beginning to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ray_judge.errors import RayJudgeError
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.escalation.online.servers import GovernorServer
from ray_judge.escalation.questions import QuestionMaker
from ray_judge.escalation.session import POLL_S, Session
from ray_judge.records import Chunk, Outcome

UNPAID = (Outcome.DENIED_BUDGET, Outcome.PENDING)


class FirstQuestions:
    """Asks the first questions of a session; `proven` once the server has given a verdict."""

    def __init__(
        self,
        maker: QuestionMaker,
        chunks: Mapping[str, Chunk],
        governor: GovernorServer,
        make_asker: Callable[[Any], Any],
    ) -> None:
        """`make_asker`: a server of one request at a time (`AskerServer`) under this governor."""
        self._maker, self._chunks = maker, chunks
        self._governor, self._make_asker = governor, make_asker
        self.proven = self.words = False
        self.answered = False
        """Whether earlier sessions had verdicts, maybe to questions in words."""

    async def ask(self, session: Session, ledger: Ledger) -> None:
        """Ask until one answer is a verdict, or all questions were asked or cannot be paid.

        Raises what ends a run whose questions cannot be answered.
        """
        self._governor.take(ledger, proven=self.answered)
        asker = self._make_asker(self._governor)
        _raise(await asker.open())
        try:
            unpaid = await self._ask(session, asker)
        except RayJudgeError:
            await asker.close()
            raise
        await asker.close()
        if not self.proven:
            session.settle(unpaid)

    async def _ask(self, session: Session, asker: Any) -> dict[str, Outcome]:
        """Ask one by one; what cannot be paid at the full price."""
        unpaid: dict[str, Outcome] = {}
        for waiting in list(session.waiting.values()):
            if session.stopping:
                break
            (question,) = self._maker.bodies([waiting], self._chunks)
            asking = asyncio.ensure_future(asker.ask([question], session.in_vain))
            while not (await asyncio.wait([asking], timeout=POLL_S))[0]:
                session.report({**await self._governor.state(), **session.figures()})
            found = _raise(asking.result())
            if (outcome := found[question.key]) in UNPAID:
                unpaid |= found
                continue
            session.settle(found)
            self.words = asker.client.in_words
            self.proven = outcome is Outcome.RESOLVED
            if self.proven:
                break
        return unpaid


def _raise(value: Any) -> Any:
    if isinstance(value, RayJudgeError):
        raise value
    return value
