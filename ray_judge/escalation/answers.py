"""From a chat completion to an answer as the journal keeps it, and from answers to a row's. Pure.

The same rules hold for an answer that came alone and for one that came in a batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import dropwhile
from statistics import fmean, multimode
from typing import Any, NamedTuple

from ray_judge.config import StrongConfig
from ray_judge.errors import WORDS
from ray_judge.escalation.books.ledger import LeaseSlot
from ray_judge.escalation.pricing import cost
from ray_judge.escalation.questions import QuestionMaker, Unparseable, says_what_it_bills
from ray_judge.failures import MEANING, Kind, RequestFailed, failure_of
from ray_judge.records import Answer, Outcome, Usage, Verdict

MOST_TOKENS = 4_000_000
"""A count of tokens beyond this is not believed: no model takes or writes as many."""
BYTES_PER_TOKEN = 64
"""A count of a prompt's tokens with more bytes each than this is not believed either."""
STOPS = {"max_tokens": "length", "model_length": "length", "safety": "content_filter"}
"""What some servers call the ends of an answer (in any case of letters)."""
MOST_USD = 1000
"""A bill for one answer beyond this is not believed."""
ANSWER_PARTS = ("text", "output_text")
"""Types of the parts of a message that are its answer, not its reasoning."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer that the server computed, and so billed, whatever it says."""

    text: str | None
    refusal: str | None
    finish_reason: str | None
    usage: Usage | None
    model: str | None
    response_id: str | None
    headers: Mapping[str, str] = field(default_factory=dict)
    billed_usd: Decimal = Decimal(0)
    """What the server says that it costs, where it does."""


def read_json(text: str) -> Any:
    """The document, or None where the text is not JSON."""
    lines = text.removeprefix("\ufeff").splitlines(keepends=True)
    # Some gateways put lines of comment, which begin with a colon, in front.
    said = "".join(dropwhile(lambda line: line.startswith((":", "\n", "\r")), lines))
    try:
        return _from_events(said) if said.startswith("data:") else json.loads(said)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None


def read_reply(document: Any, headers: Mapping[str, str]) -> Reply:
    """Read a chat completion, as servers write it.

    Raises RequestFailed: AMBIGUOUS (computed, billed, lost) for what is no completion, and what
    an error in its place says.
    """
    try:
        choices, usage = document.get("choices"), _usage(document)
        if not choices and (error := document.get("error")):
            raise failure_of(200, error, headers)
        if usage is None:
            choice = document["choices"][0]
            message = choice["message"]
        else:  # computed, though there may be nothing to show for it
            choice = choices[0] if choices else {}
            message = choice.get("message") or {}
        text, refusal = _content(message, choice), _text(message.get("refusal"))
        model, reply_id = map(_text, map(document.get, ("model", "id")))
    except (LookupError, TypeError, AttributeError):
        raise RequestFailed(Kind.AMBIGUOUS, "the answer is not a chat completion") from None
    if not text and not refusal and (error := document.get("error") or choice.get("error")):
        raise failure_of(200, error, headers)
    if text and usage is not None and not usage.output_tokens:
        usage = None  # it cannot be true
    ended = (_text(choice.get("finish_reason")) or "").lower() or None
    ended, billed_usd = STOPS.get(ended or "", ended), _billed_usd(document)
    return Reply(text, refusal, ended, usage, model, reply_id, headers, billed_usd)


def _from_events(text: str) -> Any:
    """The answer that they tell together, of a server that streams though nobody asked."""
    events = [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]
    chunks = [json.loads(event) for event in events if event not in ("", "[DONE]")]
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    said = {name: "".join(choice["delta"].get(name) or "" for choice in choices)
            for name in ("content", "refusal", "reasoning_content")}  # fmt: skip
    ended = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    told = {name: value for chunk in chunks for name, value in chunk.items() if value}
    whole = [{"message": said, "finish_reason": ended[-1]}] if ended else []
    return {**told, "choices": whole}


