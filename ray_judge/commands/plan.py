"""`ray-judge plan`: what a run will cost and be worth, before a cent is spent.

A random sample of the input is judged locally (an ordinary run under `<output>/plan/`, with a cap
of 0), its questions are rendered and their tokens counted, and policies are tried on it. With
several local judges the sample goes through them as configured, each one's own `route` deciding
what the next one is asked; the policies are tried for the last of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from ray_judge.calibration.document import Calibration, Tier
from ray_judge.calibration.load import calibration_of
from ray_judge.calibration.selection import Floats
from ray_judge.commands.calibrate import sample_run
from ray_judge.config import RouteConfig, RunConfig
from ray_judge.escalation.questions import price_of_strong
from ray_judge.judging.engines.engine import extra_columns
from ray_judge.pipeline import score
from ray_judge.progress import Watch
from ray_judge.report.status import find_run
from ray_judge.routing.cost import Correction, correction, count_chunk, output_tokens, row_costs
from ray_judge.routing.policies import accepted, fraction_count, route
from ray_judge.routing.tiers import judged_frame
from ray_judge.run.plan import plan_input

SAMPLE = 500
MODES = ("online", "flex", "batch")
MOST = "most"
"""Dollars in the run's own mode, were every answer as long as it may be; as measured, if it is."""
FRACTIONS = ("0", "0.05", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.8", "1")
Z = 1.96


def plan(
    config: RunConfig, sample: int = SAMPLE, watch: Watch = lambda phase, document: None
) -> dict[str, Any]:
    """Try policies on a sample; dollars, calls and hours are for the whole input.

    Raises ConfigError, before anything is judged: unknown price, another judge's calibration.
    """
    config = config.within_budget()
    price = price_of_strong(config.strong)
    calibration = calibration_of(config)
    whole = plan_input(config, extra_columns(config))
    total = whole.rows
    part = sample_run(config, "plan", None, sample, ask=False, calibration=calibration, whole=whole)
    score(part, watch)
    rows, fix = _sampled(config, part)
    modes = {"online": True, "flex": price.flex_factor, "batch": price.batch_factor}
    table = PolicyTable(config, calibration, rows, total)
    own = config.tiers()[-1].route
    policies = {text: RouteConfig(policy="fraction", fraction=Decimal(text)) for text in FRACTIONS}
    policies[f"route: {own.policy}"] = own
    return {
        "rows": total,
        "reached": table.reached(),
        "sampled": rows.height,
        "not_taken": whole.not_taken,
        "strong_model": config.strong.model,
        "sold": {mode: bool(factor) for mode, factor in modes.items()},
        "answers_on_file": fix.answers if fix else 0,
        "input_tokens_factor": fix.input_factor if fix else 1.0,
        "cached_input_share": fix.cached_share if fix else 0.0,
        "output_tokens_per_answer": fix.output_tokens if fix else output_tokens(config),
        "max_output_tokens": config.strong.max_output_tokens,
        "policies": [table.line(policy, name) for name, policy in policies.items()],
    }


def _sampled(config: RunConfig, part: RunConfig) -> tuple[pl.DataFrame, Correction | None]:
    """The sample's judged rows with tokens and dollars per mode; and what corrected them."""
    run, made, _ = find_run(part.output)
    chunks = list(made.chunks())
    counted = pl.concat(count_chunk(config, made.columns, chunk) for chunk in chunks)
    rows = pl.concat([judged_frame(run, len(config.judges), chunk.name) for chunk in chunks])
    fix = correction(config, counted)
    most = fix or Correction(1.0, config.strong.max_output_tokens, 0)
    wanted = {mode: (fix, mode) for mode in MODES} | {MOST: (most, config.strong.mode)}
    for name, (how, mode) in wanted.items():
        costs = row_costs(config, counted, how, mode).rename({"cost_nano_usd": name})
        costs = costs if name == "online" else costs.drop("tokens")
        rows = rows.join(costs, on=["chunk", "row"], how="left", maintain_order="left")
    own = rows[config.strong.mode].alias("cost_nano_usd")
    return rows.with_columns(own), fix


class PolicyTable:
    """Policies tried on the rows of the sample that reached the last judge."""

    def __init__(
        self, config: RunConfig, calibration: Calibration | None, rows: pl.DataFrame, total: int
    ) -> None:
        self._config, self._calibration, self._total = config, calibration, total
        self._scale = total / rows.height
        self._last = len(config.tiers()) - 1
        self._tiers = rows["tier"]
        here = pl.col("tier") == self._last
        self._rows, self._before = rows.filter(here), rows.filter(~here)

    def reached(self) -> list[int]:
        """How many rows of the whole input are expected to come to each judge."""
        counts = [int((self._tiers >= tier).sum()) for tier in range(self._last + 1)]
        return [round(count * self._scale) for count in counts]

    def line(self, policy: RouteConfig, name: str) -> dict[str, Any]:
        """One policy: rows asked, threshold, dollars, calls, hours, expected accuracy."""
        scale = self._scale
        if policy.budget_usd is not None:  # the sample's share of the budget
            share: Decimal = policy.budget_usd * len(self._tiers) / self._total
            policy = policy.model_copy(update={"budget_usd": share})
        tier = self._calibration.tiers[self._last] if self._calibration else None
        here = route(self._rows, policy, tier, "plan")
        routed = pl.concat([here, accepted(self._before, policy, "plan")])
        asked = routed.filter(pl.col("route") != "accept")
        count = round(asked.height * scale)
        if policy.policy == "fraction" and not policy.audit:
            count = min(
                fraction_count(self.reached()[-1], policy.fraction or Decimal(0)),
                round(int(self._rows["has_text"].sum()) * scale),
            )
        each = count / asked.height if asked.height else 0.0
        strong = self._config.strong
        calls = count * strong.samples * (2 if strong.swap else 1)
        tokens = float(asked["tokens"].sum()) * each
        dollars = {name: float(asked[name].sum()) * each / 1e9 for name in (*MODES, MOST)}
        minutes = max(calls / strong.requests_per_minute, tokens / strong.tokens_per_minute)
        return {
            "policy": name,
            "rows": count,
            "share": count / self._total,
            "threshold": here.filter(pl.col("route") != "escalate")["judge_confidence"].min(),
            "most_dollars": dollars.pop(MOST),
            "dollars": dollars,
            "calls": calls,
            "hours": minutes / 60,
            "accuracy": self._accuracy(routed),
        }

    def _accuracy(self, routed: pl.DataFrame) -> dict[str, float] | None:
        """Expected agreement with the calibration's labels; None without a calibration.

        Each row by what is known of the last judge that it reached. The interval has two parts,
        added in quadrature: the sample's own chance, and that of the labels from which P(correct)
        of the accepted rows was learnt (normal, 95 %).
        """
        if self._calibration is None:
            return None
        tiers = self._calibration.tiers
        each, chance = [], []
        for number, tier in enumerate(tiers):
            part = routed.filter(pl.col("tier") == number)
            if part.height:
                values, own = _expected(tier, part, len(tiers))
                each.append(values)
                # of the labelled rows, too, only some reached this judge
                reach = float((routed["tier"] >= number).sum()) / routed.height
                chance += [term * reach * (part.height / routed.height) for term in own]
        values = np.concatenate(each)
        value = float(values.mean())
        wide = Z * math.sqrt(sum(chance, values.var() / len(values)))
        return {"value": value, "low": max(0.0, value - wide), "high": min(1.0, value + wide)}


def _expected(tier: Tier, routed: pl.DataFrame, judges: int) -> tuple[Floats, list[float]]:
    """P(final verdict = label) of rows that reached this judge last, (n,), and its variance.

    The variance of the mean that comes from the labels, in two parts: local and strong judge.
    """
    confidence = routed["judge_confidence"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    asked = (routed["route"] != "accept").to_numpy()
    local, strong = np.nan_to_num(tier.correct(confidence)), tier.strong_right(confidence)
    kept = 1 - float(asked.mean())
    # each of several judges is tested on its part of the labels, and described by all of them
    labels = max(1, tier.selection.rows * judges)
    spread = float((local * (1 - local))[~asked].sum()) / max(1, int((~asked).sum()))
    chance = [kept * spread / labels]
    if tier.strong is not None:
        chance.append((1 - kept) * float((strong * (1 - strong)).mean()) / labels)
    return np.where(asked, strong, local), chance


def as_text(found: Mapping[str, Any]) -> str:
    size = f"{found['rows']:,} rows, {found['sampled']:,} of them sampled"
    lines = [f"{size}; strong judge: {found['strong_model']}. Nothing was spent."]
    if len(found["reached"]) > 1:
        counts = ", ".join(f"judge {n}: {count:,}" for n, count in enumerate(found["reached"], 1))
        lines.append(f"Rows that reach {counts}. Shares are of those that reach the last one.")
    if found["not_taken"]:
        lines.append(f"not taken: {', '.join(found['not_taken'])}")
    head = f"{'':<18}{'rows':>10}{'below':>9}{'online $':>11}{'flex $':>11}{'batch $':>11}"
    measured = bool(found["answers_on_file"])
    head += "" if measured else f"{'most $':>11}"
    lines.append(f"{head}{'calls':>10}{'hours':>8}   expected accuracy")
    for line in found["policies"]:
        name, below, accuracy = line["policy"], line["threshold"], line["accuracy"]
        name = f"{float(name):.0%}" if name[0].isdigit() else name
        dollars = "".join(
            f"{line['dollars'][mode]:>11.4f}" if found["sold"][mode] else f"{'–':>11}"
            for mode in MODES
        ) + ("" if measured else f"{line['most_dollars']:>11.4f}")
        below = "–" if below is None else f"{below:.4f}"
        said = "{value:.3f} ({low:.3f} to {high:.3f})".format(**accuracy) if accuracy else "–"
        lines.append(
            f"{name:<18}{line['rows']:>10,}{below:>9}{dollars}{line['calls']:>10,}"
            f"{line['hours']:>8.2f}   {said}"
        )
    tokens = f"An answer is taken to have {found['output_tokens_per_answer']:.1f} tokens"
    if measured:
        cached = f"{found['cached_input_share']:.0%} of the input from the provider's cache"
        why = f", and {cached}, as {found['answers_on_file']} answers on file had."
    else:
        why = (
            ", as one without reasoning has. That is not measured: too few answers are on file. "
            "A model that reasons may write up to strong.max_output_tokens "
            f"({found['max_output_tokens']:,}): most $ is what that costs. Once a run has answers, "
            "plan counts with theirs."
        )
    return "\n".join([*lines, tokens + why])
