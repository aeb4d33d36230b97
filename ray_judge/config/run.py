"""The whole run, its digest, and what may change when it is continued."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import Field, field_validator, model_validator

from ray_judge.config.data import LabelRule
from ray_judge.config.judge import JudgeConfig
from ray_judge.config.strong import StrongConfig
from ray_judge.config.tree import Place, Positive, RouteConfig, Source, Tree, nearest
from ray_judge.records import OPTIONAL, PAIRWISE_ALTERNATIVES, PREFERENCE, REQUIRED, Task

COLUMN_ROLES = (
    *REQUIRED["pairwise"], *PREFERENCE, "response", "turns", "id", *OPTIONAL, "label",
)  # fmt: skip
OPERATIONAL = tuple(
    """
    output judge.replicas judge.gpus_per_replica judge.cpus_per_replica judge.share_gpu
    judge.engine_options judge.templates judge.http.base_url judge.http.api_key_env
    judge.http.concurrency judge.http.timeout_s strong.base_url strong.api_key_env
    strong.headers strong.query
    strong.concurrency strong.requests_per_minute strong.tokens_per_minute strong.timeout_s
    strong.max_cost_usd strong.max_cost_usd_per_month strong.give_up_after_s strong.price
    strong.batch strong.max_output_tokens strong.max_tokens_field strong.reasks
    strong.tolerate_failed
    """.split()
)
"""Keys that say how fast, where and for how much, but cannot change a verdict: they may differ
when a run is continued (`strong.max_cost_usd` only upwards)."""


class RunConfig(Tree):
    """The whole run. The configuration of one local judge has the same form: see `tiers`."""

    input: Source
    output: Place
    task: Task = "pairwise"
    preset: str | None = None
    """A data set whose `columns` and `labels` are known (docs/data.md); those given here win."""
    columns: dict[str, str | LabelRule | None] = Field(default_factory=dict)
    """Role → column, where they differ; null: the data has none, whatever its name."""
    judges: tuple[JudgeConfig, ...]
    """The local judges: a row stops at the first one that is sure. In YAML also one `judge`."""
    route: RouteConfig
    """Which of the rows that reach the last local judge the strong judge is asked about."""
    strong: StrongConfig
    labels: dict[str, str | float | None] = Field(default_factory=dict)
    """What the values of the label column mean, where they are no verdicts: `{model_a: A}`; null:
    as good as no label."""
    chunk_rows: Positive = 1000
    allow_empty_shards: bool = False

    @field_validator("labels", mode="before")
    @classmethod
    def _named_by_text(cls, value: Any) -> Any:
        """YAML has numbers and truth values, too: `{1: A, 2: B}`."""
        if not isinstance(value, dict):
            return value
        if None in value:
            raise ValueError("a row whose label is null has none: null can mean nothing")
        named = {label_text(label): meant for label, meant in value.items()}
        if len(named) < len(value):
            raise ValueError(f"two labels are alike as text: {', '.join(map(repr, value))}")
        return named

    @field_validator("columns")
    @classmethod
    def _known_roles(
        cls, value: dict[str, str | LabelRule | None]
    ) -> dict[str, str | LabelRule | None]:
        for role, column in value.items():
            if role not in COLUMN_ROLES:
                raise ValueError(f"no such column role: {role}{nearest(role, COLUMN_ROLES)}")
            if role != "label" and isinstance(column, LabelRule):
                raise ValueError(f"{role} is to name one column")
        return value

    @model_validator(mode="after")
    def _fits_task(self) -> RunConfig:
        for label, verdict in self.labels.items():
            if verdict is None:
                continue
            number = isinstance(verdict, float)
            if number is (self.task == "pairwise") or not (number or verdict in "A B tie".split()):
                wanted = "A, B or tie" if self.task == "pairwise" else "a number"
                raise ValueError(f"labels: {label} is to mean {wanted}, not {verdict!r}")
        if self.task == "pairwise":
            return self
        if isinstance(self.columns.get("label"), LabelRule) or self.columns.get("chosen"):
            raise ValueError("task: pointwise has a score as its label: columns.label names one")
        scores = self.judges[0].score_range() if self.judges else None
        if self.strong.scores not in (None, scores):
            raise ValueError(
                f"strong.scores: a run has one range of scores, the local judge's: {scores}"
            )
        for judge in self.judges:
            if judge.format == "demo" or judge.swap or self.strong.swap:
                raise ValueError("task: pointwise goes without format: demo and without swap")
            if judge.engine == "columns" or judge.by_scores:
                raise ValueError("engine: columns and by_scores are for task: pairwise")
            if judge.score_range() != self.judges[0].score_range():
                raise ValueError("all judges of a run must score on the same range")
        return self

    @model_validator(mode="after")
    def _each_knows_its_route(self) -> RunConfig:
        if not self.judges:
            raise ValueError("judges: name at least one local judge")
        if self.judges[-1].route is not None:
            raise ValueError("the last judge has no route of its own: set the run's route")
        routes = [judge.route for judge in self.judges[:-1]]
        for route in routes:
            if route is None:
                raise ValueError("each of several judges but the last needs its own route")
            if route.policy == "budget":
                raise ValueError("policy: budget weighs the strong judge's costs: last judge only")
            if route.policy == "guarantee" and self.route.calibration is None:
                raise ValueError("policy: guarantee needs route.calibration, made for all judges")
            if route.calibration not in (None, self.route.calibration):
                raise ValueError("several judges are calibrated together: route.calibration is one")
        if self.route.policy == "guarantee" and {r.policy for r in routes if r} - {"guarantee"}:
            raise ValueError(
                "policy: guarantee promises something of every accepted row: each of several "
                "judges needs it"
            )
        return self

    @property
    def judge(self) -> JudgeConfig:
        """The only local judge: of one of `tiers`, or of a run that has no other."""
        (judge,) = self.judges
        return judge

    def tiers(self) -> tuple[RunConfig, ...]:
        """One configuration per local judge, in order: with this `judge` alone, the `route`
        behind it, and the strong judge's criteria, which are of all judges of the run.
        """
        strong = self.strong.model_copy(update={"rubric": self.rubric()})
        tiers = []
        for judge in self.judges:
            alone, route = judge.model_copy(update={"route": None}), judge.route or self.route
            update = {"judges": (alone,), "route": route, "strong": strong}
            tiers.append(self.model_copy(update=update))
        return tuple(tiers)

    def label_rule(self, column: str) -> LabelRule | None:
        """How this label column is read, where `columns.label` says more than its name."""
        rule = self.columns.get("label")
        return rule if isinstance(rule, LabelRule) and column in rule.names() else None

    def rubric(self) -> str | None:
        """The strong judge's criteria: its own, else those of the first judge that has any."""
        rubrics = [self.strong.rubric, *(judge.rubric for judge in self.judges)]
        return next((rubric for rubric in rubrics if rubric), None)

    def document(self) -> dict[str, Any]:
        """Give the tree as plain JSON values, as `parse` takes it; money as strings."""
        document = self.model_dump(mode="json")
        if len(self.judges) == 1:
            (document["judge"],) = document.pop("judges")
        return document

    def within_budget(self) -> RunConfig:
        """Lower the cap to the policy's budget: what is planned may be dearer than expected."""
        budget, cap = self.route.budget_usd, self.strong.max_cost_usd
        lower = cap if budget is None else min(cap, budget)
        strong = self.strong.model_copy(update={"max_cost_usd": lower})
        return self.model_copy(update={"strong": strong})

    def digest(self) -> str:
        """SHA-256 (hex) over every key that can change a verdict."""
        flat = {k: v for k, v in _flatten(self.document()).items() if not _operational(k)}
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()

    def alternatives(self) -> tuple[str, ...]:
        """Give the names in `judge_probs`, in order: `A, B, tie`, or the scores."""
        if self.task == "pairwise":
            return PAIRWISE_ALTERNATIVES
        low, high = self.judges[0].score_range()
        return tuple(str(score) for score in range(low, high + 1))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Every key that may not change between two configurations of one run, and how it did."""
    old, new = _flatten(before), _flatten(now)
    found = {
        key: f"{key}: {old.get(key)!r} → {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _operational(key)
    }
    cap = "strong.max_cost_usd"
    if cap in old and Decimal(str(new[cap])) < Decimal(str(old[cap])):
        found[cap] = f"{cap}: {old[cap]} → {new[cap]} (a cap may only be raised)"
    return found


def label_text(value: Any) -> str:
    """A label as text, in which 1 and 1.0 are one: keys of `labels`, and values of the column."""
    if isinstance(value, bool):
        return str(value).lower()
    number = isinstance(value, float | Decimal) and math.isfinite(value)
    return str(int(value) if number and value == int(value) else value)


def is_asked(key: str) -> bool:
    """Whether a key says only what the strong judge is asked, or where."""
    fixed = ("strong.mode", "strong.books", "strong.max_cost_usd")
    return key.startswith("strong.") and key not in fixed


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Key → value, as people name it: `strong.model`, `judges.0.model`."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return {key: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flatten(inner, f"{key}.{name}" if key else name)
    return flat


def _operational(key: str) -> bool:
    key = re.sub(r"\Ajudges\.\d+\.", "judge.", key)
    return any(key == name or key.startswith(name + ".") for name in OPERATIONAL)
