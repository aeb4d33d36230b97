"""String literals of Python source, read without running any of it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
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
            return list(_literals(ast.parse(text)))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise NotReadable(f"{type(error).__name__}: {error}") from None
    return [text]


def files_in(source: Path) -> list[Path]:
    """Give the file itself, or everything in the folder that can hold texts, in order."""
    if not source.is_dir():
        return [source]
    return sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def _literals(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        text = _text(node)
        if text is not None:
            yield text


def _text(node: ast.AST) -> str | None:
    """Give the text of a literal: plain, concatenated, or an f-string with its `{expressions}`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return _joined(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    return None


def _joined(node: ast.JoinedStr) -> str:
    parts = []
    for value in node.values:
        if isinstance(value, ast.FormattedValue):
            conversion = f"!{chr(value.conversion)}" if value.conversion != -1 else ""
            spec = value.format_spec
            form = f":{_joined(spec)}" if isinstance(spec, ast.JoinedStr) else ""
            parts.append(f"{{{ast.unparse(value.value)}{conversion}{form}}}")
        else:
            parts.append(str(ast.literal_eval(value)))
    return "".join(parts)


def _strings(value: Any) -> Iterator[str]:
    """Walk a JSON document: every string in it, keys excepted."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()
