"""Refusing the response formats that a provider with strict structured output refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_KINDS = ("text", "json_object", "json_schema")


def format_defect(response_format: object) -> str | None:
    """What is wrong with a `response_format`, or None.

    With `strict: true` every object must forbid additional properties and require all of its own,
    as providers demand, so that a client whose schema they would refuse fails here too.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, dict) or response_format.get("type") not in _KINDS:
        return f"type must be one of {', '.join(_KINDS)}."
    if response_format["type"] != "json_schema":
        return None
    wrapper = response_format.get("json_schema")
    if not isinstance(wrapper, dict) or not isinstance(wrapper.get("name"), str):
        return "json_schema.name is required."
    schema = wrapper.get("schema")
    if not isinstance(schema, dict):
        return "json_schema.schema is required."
    if schema.get("type") != "object":
        return "the schema must be of type object."
    if wrapper.get("strict") is not True:
        return None
    return next(_strict_defects(schema), None)


def _strict_defects(node: dict[str, Any]) -> Iterator[str]:
    """The breaches of the strict rules in a schema node and below it."""
    properties = node.get("properties", {})
    if node.get("type") == "object" or properties:
        if node.get("additionalProperties") is not False:
            yield "'additionalProperties' is required to be supplied and to be false."
        if set(node.get("required", ())) != set(properties):
            yield "'required' must name every key of 'properties'."
    if node.get("type") == "array" and "items" not in node:
        yield "an array needs 'items'."
    below = [*properties.values(), *node.get("$defs", {}).values(), *node.get("anyOf", ())]
    if isinstance(node.get("items"), dict):
        below.append(node["items"])
    for child in below:
        if isinstance(child, dict):
            yield from _strict_defects(child)
