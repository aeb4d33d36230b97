"""The simulated provider: it bills exactly, and is unreliable. The real client is before it.

A request that has reached the provider is computed and billed whatever becomes of the sender.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import httpx
import openai

from ray_judge.config import StrongConfig
from ray_judge.escalation.books.ledger import LeaseSlot
from ray_judge.escalation.client import StrongClient
from ray_judge.escalation.online.permits import Slot
from ray_judge.escalation.questions import Question
from ray_judge.records import Usage

from .loop import PROCESS, Process, resolve
from .plan import INPUT_UNITS, MAX_OUTPUT_TOKENS, OUTPUT_UNITS, units

if TYPE_CHECKING:
    from .night import Night

BACK_AFTER_S = 20.0
"""So long an account is empty, or its key unknown."""
BUSY_SLACK_S = 200.0
"""A run that meets nothing but 429 for so long beyond its patience never pauses."""
SLOT: ContextVar[Slot] = ContextVar("slot")
"""What pays for the request that is sent next."""
UNBILLED: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "no money": (429, {"code": "insufficient_quota"}),
    "no key": (401, {"code": "invalid_api_key", "type": "invalid_request_error"}),
    "rate": (429, {"code": "rate_limit_exceeded", "type": "requests"}),
    "overloaded": (503, {"type": "overloaded_error"}),
    "broken": (500, {"code": None}),
    "too long": (400, {"code": "context_length_exceeded", "type": "invalid_request_error"}),
    "filter": (400, {"code": "content_filter"}),
    "parameter": (400, {"type": "invalid_request_error", "param": "temperature"}),
    "moderated": (403, {"metadata": {"reasons": ["x"]}}),
    "no schema": (400, {"param": "response_format"}),
    "no schema, untold": (422, {"type": "invalid_request_error"}),
}
"""What the provider refuses before it computes anything, and how it says so."""
OF_THE_ROW = {"too long", "filter", "moderated"}
"""What may end a question for good."""
COUNTED = {"broken", "reset"}
"""What the provider did not bill and nobody can know of: it counts in full."""


def verdict_of(key: str) -> str:
    """The one right verdict about a question."""
    return "AB"[int(key[:8], 16) % 2]


@dataclass(frozen=True)
class Said:
    """An answer over HTTP."""

    text: str
    status_code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    request: None = None

    @classmethod
    def error(cls, status: int, fields: Mapping[str, Any], *, inside: bool, **more: str) -> Said:
        """An error, or one inside an answer of 200, as gateways send it."""
        if not inside:
            return cls(json.dumps({"error": {"message": "no", **fields}}), status, more)
        code = {} if status == 500 else {"code": fields.get("code") or status}
        error = {"message": "provider returned error", **fields, **code}
        return cls(json.dumps({"id": None, "choices": None, "usage": None, "error": error}))


@dataclass(eq=False, slots=True)
class Request:
    """One request on its way, as the simulator's books have it."""

    question: Question
    process: Process | None
    """Who waits for the answer; None: a batch has it, whoever comes for it."""
    run: str
    slot: LeaseSlot
    schema: bool = True
    """Whether it asks by a schema, not in words."""
    most: int = 0
    """The money of its slot, in `UNITS`."""
    billed: int = 0
    """What it cost, in `UNITS`."""
    refused: str | None = None
    """Why it was not computed."""
    told: Usage | None = None
    """The usage that its answer names, if that can be true."""
    arrived_at: float | None = None
    """When the asker had its answer in hand."""
    back: bool = False
    """Its sender waits no more."""
    usable: bool = False
    """It arrived whole and says something: the question need not be asked again."""
    ends: bool = False
    """It was filtered or cut: so it would be again."""
    lost: bool = False
    proven: bool = True
    """It was sent under a permit that says that the server gives verdicts."""
    is_booked: bool = False

    @property
    def is_waited_for(self) -> bool:
        return not self.back and self.process is not None and self.process.alive

    @property
    def excess(self) -> int:
        """What it cost beyond its lease."""
        return max(0, self.billed - self.most)