def _content(message: Mapping[str, Any], choice: Mapping[str, Any]) -> str | None:
    """The text of a message; of one in parts, the parts that are the answer.

    A gateway may ask for a schema by a tool, and then the answer is what the tool is given. vLLM's
    reasoning parsers take an answer without any reasoning for reasoning.
    """
    content = message.get("content")
    if isinstance(content, list):
        parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
        parts = [p for p in parts if isinstance(p, dict) and p.get("type") in ANSWER_PARTS]
        content = "".join(_text(part.get("text")) or "" for part in parts)
    if not content and (tools := message.get("tool_calls")):
        content = tools[0]["function"]["arguments"]
    if not content and choice.get("finish_reason") == "stop":
        content = message.get("reasoning_content") or message.get("reasoning")
    return _text(content)


def _text(value: Any) -> str | None:
    """Text that can be written down (JSON may hold half a surrogate pair), or None."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _usage(document: Mapping[str, Any]) -> Usage | None:
    """What was counted, where it can be true.

    Some servers leave reasoning out of the completion's tokens, and have it in the total alone.
    """
    try:
        given = document["usage"]
        prompt = given.get("prompt_tokens_details") or {}
        output = given.get("completion_tokens_details") or {}
        took, wrote = _count(given["prompt_tokens"]), _count(given["completion_tokens"])
        reasoning = _count(output.get("reasoning_tokens") or given.get("reasoning_tokens") or 0)
        beyond = _count(given.get("total_tokens") or 0) - took
        usage = Usage(
            took,
            max(wrote, beyond, wrote + reasoning if reasoning > wrote else 0),
            cached_input_tokens=_count(prompt.get("cached_tokens") or 0),
            cache_write_tokens=_count(
                prompt.get("cache_write_tokens") or given.get("cache_creation_input_tokens") or 0
            ),
            reasoning_tokens=reasoning,
            tier=_text(document.get("service_tier")) or "default",
        )
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    # There is no question without tokens.
    sound = 0 < usage.input_tokens <= MOST_TOKENS and 0 <= wrote <= MOST_TOKENS
    sound = sound and 0 <= usage.cached_input_tokens <= took and usage.output_tokens <= MOST_TOKENS
    sound = sound and usage.cache_write_tokens >= 0
    return usage if sound else None


def _billed_usd(document: Mapping[str, Any]) -> Decimal:
    """`usage.cost`, as OpenRouter has it; 0 where it is not there or cannot be true."""
    usage = document.get("usage")
    cost: Any = usage.get("cost") if isinstance(usage, dict) else None
    number = isinstance(cost, int | float) and not isinstance(cost, bool)
    return Decimal(str(cost)) if number and 0 < cost < MOST_USD else Decimal(0)


def _count(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("a count is no truth value")
    return int(value)


def read_answer(
    maker: QuestionMaker,
    key: str,
    input_bound: int,
    reply: Reply,
    slot: LeaseSlot,
    at: float,
    *,
    last: bool,
    tier: str | None = None,
) -> Answer:
    """Turn a computed (so billed) reply into an answer; what is unusable may be asked again.

    `input_bound`: the question's, in tokens, for servers that send no usage. `at`: Unix seconds.
    `last`: an unusable answer ends the question for good; one that was cut always does, under its
    limit. `tier`: what is billed, whatever the reply says.
    """
    usage = reply.usage
    if usage and usage.input_tokens * BYTES_PER_TOKEN < input_bound:
        usage = None
    if usage is None:  # counted here: upper bounds, since the cap depends on them
        written = len(((reply.text or "") + (reply.refusal or "")).encode())
        most = maker.strong.max_output_tokens
        if written and reply.finish_reason != "length":  # else reasoning may have taken it all
            most = min(written, most)
        usage = Usage(input_bound, most, estimated=True)
    usage = replace(usage, tier=tier or usage.tier)
    model, cost_usd = reply.model or maker.strong.model, cost(maker.price, usage)
    if says_what_it_bills(maker.strong):  # another provider, or another model, may be dearer
        cost_usd = max(cost_usd, reply.billed_usd)
    reply_id = reply.response_id
    answer = Answer(key, Outcome.RESOLVED, None, cost_usd, usage, model, reply_id, *slot, at)
    kind, outcome, why = Kind.UNUSABLE, Outcome.REFUSED, reply.refusal
    if reply.finish_reason == "content_filter":  # it would stop the same question again
        kind, why = Kind.FILTERED, why or "stopped by the content filter"
    elif not why:
        try:
            return replace(answer, verdict=maker.read(reply.text))
        except Unparseable as error:
            outcome, why = Outcome.UNPARSEABLE, str(error)
    limit = None
    if reply.finish_reason == "length":  # the same limit would cut it again
        kind, limit = Kind.CUT, maker.strong.max_output_tokens
        why = f"{why[:WORDS]} (cut at strong.max_output_tokens, {limit}: raise it"
        why += ", as the model reasons first)" if usage.reasoning_tokens else ")"
    final = last or not MEANING[kind].again
    return replace(answer, outcome=outcome, error=why[:WORDS], final=final, limit=limit)


def failed_answer(
    key: str, kind: Kind, reason: str, cost_usd: Decimal, slot: LeaseSlot, at: float, *, final: bool
) -> Answer:
    """What the journal keeps of a request without a reply. `cost_usd`: what it counts as."""
    outcome = Outcome.REFUSED if kind is Kind.REFUSED else Outcome.FAILED
    return Answer(key, outcome, None, cost_usd, None, None, None, *slot, at, final, reason)


class RowAnswer(NamedTuple):
    """What the questions of one row came to; `prob` is the verdict's share of the votes."""

    outcome: Outcome
    verdict: Verdict | None = None
    prob: float | None = None
    error: str | None = None


