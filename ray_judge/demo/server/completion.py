"""Computing one chat completion: its content, its usage and its bill."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ray_judge.demo.server.ledger import Bill, Tier, Usage
from ray_judge.demo.server.logprobs import certainty_of, logprobs_for
from ray_judge.demo.server.requests import (
    canonical_key,
    message_texts,
    output_allowance,
    prompt_tokens,
    text_tokens,
)
from ray_judge.demo.server.schema_answer import content_for
from ray_judge.demo.server.state import Simulator
from ray_judge.demo.server.wire import bad_request


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed request with everything that is derived from its body once."""

    body: dict[str, Any]
    canonical: str
    prompt: str
    prompt_tokens: int

    @classmethod
    def parse(cls, body: dict[str, Any]) -> ChatRequest:
        """Derive the key, the text and the token count of a checked body."""
        prompt = "\n".join(message_texts(body))
        return cls(body, canonical_key(body), prompt, prompt_tokens(body))

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return str(self.body["model"])

    @property
    def wants_flex(self) -> bool:
        """Whether the request asks for the flex tier."""
        return self.body.get("service_tier") == "flex"


@dataclass(frozen=True, slots=True)
class Answered:
    """A computed and billed answer."""

    body: dict[str, Any]
    bill: Bill


def answer(
    sim: Simulator,
    request: ChatRequest,
    *,
    attempt: int,
    fault: str | None,
    custom_id: str | None = None,
    batch_id: str | None = None,
) -> Answered:
    """Compute the answer and bill it, with the model-level fault if one is named."""
    config = sim.config
    opinion = sim.policy.opinion(request.body, request.canonical)
    try:
        written = content_for(request.body, opinion, request.prompt, config.scores, config.ties)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise bad_request("Invalid schema.", param="response_format") from None
    content, refusal, finish = _with_fault(written, fault)
    content, finish, usage = _measured(sim, request, content, refusal, finish)
    tier: Tier = "flex" if request.wants_flex and config.permit_flex else "default"
    bill = sim.ledger.charge(
        request.canonical,
        usage,
        config.prices,
        "batch" if batch_id is not None else tier,
        attempt=attempt,
        model=request.model,
        fault=fault,
        custom_id=custom_id,
        batch_id=batch_id,
    )
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body: dict[str, Any] = {
        "id": f"chatcmpl-sim-{request.canonical[:24]}-{bill.number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": config.model_snapshot or request.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": _logprobs(sim, request, content) if fault != "no_logprobs" else None,
                "finish_reason": finish,
            }
        ],
        "usage": usage.body(),
        "service_tier": "default" if batch_id is not None else tier,
        "system_fingerprint": "simulator",
    }
    if fault == "missing_usage":
        del body["usage"]
    return Answered(body, bill)


def _logprobs(sim: Simulator, request: ChatRequest, content: str | None) -> dict[str, Any] | None:
    """What the request asks for, or None."""
    settings = sim.config.certainty
    if not (request.body.get("logprobs") and settings.given and content):
        return None
    certainty = certainty_of(settings, request.canonical, request.prompt)
    top = request.body.get("top_logprobs") or 0
    schema = (request.body.get("response_format") or {}).get("json_schema", {}).get("schema", {})
    fields = schema.get("properties", {})
    return logprobs_for(content, certainty, top, settings.tokens, sim.config.scores, fields)


def _with_fault(content: str, fault: str | None) -> tuple[str | None, str | None, str]:
    """Content, refusal and finish_reason after a model-level fault."""
    if fault == "refusal":
        return None, "I'm sorry, I can't help with that.", "stop"
    if fault == "content_filter":
        return "", None, "content_filter"
    if fault == "cut":
        return content[: len(content) // 2], None, "length"
    if fault == "malformed_json":
        return content[:-1] + ",,", None, "stop"
    if fault == "wrong_verdict":
        return '{"verdict":"neither of these","score":"very good"}', None, "stop"
    if fault == "fenced_json":
        return f"Here is my judgement:\n```json\n{content}\n```\nI hope it helps.", None, "stop"
    if fault == "empty_content":
        return "", None, "stop"
    return content, None, "stop"


def _measured(
    sim: Simulator, request: ChatRequest, content: str | None, refusal: str | None, finish: str
) -> tuple[str | None, str, Usage]:
    """Cut the content to the tokens the request permits, and count what is billed."""
    reasoning = sim.config.reasoning_tokens
    visible = text_tokens(content or refusal or "")
    allowance = output_allowance(request.body)
    if allowance is not None and reasoning + visible > allowance:
        reasoning = min(reasoning, allowance)
        visible = allowance - reasoning
        raw = (content or "").encode()[: 4 * visible]
        content, finish = raw.decode("utf-8", "ignore"), "length"
    usage = Usage(
        prompt=request.prompt_tokens,
        cached=min(sim.config.cached_tokens, request.prompt_tokens),
        completion=reasoning + visible,
        reasoning=reasoning,
    )
    return content, finish, usage
