"""Judges on vLLM, end to end: the shipped one, one that grades, one beside its base model."""

import math
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tests.engines import tiny
from tests.engines.test_exactness import Reference
from tests.engines.test_rewards import conversation, reference
from tests.provider import RunningServer

from .conftest import ROOT, Runs

MODEL = ROOT / "ray_judge" / "demo" / "model" / "judge"
pytestmark = tiny.NEEDS_VLLM
CONTEXT = 4096
"""Tokens, and bytes, of the demo judge's context."""


@pytest.mark.parametrize("task", ["pairwise", "pointwise"])
def test_a_reward_model(runs: Runs, tmp_path: Path, task: str) -> None:
    """Its margins order the rows of two shards, or its rewards are their scores."""
    model = tiny.make_reward(tmp_path / "reward", 3)
    asked = tiny.examples(60, "pairwise", seed=4, longest=60)
    told = reference(model, [conversation(one, text) for one in asked for text in one.responses])
    r_a, r_b = ([told[conversation(one, one.responses[n])] for one in asked] for n in (0, 1))
    columns = {"instruction": [one.instruction for one in asked], "r_a": r_a, "r_b": r_b}
    names = ("response_a", "response_b") if task == "pairwise" else ("response",)
    texts = {name: [one.responses[n] for one in asked] for n, name in enumerate(names)}
    table = pa.table({**columns, **texts})
    judge = {"format": "reward", "engine": "transformers", "model": str(model), "dtype": "float32"}
    if task == "pointwise":
        judge |= {"rewards": [min(r_a), max(r_a)], "score": "mean"}
    shards = table.slice(0, 40), table.slice(40)
    run = runs(*shards, task=task, judge=judge, strong__max_cost_usd=0)
    assert run.score() == 0
    found, margins = run.scored(), [a - b for a, b in zip(r_a, r_b, strict=True)]
    if task == "pairwise":
        sure = found["judge_confidence"].to_list()
        assert sure == pytest.approx([abs(margin) for margin in margins], abs=1e-4)
        assert found["judge_verdict"].to_list() == ["A" if m > 0 else "B" for m in margins]
        known = sorted(sure)[30:]
        assert found.filter(route="accept")["judge_confidence"].sort().to_list() == known
    else:
        wide = max(r_a) - min(r_a)
        wanted = [1 + 4 * (reward - min(r_a)) / wide for reward in r_a]
        assert found["judge_verdict"].to_list() == pytest.approx(wanted, abs=1e-3)
        means = [
            math.fsum(float(k) * p for k, p in row.items())
            for row in found["judge_probs"].to_list()
        ]
        assert means == pytest.approx(wanted, abs=1e-3)
        order = sorted(range(60), key=wanted.__getitem__)  # errors that no straight line follows
        odd = {n: (1, -1, -1, 1)[at % 4] for at, n in enumerate(order[:40])}
        labels = [score + odd.get(n, 0) for n, score in enumerate(wanted)]
        _is_scaled_by_labels(runs, table.append_column("label", [labels]), judge, wanted)
    assert not found["error"].is_not_null().any()


def _is_scaled_by_labels(runs: Runs, table: pa.Table, judge: Any, wanted: list[float]) -> None:
    """Without `rewards` they are fitted to labels, and a run needs that calibration."""
    changes = {"judge": {**judge, "rewards": None}, "strong__max_cost_usd": 0}
    run = runs(table, task="pointwise", **changes)
    assert run.score() == 2 and "judge.rewards: [lowest, highest]" in run.said
    run.document["route"]["calibration"] = str(run.folder / "calibration.json")
    assert "rewards of the lowest and the highest" in run.command("calibrate", "--labels", "label")
    assert run.score() == 0
    assert run.scored()["judge_verdict"].to_list() == pytest.approx(wanted, abs=0.1)


def test_pairs_in_both_orders(runs: Runs, server: RunningServer) -> None:
    """Every pair and its mirror image, with misfortunes between them."""
    words = ["cat", "house", "river", "stone", "blue", "seven", "pencil", "window"] * 4
    asked = [f"Copy: {word}{n}" for n, word in enumerate(words)]
    here, there = [f"{w}{n}" for n, w in enumerate(words)], [f"{w}?" for w in words]
    rows = {
        "instruction": [*asked, *asked, None, "x" * (CONTEXT + 1), "x" * (CONTEXT - 60)],
        "response_a": [*here, *there, "a", "a", "a"],
        "response_b": [*there, *here, "b", "b", "b"],
    }
    odd = ["def f(x):\n    return {x}\n", "«Où?» 東京 🦊", "\t \u200bA: B: Best: ", "word " * 300]
    odd = [f"{text}{number}" for number in range(10) for text in odd]
    strange = {"instruction": odd, "response_a": odd[1:] + odd[:1], "response_b": odd[::-1]}
    shards = [pa.table(rows), pa.table(strange)]
    judge = {"format": "demo", "model": str(MODEL), "dtype": "float32", "swap": True}
    run = runs(*shards, judge=judge, route__fraction=0.1, chunk_rows=20)
    assert run.score() == 0
    scored, n = run.scored().to_dicts(), len(words)
    for straight, mirrored in zip(scored[:n], scored[n : 2 * n], strict=True):
        assert straight["error"] is None and straight["judge_model"] == str(MODEL)
        p, q = straight["judge_probs"], mirrored["judge_probs"]
        assert math.fsum((p["A"], p["B"])) == pytest.approx(1) and p["tie"] is None
        # Both were read in both orders: only the batch's rounding is between them.
        assert p["A"] == pytest.approx(q["B"], abs=1e-4)
        assert straight["judge_confidence"] == max(p["A"], p["B"])
        assert straight["judge_verdict"] == ("A" if p["A"] >= p["B"] else "B")
    null, long, fits = scored[2 * n : 2 * n + 3]
    assert null["error"] == "input: instruction is null" and null["judge_verdict"] is None
    assert (null["outcome"], null["final_source"]) == ("failed", "none")
    assert "context" in long["error"] and long["error"].startswith("judge: the prompt has ")
    assert long["judge_probs"] is None and long["judge_confidence"] is None
    assert (long["outcome"], long["final_source"]) == ("resolved", "strong")
    assert fits["judge_verdict"] is not None and fits["error"] is None
    for row in scored[2 * n + 3 :]:
        assert row["judge_verdict"] in ("A", "B") or len(row["error"]) > 20
    count = sum(map(len, shards))
    assert run.summary()["rows"] == count
    assert run.summary()["routes"]["escalate"] == count // 10 == server.stats()["billed"]


