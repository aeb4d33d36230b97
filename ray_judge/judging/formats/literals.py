"""Texts in files: string literals of Python source, read without running any of it, and others."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

MAX_BYTES = 8 << 20
"""A larger file is no source that holds a prompt."""
SUFFIXES = (".py", ".json", ".txt")


class NotReadable(Exception):
    """This file has no texts to offer; the message says why. Never leaves the package."""


def texts_of(name: str, content: bytes) -> list[str]:
    """Give every text in a file: literals of Python, strings of JSON, else the file itself.

    Raises NotReadable.
    """
    if len(content) > MAX_BYTES:
        raise NotReadable(f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        text = content.decode("utf-8")
        if name.endswith(".json"):
            return list(_strings(json.loads(text)))
        if name.endswith(".py"):
            values = (getattr(node, "value", None) for node in ast.walk(ast.parse(text)))
            return [value for value in values if isinstance(value, str)]
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise NotReadable(f"{type(error).__name__}: {error}") from None
    return [text]


def _strings(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, list | dict):
        for value in item if isinstance(item, list) else item.values():
            yield from _strings(value)