def answer_row(answers: Sequence[Answer | None], strong: StrongConfig) -> RowAnswer:
    """Combine the final answers to a row's questions, in the order in which they were made.

    None: that question has no answer yet. A row is resolved when every question has ended and
    each order has a usable vote; an order without any gives the row its outcome.
    """
    orders = [answers[n : n + strong.samples] for n in range(0, len(answers), strong.samples)]
    votes: list[list[Verdict]] = []
    for order in orders:
        ended = [answer for answer in order if answer is not None]
        votes.append([answer.verdict for answer in ended if answer.verdict is not None])
        if len(ended) == len(order) and not votes[-1]:
            return RowAnswer(ended[0].outcome, error=ended[0].error or ended[0].outcome.value)
    if None in answers or not answers:
        return RowAnswer(Outcome.DENIED_BUDGET)
    verdict, prob = combine(votes, strong.samples, ties=strong.ties)
    unsure = prob is not None and strong.abstain_below is not None and prob < strong.abstain_below
    return RowAnswer(Outcome.ABSTAINED if unsure else Outcome.RESOLVED, verdict, prob)


def combine(
    votes: Sequence[Sequence[Verdict]], samples: int, *, ties: bool = True
) -> tuple[Verdict, float | None]:
    """One verdict from the usable votes of one order, or of both, and its share of all votes.

    The second order's votes are in swapped orientation; orders that disagree are a tie
    (`strong.swap`). `samples`: how many votes were asked for per order; with one there is no
    share. `ties`: whether a vote may be a tie.
    """
    flip = {"A": "B", "B": "A"}
    upright = [*votes[:1], *([flip.get(str(v), v) for v in order] for order in votes[1:])]
    leaders = [_majority(order, ties) for order in upright]
    verdict = leaders[0] if len(set(leaders)) == 1 else "tie"
    if samples == 1:
        return verdict, None
    return verdict, sum(order.count(verdict) for order in upright) / (samples * len(votes))


def _majority(votes: Sequence[Verdict], ties: bool) -> Verdict:
    """The most frequent verdict.

    Where several are, a tie if ties are allowed, else the earliest; of scores the one that is
    nearest to the mean.
    """
    leaders = multimode(votes)
    if scores := [vote for vote in votes if isinstance(vote, float)]:
        mean = fmean(scores)
        return min(leaders, key=lambda score: abs(float(score) - mean))
    return "tie" if len(leaders) > 1 and ties else leaders[0]
