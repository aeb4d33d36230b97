"""How the pools of phase A are sized, and what the base model makes of a judged chunk."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from ray_judge.config import JudgeConfig
from ray_judge.judging import stage
from ray_judge.judging.stage import SCORED_TYPE, Pool, calibrate_rows, pool_size, without_nan
from ray_judge.records import Scored

from . import builders

CALIBRATED = {"confidence": "calibrated_entropy"}


@pytest.mark.parametrize(
    ("wish", "cluster", "pool"),
    [
        ({}, {"GPU": 8, "CPU": 64}, Pool(4, 1, 1)),
        ({}, {"CPU": 4}, Pool(4, 0, 0.5)),
        ({"replicas": 64}, {"CPU": 4}, Pool(10, 0, 0.2)),  # never more than there are chunks
        ({"engine_options": {"tensor_parallel_size": 2}}, {"GPU": 8, "CPU": 64}, Pool(4, 2, 1)),
        ({"gpus_per_replica": 0.25}, {"GPU": 1, "CPU": 8}, Pool(4, 0.25, 1)),
        (CALIBRATED, {"GPU": 8, "CPU": 64}, Pool(4, 1, 1)),
        ({**CALIBRATED, "share_gpu": True}, {"GPU": 4, "CPU": 64}, Pool(4, 0.5, 1)),
        (CALIBRATED, {"CPU": 4}, Pool(4, 0, 0.25)),
    ],
)
def test_pools(wish: dict[str, Any], cluster: dict[str, float], pool: Pool) -> None:
    """On a machine without GPUs all actors together hold at most half of the CPUs."""
    judge = JudgeConfig(**{"model": "m", "replicas": 4, **wish})
    assert pool_size(judge, cluster, chunks=10) == pool
    models = 2 if "confidence" in wish else 1
    assert "GPU" in cluster or models * pool.replicas * pool.cpus <= cluster["CPU"] / 2


@pytest.mark.parametrize(
    ("wish", "gpus", "memory", "shared"),
    [
        (None, 1, 60, True),
        (None, 1, 40, False),  # weights of 30 would leave too little for the caches
        (None, 0, 60, False),
        (True, 1, 40, True),
        (False, 1, 60, False),
    ],
)
def test_two_models_share_a_gpu_when_their_weights_fit(
    wish: Any, gpus: int, memory: int, shared: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    for name, size in (("judge", 10), ("base", 20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(size))
    models = {"model": str(tmp_path / "judge"), "base_model": str(tmp_path / "base")}
    config = builders.config(judge={**models, **CALIBRATED, "share_gpu": wish})
    monkeypatch.setattr(stage.ray, "cluster_resources", lambda: {"GPU": gpus} if gpus else {})
    monkeypatch.setattr(stage.ray, "get", lambda value: value)
    monkeypatch.setattr(stage, "gpu_bytes", SimpleNamespace(remote=lambda: memory))
    assert bool(stage.settle_sharing(config).judge.share_gpu) == shared


class Base:
    """Gives each token its own number for an entropy."""

    def entropies(self, scored: Sequence[Scored]) -> list[list[float]]:
        return [[-float(token) for token in item.answer] for item in scored]


def test_the_base_models_entropies_are_subtracted() -> None:
    """Per prompt the mean over its tokens, then the mean over prompts; null stays null."""
    rows = builders.judged(*({"judge_confidence": value} for value in (-1.0, -2.0, None)))
    scored = [
        [Scored((9,), (1, 3)), Scored((9,), (4,))],
        [Scored((9, 9), (5,)), Scored((9,), (7, 7))],
        [Scored((9,), (100,)), Scored((9,), (100,))],
    ]
    asked = pa.array([list(map(asdict, row)) for row in scored], SCORED_TYPE)
    found = calibrate_rows(rows.append_column("__scored", asked), Base())  # type: ignore[arg-type]
    assert found["judge_confidence"].to_pylist() == [-1 - -(2 + 4) / 2, -2 - -(5 + 7) / 2, None]
    others = [name for name in rows.column_names if name != "judge_confidence"]
    assert found.select(others).equals(rows.select(others))


def test_a_confidence_that_is_no_number_is_null_and_says_so() -> None:
    given = [(0.5, None), (math.nan, None), (None, "e"), (math.nan, "e")]
    found = without_nan(builders.judged(*({"judge_confidence": c, "error": e} for c, e in given)))
    assert found.schema.equals(builders.JUDGED)
    assert found["judge_confidence"].to_pylist() == [0.5, None, None, None]
    said = "judge: its confidence is not a number"
    assert found["error"].to_pylist() == [None, said, "e", "e"]