class Client(StrongClient):
    """The real client of one asker, whose HTTP is simulated.

    A broken proxy on the way may write an answer twice: then each answer is taken for the next
    question's, until the connection is closed.
    """

    def __init__(self, night: Night, strong: StrongConfig) -> None:
        create = SimpleNamespace(with_raw_response=SimpleNamespace(create=self._create))
        http = SimpleNamespace(
            chat=SimpleNamespace(completions=create),
            base_url=SimpleNamespace(host="sim"),
            close=self.aclose,
        )
        with mock.patch("ray_judge.escalation.client._open", return_value=http):
            super().__init__(strong, "none")
        self._night = night
        self._written: list[tuple[str, Question, Request | None]] = []
        """What the proxy has written and nobody has read: the text, to which question, whose."""

    async def _create(self, *, model: str, messages: Any, extra_body: Mapping[str, Any]) -> Any:
        night, rng = self._night, self._night.rng
        request, said = await night.provider.send(extra_body)
        if said.status_code >= 400:
            body = json.loads(said.text)["error"]
            raise openai.APIStatusError("simulated", response=said, body=body)  # type: ignore[arg-type]
        # What it repeats to the same question cannot be told from a cache's answer, nor an error.
        self._written = [one for one in self._written if one[1] is not request.question]
        self._written.append((said.text, request.question, request))
        text, _, whose = self._written.pop(0)
        is_answer = request.billed and not request.lost
        if is_answer and night.plan.ids == "unique" and rng.random() < night.plan.faults.repeat:
            self._written.insert(0, (text, request.question, None))
        if whose is request and not request.lost:
            request.arrived_at = night.loop.now
        response = SimpleNamespace(text=text, extensions={"network_stream": self})
        return SimpleNamespace(http_response=response, headers=said.headers)

    async def aclose(self) -> None:
        """The connection is closed: what was on it is lost."""
        for *_, whose in self._written:
            if whose is not None:
                whose.lost = True
        self._written.clear()


