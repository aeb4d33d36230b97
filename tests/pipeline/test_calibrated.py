"""calibrated_entropy end to end: a pool for the judge, one for its base model, and a judge of the
user's own, told in YAML alone."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tests.provider import RunningServer

from ..engines import tiny  # noqa: TID252
from ..engines.test_exactness import Reference  # noqa: TID252
from .conftest import Runs

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
TEMPLATE = "{instruction}\n{response_a}\n{response_b}\nVerdict:"


def test_judge_and_base_model(runs: Runs, server: RunningServer, tmp_path: Path) -> None:
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
