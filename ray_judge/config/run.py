"""The whole run, its digest, and what may change when it is continued."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import Field, field_validator, model_validator

from ray_judge.config.judge import JudgeConfig
from ray_judge.config.nearest import nearest
from ray_judge.config.strong import StrongConfig
from ray_judge.config.tree import Place, Positive, RouteConfig, Tree
from ray_judge.records import Task

COLUMN_ROLES = (
    "instruction",
    "response_a",
    "response_b",
    "response",
    "id",
    "input",
    "reference",
    "rubric",
    "label",
)


OPERATIONAL = (
    "output",
    "judge.replicas",
    "judge.gpus_per_replica",
    "judge.cpus_per_replica",
    "judge.share_gpu",
    "judge.engine_options",
    "judge.templates",
    "judge.http.base_url",
    "judge.http.api_key_env",
    "judge.http.concurrency",
    "judge.http.timeout_s",
    "strong.base_url",
    "strong.api_key_env",
    "strong.concurrency",
    "strong.requests_per_minute",
    "strong.tokens_per_minute",
    "strong.timeout_s",
    "strong.max_cost_usd",
    "strong.max_cost_usd_per_month",
    "strong.give_up_after_s",
    "strong.price",
    "strong.batch",
)
"""Keys that say how fast, where and for how much, but cannot change a verdict: they may differ
when a run is continued (`strong.max_cost_usd` only upwards)."""


class RunConfig(Tree):
    """The whole run."""

    input: str
    output: Place
    task: Task = "pairwise"
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Role → column, where they differ; null: the data has none, whatever its name."""
    judge: JudgeConfig
    judges: tuple[JudgeConfig, ...] = ()
    """Several local judges, asked one after the other, in place of `judge`: a row stops at the
    first one that is sure."""
    route: RouteConfig
    strong: StrongConfig
    chunk_rows: Positive = 1000
    allow_empty_shards: bool = False

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        for role in value:
            if role not in COLUMN_ROLES:
                raise ValueError(f"no such column role: {role}{nearest(role, COLUMN_ROLES)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, given: Any) -> Any:
        """`judges: [...]` is `judge: ...` for several; the first one is `judge`, too."""
        if isinstance(given, dict) and given.get("judges"):
            if "judge" in given:
                raise ValueError("judge and judges exclude each other: name one judge or a list")
            return {**given, "judge": given["judges"][0]}
        return given

    @model_validator(mode="after")
    def _fits_task(self) -> RunConfig:
        for judge in self.judges or (self.judge,):
            if self.task == "pairwise":
                continue
            if judge.format == "demo" or judge.swap or self.strong.swap:
                raise ValueError("task: pointwise goes without format: demo and without swap")
            if judge.engine == "columns" or judge.by_scores:
                raise ValueError("engine: columns and by_scores are for task: pairwise")
            if judge.score_range() != self.judge.score_range():
                raise ValueError("all judges of a run must score on the same range")
        for judge in self.judges[:-1]:
            if judge.route is None:
                raise ValueError("each of several judges but the last needs its own route")
            if judge.route.policy == "budget":
                raise ValueError(
                    "policy: budget weighs what the strong judge costs: last judge only"
                )
            if judge.route.policy == "guarantee" and self.route.calibration is None:
                raise ValueError("policy: guarantee needs route.calibration, made for all judges")
            if judge.route.calibration not in (None, self.route.calibration):
                raise ValueError("several judges are calibrated together: route.calibration is one")
        policies = {tier.route.policy for tier in self.tiers()}
        if self.tiers()[-1].route.policy == "guarantee" and len(policies) > 1:
            raise ValueError(
                "policy: guarantee promises something of every accepted row: each of several "
                "judges needs it"
            )
        return self

    def tiers(self) -> tuple[RunConfig, ...]:
        """One configuration per local judge, in order: its `judge`, and the `route` behind it."""
        if not self.judges:
            return (self,)
        rubric = self.strong.rubric or next((j.rubric for j in self.judges if j.rubric), None)
        strong = self.strong.model_copy(update={"rubric": rubric})
        return tuple(
            self.model_copy(
                update={
                    "judge": judge,
                    "judges": (),
                    "route": judge.route or self.route,
                    "strong": strong,
                }
            )
            for judge in self.judges
        )

    def document(self) -> dict[str, Any]:
        """Give the tree as plain JSON values; money as strings."""
        document: dict[str, Any] = self.model_dump(mode="json")
        if self.judges:
            del document["judge"]  # it is the first of them
        return document

    def within_budget(self) -> RunConfig:
        """Lower the cap to the policy's budget: what is planned may be dearer than expected."""
        budget = self.route.budget_usd
        if budget is None or budget >= self.strong.max_cost_usd:
            return self
        strong = self.strong.model_copy(update={"max_cost_usd": budget})
        return self.model_copy(update={"strong": strong})

    def digest(self) -> str:
        """SHA-256 (hex) over every key that can change a verdict."""
        flat = {k: v for k, v in _flatten(self.document()).items() if not _operational(k)}
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()

    def alternatives(self) -> tuple[str, ...]:
        """Give the names in `judge_probs`, in order: `A, B, tie`, or the scores."""
        if self.task == "pairwise":
            return ("A", "B", "tie")
        low, high = self.judge.score_range()
        return tuple(str(score) for score in range(low, high + 1))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name every key that may not change between two configurations of one run, with values."""
    old, new = _flatten(before), _flatten(now)
    found = [
        f"{key}: {old.get(key)!r} → {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _operational(key)
    ]
    cap = "strong.max_cost_usd"
    if cap in old and Decimal(str(new[cap])) < Decimal(str(old[cap])):
        found.append(f"{cap}: {old[cap]} → {new[cap]} (a cap may only be raised)")
    return found


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            flat |= _flatten({str(n): item for n, item in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _operational(key: str) -> bool:
    key = re.sub(r"\Ajudges\.\d+\.", "judge.", key)
    return any(key == name or key.startswith(name + ".") for name in OPERATIONAL)
