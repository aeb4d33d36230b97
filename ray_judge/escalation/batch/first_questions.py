"""How a run in batches begins: its first questions are asked online, one by one, at full price.

What goes wrong for the first ones would go wrong for a whole batch, a day later: a parameter that
the server refuses, a limit that is too small, bills above the lease. The rules are those of a run
that is online from its beginning to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from ray_judge.errors import RayJudgeError
from ray_judge.escalation.books.ledger import Ledger
from ray_judge.escalation.online.limiter import FIRST
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
        """Ask until one answer is a verdict, no money is left, or all of the first ones failed.

        Raises what ends a run whose questions cannot be answered.
        """
        self._governor.take(ledger, proven=self.answered)
        asker = self._make_asker(self._governor)
        _raise(await asker.open())
        try:
            await self._ask(session, asker)
        except RayJudgeError:
            await asker.close()
            raise
        await asker.close()

    async def _ask(self, session: Session, asker: Any) -> None:
        for waiting in list(islice(session.waiting.values(), FIRST + 1)):
            (question,) = self._maker.bodies([waiting], self._chunks)
            asking = asyncio.ensure_future(asker.ask([question], session.in_vain))
            while not (await asyncio.wait([asking], timeout=POLL_S))[0]:
                session.report({**await self._governor.state(), **session.figures()})
            found = _raise(asking.result())
            outcome = found[question.key]
            if outcome in UNPAID:
                return
            session.settle(found)
            session.waiting.pop(question.key, None)
            self.words = asker.client.in_words
            self.proven = outcome is Outcome.RESOLVED
            if self.proven or session.stopping:
                return


def _raise(value: Any) -> Any:
    if isinstance(value, RayJudgeError):
        raise value
    return value