class Provider:
    """Bills, answers, refuses."""

    in_words = False

    def __init__(self, night: Night) -> None:
        self._loop, self._rng, self._plan = night.loop, night.rng, night.plan
        self._oracle, self._note = night.oracle, night.note
        self._outside = night.loop.context_of(Process("provider"))
        asked = [question for questions in night.plan.asks.values() for question in questions]
        self._by_messages = {id(q.body["messages"]): q for q in asked if q.body}
        self._room = night.plan.provider_rpm / 60.0
        self._room_at = 0.0
        self._answered = 0
        self._broke_at: float | None = None
        self._busy_since: dict[Process | None, float] = {}
        self._cache: dict[str, tuple[dict[str, Any], Usage]] = {}
        self._timeout_s = night.plan.strong.timeout_s

    async def send(self, body: Mapping[str, Any]) -> tuple[Request, Said]:
        """Bring a request there and its answer back, for whichever process asks."""
        process, slot = PROCESS.get(), SLOT.get()
        question = self._by_messages[id(body["messages"])]
        request = Request(question, process, process.run, (slot.lease, slot.number))
        request.schema = "response_format" in body
        self._oracle.sent(request)
        answer: asyncio.Future[Said] = self._loop.create_future()
        self.later(self._rng.uniform(0.0002, 0.004), self._arrive, request, answer)
        try:
            said = await answer
        except asyncio.CancelledError:  # the client's time is over
            request.lost = True
            raise
        finally:
            request.back = True
        return request, said

    def later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> None:
        self._loop.call_later(seconds, callback, *args, context=self._outside.copy())

    def tell(self, process: Any, answer: asyncio.Future[Any], what: Any) -> None:
        """Bring an answer or a failure to the sender, if it still lives and waits."""
        context, travel_s = self._loop.context_of(process), self._rng.uniform(0.0002, 0.004)
        self._loop.call_later(travel_s, resolve, answer, what, context=context)

    def _arrive(self, request: Request, answer: asyncio.Future[Said]) -> None:
        why = self.refuse(request)
        if why is not None:
            self._note("provider", f"refuses {request.slot}: {why}")
            request.refused = why
            self._oracle.not_billed(request)
            self.tell(request.process, answer, self._refusal(why))
            return
        latency_s = self._rng.uniform(0.01, 0.3)
        if self._rng.random() < self._plan.faults.late:
            latency_s += self._timeout_s * self._rng.uniform(0.5, 2.0)
        self.later(latency_s, self._complete, request, answer)

    def refuse(self, request: Request) -> str | None:
        """Why a request is not even begun, or None; see `UNBILLED`."""
        faults, now, draw = self._plan.faults, self._loop.now, self._rng.random()
        if self._is_gone(now):
            return "no key" if self._plan.loses_key else "no money"
        if self.is_busy(request.process):
            return "rate"
        per_s = self._plan.provider_rpm / 60.0
        self._room = min(max(1.0, per_s), self._room + (now - self._room_at) * per_s)
        self._room_at = now
        if self._room < 1.0 or draw < faults.rate_limit:
            return "rate"
        self._room -= 1.0
        draw = self._rng.random()
        for share, why in (
            (faults.server_error / 2, self._rng.choice(("overloaded", "unreachable"))),
            (faults.server_error / 2, "broken"),
            (faults.reset_before, "reset"),
        ):
            if draw < share:
                return why
            draw -= share
        return self.refuse_line(request)

    def refuse_line(self, request: Request) -> str | None:
        """Why this question is refused, alone or in a batch, or None."""
        if request.question.key in self._plan.moderated:
            return "moderated"
        if request.schema and not self._plan.schemas:
            return self._rng.choice(("no schema", "no schema, untold"))
        if self._rng.random() < self._plan.faults.row_refused:
            return self._rng.choice(("too long", "filter", "parameter"))
        return None

    def _refusal(self, why: str) -> Said | Exception:
        if why in ("unreachable", "reset"):
            return _not_connected(httpx.ConnectError if why == "unreachable" else httpx.ReadError)
        headers = {}
        if why == "rate":
            headers = {"x-ratelimit-limit-requests": str(self._plan.provider_rpm)}
            if self._rng.random() < 0.5:
                headers["retry-after"] = self._rng.choice(("0", "1", "2.5"))
        status, fields = UNBILLED[why]
        inside = self._rng.random() < self._plan.faults.inside
        return Said.error(status, fields, inside=inside, **headers)

    def _is_gone(self, now: float) -> bool:
        """The account is empty, or its key unknown, for a while."""
        if self._plan.gone_after is None or self._answered < self._plan.gone_after:
            return False
        if self._broke_at is None:
            self._broke_at = now
        return now < self._broke_at + BACK_AFTER_S

    def is_busy(self, process: Process | None) -> bool:
        """It says nothing but 429 for a while; a run that bears it too long never pauses."""
        begin, end = self._plan.busy
        driver, now = process.parent or process if process else None, self._loop.now
        if not begin <= now < end:
            self._busy_since.clear()
            return False
        patience_s = self._plan.strong.give_up_after_s + BUSY_SLACK_S
        if now > self._busy_since.setdefault(driver, now) + patience_s:
            self._oracle.fail("nothing but 429, and the run goes on")
        return True

    def _complete(self, request: Request, answer: asyncio.Future[Said]) -> None:
        """The answer is computed: from here on it is paid for."""
        faults, draw = self._plan.faults, self._rng.random()
        said: Said | Exception = Said(json.dumps(self.compute(request)))
        if draw < faults.reset_after + faults.cut:
            request.lost = True
            said = _not_connected(httpx.ReadError)
            if draw < faults.reset_after / 2:
                inside = self._rng.random() < 0.5
                said = Said.error(*UNBILLED["broken"], inside=inside)
            elif draw < faults.reset_after:
                said = Said('{"id": "r1", "choi')
        self.tell(request.process, answer, said)

    def compute(self, request: Request) -> dict[str, Any]:
        """Compute the answer to a request, and bill it."""
        self._answered += 1
        key = request.question.key
        document, usage = self._cache.get(key) or self._completion(request)
        if self._plan.caches:
            self._cache[key] = document, usage
        choice = document["choices"][0]
        message = choice["message"]
        request.billed = usage.input_tokens * INPUT_UNITS + usage.output_tokens * OUTPUT_UNITS
        request.usable = f'"{verdict_of(key)}"' in (message["content"] or "")
        request.ends = not request.usable and choice["finish_reason"] != "stop"
        told = document["usage"] or {"prompt_tokens": 0}
        if told["prompt_tokens"] and (told["completion_tokens"] or not message["content"]):
            request.told = usage
        self._note("provider", f"bills {request.slot} {request.billed}")
        self._oracle.billed_now(request)
        return document

    def _completion(self, request: Request) -> tuple[dict[str, Any], Usage]:
        """A chat completion, and what is billed for it, which it may not say."""
        plan, faults, rng = self._plan, self._plan.faults, self._rng
        text: str | None = f'{{"verdict": "{verdict_of(request.question.key)}"}}'
        refusal, finish = None, "stop"
        draw = rng.random()
        if draw < faults.refusal:
            text, refusal = None, "I would rather not"
            if rng.random() < 0.3:
                refusal, finish = None, "content_filter"
        elif draw < faults.refusal + faults.malformed:
            text, finish = rng.choice(
                (("", "stop"), ('{"verd', "length"), ('{"verdict": 7}', "stop"))
            )
        silent = rng.random() < faults.no_usage
        cut = finish == "length"
        most = MAX_OUTPUT_TOKENS if cut or not silent else len(text or refusal or "")
        bound = request.question.input_bound
        usage = Usage(bound, most)
        if not plan.dearest:
            usage = Usage(rng.randint(bound // 4, bound), most if cut else rng.randint(0, most))
        if not silent:
            usage = self._overbilled(request, usage)
        told: dict[str, int] | None = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
        }
        if silent:
            zero = {"prompt_tokens": 0, "completion_tokens": rng.choice((0, usage.output_tokens))}
            told = rng.choice(
                (None, zero, {**zero, "prompt_tokens": bound}) if text else (None, zero)
            )
            if told and told["prompt_tokens"]:
                told["completion_tokens"] = 0
        number = {
            "unique": f"chatcmpl-sim-{self._answered:08d}",
            "few": f"chatcmpl-{rng.randrange(999)}",
            "one": "chatcmpl-" + "0" * 24,
            "none": None,
        }[plan.ids]
        message = {"role": "assistant", "content": text, "refusal": refusal}
        return {
            "id": number,
            "model": "sim-1",
            "created": self._answered,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": told,
        }, usage

    def _overbilled(self, request: Request, usage: Usage) -> Usage:
        """What a server bills that does not keep to the limits, always or once in a while.

        Where it always does so, every answer costs as much of its lease: the first one, whose
        lease was not widened yet, a little more than those that follow.
        """
        plan, rng = self._plan, self._rng
        base = units(request.question.max_cost_usd)
        share = plan.overbills
        if rng.random() < plan.faults.outlier:
            share = rng.uniform(1.1, 20.0)
        if not share:
            return usage
        spend = int(base * share)
        if plan.long_prompt:
            written = max(1, usage.output_tokens)
            tokens = (spend - written * OUTPUT_UNITS) // INPUT_UNITS
            return Usage(tokens + 2 * (request.most < spend), written)
        tokens = (spend - usage.input_tokens * INPUT_UNITS) // OUTPUT_UNITS
        return Usage(usage.input_tokens, tokens + 2 * (request.most < spend))


def _not_connected(cause: type[Exception]) -> Exception:
    error = openai.APIConnectionError(request=httpx.Request("POST", "http://127.0.0.1/v1"))
    error.__cause__ = cause("simulated")
    return error
