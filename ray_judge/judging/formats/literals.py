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
            literals = (_text(node) for node in ast.walk(ast.parse(text)))
            return [literal for literal in literals if literal is not None]
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise NotReadable(f"{type(error).__name__}: {error}") from None
    return [text]


def _text(node: ast.AST) -> str | None:
    """Give the text of a literal: plain, concatenated, or an f-string with its `{expressions}`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_part(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    return None


def _part(value: ast.expr) -> str:
    if not isinstance(value, ast.FormattedValue):
        return str(ast.literal_eval(value))
    conversion = f"!{chr(value.conversion)}" if value.conversion != -1 else ""
    form = f":{_text(value.format_spec)}" if value.format_spec else ""
    return f"{{{ast.unparse(value.value)}{conversion}{form}}}"


def _strings(document: Any) -> Iterator[str]:
    """Walk a JSON document: every string in it, keys excepted."""
    waiting = [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list | dict):
            waiting += item if isinstance(item, list) else item.values()
