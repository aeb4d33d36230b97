"""From a chat completion to an answer as the journal keeps it: one way, however it came. Pure."""

from __future__ import annotations

from dataclasses import replace

from ray_judge.escalation.client import Reply
from ray_judge.escalation.pricing import Price, cost
from ray_judge.escalation.question import StrongQuestion, Unparseable
from ray_judge.records import Answer, Outcome, Usage


def read_answer(
    question: StrongQuestion,
    price: Price,
    key: str,
    reply: Reply,
    usage: Usage,
    slot: tuple[str, int],
    at: float,
    *,
    model: str,
    last: bool,
) -> Answer:
    """Turn a computed (so billed) reply into an answer; what is unusable may be asked again.

    `usage`: as billed; `slot`: (lease, number); `at`: Unix seconds; `model`: the name for servers
    that name none; `last`: an unusable answer ends the question.
    """
    answer = Answer(
        key=key,
        outcome=Outcome.RESOLVED,
        verdict=None,
        cost_usd=cost(price, usage),
        usage=usage,
        model=reply.model or model,
        response_id=reply.response_id,
        lease=slot[0],
        slot=slot[1],
        at=at,
    )
    if reply.refusal or reply.finish_reason == "content_filter":
        why = (reply.refusal or "stopped by the content filter")[:200]
        return replace(answer, outcome=Outcome.REFUSED, error=why, final=last)
    try:
        verdict = question.read(reply.text)
    except Unparseable as error:
        cut = " (cut at max_output_tokens)" if reply.finish_reason == "length" else ""
        return replace(answer, outcome=Outcome.UNPARSEABLE, error=f"{error}{cut}", final=last)
    prob, tie = question.probs(reply.text or "", reply.logprobs, verdict)
    return replace(answer, verdict=verdict, verdict_prob=prob, tie_prob=tie)


def counted(reply: Reply, input_bound: int, output_bound: int) -> Usage:
    """Count tokens for a server that does not: upper bounds, since the cap depends on it."""
    text = len((reply.text or "").encode()) + len((reply.refusal or "").encode())
    return Usage(input_tokens=input_bound, output_tokens=min(text, output_bound), estimated=True)
