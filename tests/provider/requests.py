"""A request as the provider reads it: what is wrong with it, its texts, tokens and key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from tests.provider.config import ServerConfig
from tests.provider.faults import bad_request


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request; `prompt` is all message texts."""

    body: dict[str, Any]
    key: str
    prompt: str
    prompt_tokens: int

    @classmethod
    def parse(cls, body: dict[str, Any], config: ServerConfig) -> ChatRequest:
        checked = _checked(body, config)
        prompt = "\n".join(_texts(checked))
        return cls(checked, canonical_key(checked), prompt, prompt_tokens(checked))

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def wants_flex(self) -> bool:
        return self.body.get("service_tier") == "flex"

    @property
    def allowance(self) -> int | None:
        limit = self.body.get("max_completion_tokens", self.body.get("max_tokens"))
        return limit if isinstance(limit, int) else None


def canonical_key(body: dict[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of what was asked.

    Neither the tier is a part of it, nor whether it was asked by a schema or in words.
    """
    form = ("service_tier", "response_format")
    asked = {name: value for name, value in body.items() if name not in form}
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_tokens(text: str) -> int:
    """One token per four UTF-8 bytes, rounded up."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def prompt_tokens(body: dict[str, Any]) -> int:
    """Prompt tokens that are billed: all message texts, 3 per message, and the schema."""
    texts = _texts(body)
    count = text_tokens("".join(texts)) + 3 * len(texts)
    wanted = body.get("response_format")
    if wanted is not None:
        count += text_tokens(json.dumps(wanted, sort_keys=True, separators=(",", ":")))
    return count


def _texts(body: dict[str, Any]) -> list[str]:
    return [str(message.get("content") or "") for message in body["messages"]]


def draw(*parts: object) -> float:
    """A uniform number in [0, 1) that is a fixed function of its arguments."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def _checked(body: dict[str, Any], config: ServerConfig) -> dict[str, Any]:
    for name in (*config.refuse_parameters, "stream"):
        if body.get(name):
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            raise bad_request(message, name, "unsupported_parameter")
    return body
