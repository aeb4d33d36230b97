"""The provider as batch mode sees it: calls that are tried again, and a lost batch that is found.

A batch must not be created twice, and the API has no idempotency key. What stands in for one:

* The batch carries our own id in its metadata, and the list of batches shows it.
* A batch begins from an input file. Once that file is deleted no creation can succeed, be it one
  that still travels or one of a process that wakes up late: deleting it is the fence.

So after a creation whose fate is unknown: look in the list; if it is not there, delete the input
file, and look again for `patience_s`, since a list may lag behind. Only then is it given up, and
its questions go into another batch, under another id, from another file.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity

from ray_judge.config import StrongConfig
from ray_judge.errors import EscalationError, RayJudgeError
from ray_judge.escalation.books.batches import BatchRecord
from ray_judge.escalation.client import BatchClient
from ray_judge.escalation.online.governor import Clock
from ray_judge.escalation.online.limiter import retry_after_s
from ray_judge.failures import Fault, Kind, RequestFailed, run_error

METADATA = "ray_judge_submission"
LOOKS = 5
"""How often the list is read again within `patience_s`."""
CLOCKS_S = 86_400.0
"""More than the clocks of provider and client differ: where looking through the list ends."""
ENDS = frozenset({"completed", "failed", "expired", "cancelled"})
QUEUE_FULL = "token_limit_exceeded"
_T = TypeVar("_T")


def _again(failure: BaseException) -> bool:
    """Whether a call that changes nothing, or may be made twice, is tried again."""
    return isinstance(failure, RequestFailed) and failure.meaning.fault is Fault.PROVIDER


def _not_created(failure: BaseException) -> bool:
    """Whether a creation surely did not happen, and may succeed the next time."""
    if not isinstance(failure, RequestFailed) or failure.code == QUEUE_FULL:
        return False
    return failure.kind is Kind.RATE_LIMIT or failure.unreachable


_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=60)


def _wait(state: tenacity.RetryCallState) -> float:
    """As long as the provider says, and no less than the backoff."""
    failure = state.outcome.exception() if state.outcome else None
    headers = failure.headers if isinstance(failure, RequestFailed) else {}
    return max(_BACKOFF(state), retry_after_s(headers, time.time()) or 0.0)


RETRY = tenacity.AsyncRetrying(retry=tenacity.retry_if_exception(_again), wait=_wait, reraise=True)
"""What is tried again in batch mode; copied per call with the run's patience and clock."""


@dataclass(frozen=True, slots=True)
class View:
    """A batch as the provider describes it.

    `completed`: requests that it says it answered; None when it does not say. `codes`: why the
    whole batch failed. `ended_at`: Unix seconds, where it says.
    """

    status: str
    output_file: str | None
    error_file: str | None
    completed: int | None
    codes: tuple[str, ...]
    ended_at: float | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> View:
        """Read the API's batch object."""
        counts = document.get("request_counts")
        completed = counts.get("completed") if isinstance(counts, dict) else None
        errors = document.get("errors")
        data = errors.get("data") if isinstance(errors, dict) else None
        times = [document.get(f"{status}_at") for status in sorted(ENDS)]
        codes = [str(e.get("code")) for e in data or [] if isinstance(e, dict)]
        return cls(
            status=str(document.get("status")),
            output_file=document.get("output_file_id") or None,
            error_file=document.get("error_file_id") or None,
            completed=completed if isinstance(completed, int) else None,
            codes=tuple(dict.fromkeys(codes)),
            ended_at=next((float(at) for at in times if isinstance(at, int | float)), None),
        )

    @property
    def ended(self) -> bool:
        return self.status in ENDS

    @property
    def nothing_ran(self) -> bool:
        """Whether the batch was refused as a whole."""
        files = self.output_file or self.error_file
        return self.status == "failed" and not files and not self.completed

    @property
    def billed(self) -> int | None:
        """How many requests were answered, where a request without a result need not have run.

        A batch that completed or expired names every request in one of its files, so one that is
        in neither counts as answered (None). A cancelled one just ends.
        """
        return None if self.status in ("completed", "expired") else self.completed


