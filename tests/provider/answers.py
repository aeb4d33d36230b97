"""What is answered: the verdict of a file of true rows or of a hash, as the JSON asked for."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.provider.requests import ChatRequest

_UNIT = {"A": 1.0, "tie": 0.5, "B": 0.0}


class Truth:
    """Verdicts of rows, found by their exact texts as the package's question lays them out."""

    def __init__(self, path: Path) -> None:
        self._rows: defaultdict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for row in json.loads(path.read_text("utf-8")):
            instruction, a, b = row["instruction"], row["response_a"], row["response_b"]
            begin = f"[Instruction]\n{instruction}\n\n["
            kept = self._rows[instruction.partition("\n")[0]]
            kept.append((begin, f"[Answer A]\n{a}\n\n[Answer B]\n{b}\n\n", row["verdict"]))

    def verdict(self, question: str) -> str | None:
        """None: not a row, in this order of its answers."""
        text = f"{question}\n\n"
        for begin, answers, verdict in self._rows.get(text.split("\n", 2)[1], ()):
            if text.startswith(begin) and answers in text:
                return verdict
        return None


class Judge:
    """Gives the same answer whenever it is asked the same."""

    def __init__(self, truth: Path | None) -> None:
        self._truth = Truth(truth) if truth else None
        self.unknown = 0
        """How many requests were not found in the file of true rows."""

    def content(self, request: ChatRequest) -> str:
        """JSON that fits the schema; a request in words is taken to ask for a verdict."""
        verdict, unit = self._opinion(request)
        wanted = request.body.get("response_format")
        if wanted is not None:
            fields = wanted["json_schema"]["schema"].get("properties", {})
        else:
            fields = {"verdict": {"enum": ["A", "B", "tie"]}}
        filled = {name: _value(node, verdict, unit) for name, node in fields.items()}
        return json.dumps(filled, separators=(",", ":"))

    def _opinion(self, request: ChatRequest) -> tuple[str, float]:
        """A verdict, and a score in [0, 1]."""
        if self._truth is not None:
            verdict = self._truth.verdict(request.body["messages"][-1]["content"])
            if verdict is not None:
                return verdict, _UNIT[verdict]
            self.unknown += 1
        number = int(request.key[:12], 16)
        return ("A", "A", "B", "B", "tie")[number % 5], (number // 5 % 1001) / 1000


def _value(node: dict[str, Any], verdict: str, unit: float) -> object:
    if node.get("type") == "integer":
        score = node["minimum"] + unit * (node["maximum"] - node["minimum"])
        return round(score)
    if "enum" not in node:
        return "because"
    return verdict if verdict in node["enum"] else "A" if unit >= 0.5 else "B"
