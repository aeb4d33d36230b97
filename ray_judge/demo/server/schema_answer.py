"""Writing an opinion as the JSON object that a request asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ray_judge.demo.server.answers import Opinion

_SPELLINGS = {
    "A": ("a", "response_a", "model_a", "first", "1"),
    "B": ("b", "response_b", "model_b", "second", "2"),
    "tie": ("tie", "c", "equal", "draw", "neither", "same"),
}


def content_for(
    body: dict[str, Any], opinion: Opinion, prompt: str, scores: tuple[float, float], ties: bool
) -> str:
    """The message content: fits the json_schema if there is one, else a small JSON object.

    A request in words is taken to ask for the field, "verdict" or "score", that it names last.
    """
    response_format = body.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") == "json_schema":
        root = response_format["json_schema"]["schema"]
        return json.dumps(_Writer(root, opinion, scores).fill("", root), separators=(",", ":"))
    if prompt.rfind('"score"') > prompt.rfind('"verdict"'):
        score = _number({}, "integer", opinion, scores)
        return json.dumps({"score": score}, separators=(",", ":"))
    allowed = ["A", "B", "tie"] if ties else ["A", "B"]
    return json.dumps({"verdict": _choice(allowed, opinion)}, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Fills one schema with one opinion."""

    root: dict[str, Any]
    opinion: Opinion
    scores: tuple[float, float]

    def fill(self, name: str, node: dict[str, Any]) -> Any:
        """A value that fits the schema node, from the opinion where it can carry it."""
        node = _resolved(node, self.root)
        if "const" in node:
            return node["const"]
        if "enum" in node:
            return _choice(node["enum"], self.opinion)
        kind = node.get("type")
        if isinstance(kind, list):
            kind = next((k for k in kind if k != "null"), "null")
        if kind == "object" or "properties" in node:
            properties = node.get("properties", {})
            return {key: self.fill(key, sub) for key, sub in properties.items()}
        if kind in {"number", "integer"}:
            return _number(node, str(kind), self.opinion, self.scores)
        if kind == "array":
            count = int(node.get("minItems", 0))
            return [self.fill(name, node["items"])] * count
        if kind == "boolean":
            return True
        if kind == "string":
            return self.opinion.verdict if name == "verdict" else "simulated"
        return None


def _resolved(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The node itself, or what its local $ref or first non-null anyOf stands for."""
    for _ in range(20):
        if "$ref" in node:
            target: Any = root
            for part in str(node["$ref"]).removeprefix("#/").split("/"):
                target = target[part]
            node = target
        elif "anyOf" in node:
            node = next((s for s in node["anyOf"] if s.get("type") != "null"), {"type": "null"})
        else:
            break
    return node


def _choice(allowed: list[Any], opinion: Opinion) -> Any:
    """The enum value that spells the verdict; without one for a tie, a side by the score."""
    wanted = [opinion.verdict, "A" if opinion.unit_score >= 0.5 else "B"]
    for verdict in wanted:
        for value in allowed:
            if str(value).strip().lower() in _SPELLINGS[verdict]:
                return value
    numbers = sorted(v for v in allowed if isinstance(v, int | float) and not isinstance(v, bool))
    if numbers:
        return numbers[round(opinion.unit_score * (len(numbers) - 1))]
    return allowed[0]


def _number(
    node: dict[str, Any], kind: str, opinion: Opinion, scores: tuple[float, float]
) -> float | int:
    """The score within the bounds of the schema, or of `scores` where it gives none."""
    low, high = float(node.get("minimum", scores[0])), float(node.get("maximum", scores[1]))
    if opinion.score is not None:
        value = min(high, max(low, opinion.score))
    else:
        value = low + opinion.unit_score * (high - low)
    return round(value) if kind == "integer" else round(value, 3)