class Provider:
    """Calls about batches. What passes is waited for; RequestFailed is raised for what does not."""

    def __init__(
        self,
        strong: StrongConfig,
        client: BatchClient,
        clock: Clock,
        report: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._strong, self._client, self._clock, self._report = strong, client, clock, report

    async def close(self) -> None:
        await self._client.close()

    async def upload(self, record: BatchRecord, content: bytes) -> str:
        """Store the input file. One whose answer was lost stays behind, unused and not billed."""
        return await self._tried(lambda: self._client.upload(f"{record.id}.jsonl", content))

    async def create(self, record: BatchRecord, fence: Callable[[], Awaitable[None]]) -> str | None:
        """Begin the batch, once; give its id, or None when nobody knows whether it was created.

        Raises RequestFailed when it certainly was not. `fence` is called before every try, and
        raises when this process may not create any more.
        """

        async def once() -> dict[str, Any]:
            await fence()
            return await self._client.create(str(record.file), {METADATA: record.id})

        try:
            return str((await self._tried(once, _not_created))["id"])
        except RequestFailed as failure:
            # A rate limit, or a queue that is full, is a plain no.
            busy = failure.kind is Kind.RATE_LIMIT or failure.unreachable
            if busy or failure.meaning.fault is not Fault.PROVIDER:
                raise
            return None

    async def find(self, record: BatchRecord) -> str | None:
        """Look for a batch that may have been created; None: it was not, and never will be."""
        found = await self._listed(record)
        if found is not None:
            return found
        await self._fence(record)
        pause_s = self._strong.batch.patience_s / LOOKS
        for _ in range(LOOKS):
            await self._clock.sleep(pause_s)
            found = await self._listed(record)
            if found is not None:
                return found
        return None

    async def look(self, batch: str) -> View:
        return View.of(await self._tried(lambda: self._client.retrieve(batch)))

    async def results(self, view: View) -> tuple[bytes, bytes]:
        """Read the output and the error file; a file that there is not is empty."""
        return await self._download(view.output_file), await self._download(view.error_file)

    async def _download(self, file: str | None) -> bytes:
        return await self._tried(lambda: self._client.download(str(file))) if file else b""

    async def _fence(self, record: BatchRecord) -> None:
        """Delete the input file: from then on no batch can begin from it."""
        try:
            await self._tried(lambda: self._client.delete(str(record.file)))
        except RequestFailed as failure:
            if failure.status != 404:  # gone already: just as good
                raise

    async def _listed(self, record: BatchRecord) -> str | None:
        after: str | None = None
        while True:
            batches, more = await self._tried(lambda after=after: self._client.page(after))  # type: ignore[misc]
            for batch in batches:
                if (batch.get("metadata") or {}).get(METADATA) == record.id:
                    return str(batch["id"])
            oldest = batches[-1] if batches else {}
            if not more or not batches or oldest.get("created_at", 0) < record.at - CLOCKS_S:
                return None
            after = str(oldest["id"])

    async def _tried(
        self,
        call: Callable[[], Awaitable[_T]],
        again: Callable[[BaseException], bool] = _again,
    ) -> _T:
        begun = self._clock.now()

        def enough(_: tenacity.RetryCallState) -> bool:
            return self._clock.now() - begun >= self._strong.give_up_after_s

        def tell(state: tenacity.RetryCallState) -> None:
            why = state.outcome.exception() if state.outcome else None
            self._report({"waits": f"the strong judge, asked about a batch: {why}"})

        policy = RETRY.copy(
            retry=tenacity.retry_if_exception(again),
            stop=enough,
            sleep=self._clock.sleep,
            before_sleep=tell,
        )
        async for attempt in policy:
            with attempt:
                return await call()
        raise AssertionError("the last failure is raised again")


def lost_batch_error(
    failure: RequestFailed, strong: StrongConfig, batch: str | None, record: str
) -> RayJudgeError:
    """Say the same of a call about a batch that was created; `record` is the file that says so."""
    if failure.status != 404:
        return run_error(failure, strong)
    return EscalationError(
        f"the provider does not know batch {batch}, or its files, any more. Mend strong.base_url "
        "or the key; or delete this record: then the batch's money counts as spent, and its "
        "questions are asked again",
        file=record,
    )
