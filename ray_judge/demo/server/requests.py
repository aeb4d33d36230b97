"""What the provider reads from a request body: texts, token counts and the canonical key."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_NOT_CONTENT = frozenset(
    {"user", "metadata", "service_tier", "store", "safety_identifier", "prompt_cache_key"}
)
"""Body fields that do not change the answer, so they do not make a different request."""


def canonical_key(body: dict[str, Any]) -> str:
    """SHA-256 hex digest of the canonical JSON of what was asked."""
    kept = {key: value for key, value in body.items() if key not in _NOT_CONTENT}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _content_text(content: object) -> str:
    """The text of a message: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def message_texts(body: dict[str, Any]) -> list[str]:
    """The texts of all messages, in order."""
    return [_content_text(m.get("content")) for m in body["messages"]]


def user_text(body: dict[str, Any]) -> str:
    """The text of the user messages, or of all messages when none is the user's."""
    users = [m for m in body["messages"] if m.get("role") == "user"]
    return "\n".join(_content_text(m.get("content")) for m in users or body["messages"])


def text_tokens(text: str) -> int:
    """The simulator's token count: one token per four UTF-8 bytes, rounded up."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def prompt_tokens(body: dict[str, Any]) -> int:
    """Prompt tokens that are billed: all message texts, 3 per message, and the schema."""
    texts = message_texts(body)
    count = text_tokens("".join(texts)) + 3 * len(texts)
    response_format = body.get("response_format")
    if response_format is not None:
        count += text_tokens(json.dumps(response_format, sort_keys=True, separators=(",", ":")))
    return count


def output_allowance(body: dict[str, Any]) -> int | None:
    """The most completion tokens the request permits, or None."""
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return limit if isinstance(limit, int) else None


def draw(*parts: object) -> float:
    """A uniform number in [0, 1) that is a fixed function of its arguments."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)
