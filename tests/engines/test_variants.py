"""Judges that are an adapter on a base model, or lie on several devices: the same figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_judge.judging.engines.engine import Reading, name_model
from ray_judge.judging.engines.tokens import TokenReader

from . import parallel, tiny
from .test_exactness import CLOSE, Reference, check_probs

pytestmark = tiny.NEEDS_VLLM
ROOT = Path(__file__).resolve().parents[2]
RANK, ALPHA = 8, 16


def make_adapter(base: Path, folder: Path) -> Path:
    """Write a LoRA adapter as PEFT does, and the model that it makes of the base; gives that."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(9)
    merged = tiny.make_model(folder / "merged", 1)
    weights, adapter = load_file(base / "model.safetensors"), {}
    for layer in range(2):
        for part in ("q_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{part}"
            rows, columns = weights[f"{name}.weight"].shape
            down, up = torch.randn(RANK, columns) * 0.1, torch.randn(rows, RANK) * 0.1
            adapter[f"base_model.model.{name}.lora_A.weight"] = down
            adapter[f"base_model.model.{name}.lora_B.weight"] = up
            weights[f"{name}.weight"] += ALPHA / RANK * up @ down
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": RANK,
        "lora_alpha": ALPHA, "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": str(base),
    }  # fmt: skip
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return merged


def test_an_adapter(tmp_path: Path) -> None:
    from ray_judge.judging.engines.vllm import VllmModel

    base = tiny.make_model(tmp_path / "base", 1)
    merged = Reference(make_adapter(base, tmp_path))
    judge = tiny.judge(
        base, adapter=str(tmp_path / "adapter"), confidence="entropy",
        engine_options={"kv_cache_memory_bytes": 64 << 20},
    )  # fmt: skip
    model = VllmModel(judge)
    assert name_model(judge) == f"{base}+{tmp_path / 'adapter'}"
    format_, asked = tiny.letters(), tiny.examples(20, "pairwise", longest=60)
    plain, moved = Reference(base), 0.0
    for example, reading in zip(asked, TokenReader(judge, format_, model).read(asked), strict=True):
        assert isinstance(reading, Reading)
        prompt = merged.tokenizer(format_.render(example).plain())["input_ids"]
        wanted, _ = merged.probs(prompt, format_.spellings, "\nVerdict:")
        before, _ = plain.probs(prompt, format_.spellings, "\nVerdict:")
        check_probs(reading.logprobs, wanted)
        moved = max(moved, *(abs(p - before[name]) for name, p in wanted.items()))
    assert moved > 100 * CLOSE, "the adapter makes a difference"


@pytest.mark.skipif((os.cpu_count() or 1) < 4, reason="two ranks spin on a core each, all the time")
def test_two_tensor_parallel_ranks(tmp_path: Path) -> None:
    """Entropies are taken out of the workers' processes, and tokens forced in both of them."""
    folder = tiny.make_model(tmp_path / "m", 1)
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.parallel", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    reference, format_ = Reference(folder), tiny.phrases()
    assert len(told) == parallel.COUNT
    for example, reading in zip(parallel.asked(), told, strict=True):
        prompt = reference.tokenizer(format_.render(example).plain())["input_ids"]
        tail = "\nVerdict:" + format_.opening
        wanted, each = reference.probs(prompt, format_.spellings, tail)
        check_probs(reading["logprobs"], wanted)
        best = max(each, key=lambda path: each[path])
        assert reading["again"] == pytest.approx(reference.entropies(prompt, best), abs=CLOSE)