def test_scores_of_single_responses(runs: Runs, server: RunningServer) -> None:
    """`generic` with any model: here one that was never taught to grade."""
    rows = {
        "question": [f"Spell {n}." for n in range(30)],
        "response": [f"{n}" * (n % 7 + 1) for n in range(30)],
        "grade": [float(n % 5 + 1) if n % 3 else None for n in range(30)],
    }
    judge = {"format": "generic", "model": str(MODEL), "dtype": "float32", "min_mass": 0.0}
    judge |= {"scores": [1, 5], "confidence": "margin", "rubric": "Only spelling counts."}
    run = runs(
        pa.table(rows), judge=judge, task="pointwise",
        columns={"instruction": "question", "label": "grade"},
        route__fraction=0.5, strong__scores=[1, 5],
    )  # fmt: skip
    assert run.score() == 0
    scored = run.scored()
    assert scored.schema["final_verdict"] == scored.schema["judge_verdict"] == pl.Float64
    assert scored["judge_verdict"].is_in([1.0, 2.0, 3.0, 4.0, 5.0]).all()
    assert list(scored["judge_probs"].struct.fields) == ["1", "2", "3", "4", "5"]
    strong = scored.filter(outcome="resolved")
    assert strong.height == 15 == server.stats()["billed"]
    assert strong["strong_verdict"].is_between(1, 5).all()
    assert strong["final_verdict"].to_list() == strong["strong_verdict"].to_list()
    kept = scored.filter(outcome="not_needed")["judge_confidence"].min()
    assert strong["judge_confidence"].max() <= kept  # type: ignore[operator]
    assert set(run.summary()["label_accuracy"]) == {"judge", "final"}


TEMPLATE = "{instruction}\n{response_a}\n{response_b}\nVerdict:"


def test_judge_and_base_model(runs: Runs, server: RunningServer, tmp_path: Path) -> None:
    """`calibrated_entropy`, by a judge of the user's own, told in YAML alone."""
    judge_model = tiny.make_model(tmp_path / "judge", 1)
    base_model = tiny.make_model(tmp_path / "base", 2)
    examples = tiny.examples(45, "pairwise", seed=3, longest=60)
    table = pa.table(
        {
            "instruction": [example.instruction for example in examples] + [None],
            "response_a": [example.responses[0] for example in examples] + ["a"],
            "response_b": [example.responses[1] for example in examples] + ["word " * 3000],
        }
    )
    judge = {
        "format": "custom",
        "custom": {"template": TEMPLATE, "choices": {"A": ["A", " A"], "B": ["B", " B"]}},
        "model": str(judge_model),
        "base_model": str(base_model),
        "dtype": "float32",
        "confidence": "calibrated_entropy",
        "swap": True,
        "min_mass": 0,
        "engine_options": {"kv_cache_memory_bytes": 64 << 20},
    }
    run = runs(table, judge=judge, chunk_rows=16, route__fraction=0.5)
    assert run.score() == 0
    rows = run.scored().to_dicts()
    assert rows[-1]["error"] == "input: instruction is null"

    own, base = Reference(judge_model), Reference(base_model)
    for example, row in zip(examples, rows, strict=False):
        differences = []
        for order in (example, example.swapped()):
            text = "\n".join((order.instruction, *order.responses)) + "\nVerdict:"
            prompt = own.tokenizer(text)["input_ids"]
            _, each = own.probs(prompt, {"A": ("A", " A"), "B": ("B", " B")}, "\nVerdict:")
            best = max(each, key=lambda path: each[path])
            here, there = own.entropies(prompt, best), base.entropies(prompt, best)
            differences.append(math.fsum(here) / len(here) - math.fsum(there) / len(there))
        assert row["judge_confidence"] == pytest.approx(math.fsum(differences) / 2, abs=1e-4)
    parts = sorted((run.output / "judged").rglob("*.parquet"))
    agree = [value for path in parts for value in pl.read_parquet(path)["judge_orders_agree"]]
    assert agree[-1] is None and None not in agree[:-1]
    ranked = sorted((row["judge_confidence"], n) for n, row in enumerate(rows[:-1]))
    asked = {n for n, row in enumerate(rows) if row["route"] == "escalate"}
    assert asked == {n for _, n in ranked[:23]}
    assert server.stats()["billed"] == 23
