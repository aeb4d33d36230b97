"""What the ways of judging cost, as ratios within one run.

    .venv/bin/python benchmarks/decoding.py                 a tiny model, on this machine
    .venv/bin/python benchmarks/decoding.py --shape 7b      Llama-2-7B's shape, on a GPU

Two models of the same shape with random weights (time needs no trained ones) stand for a judge
and its base model. Each way reads the same prompts, after a warm-up, once the prompts of the way
before are out of the prefix cache:

    verdict        one position per row                     rows/s
    full           256 tokens of critique, then the verdict  rows/s, and verdict/full
    calibrated     verdict with entropies, then the base model on the same tokens: cost/verdict's
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray_judge
from ray_judge.config import JudgeConfig
from ray_judge.judging.engines.engine import Reading
from ray_judge.judging.engines.tokens import TokenReader
from ray_judge.judging.engines.vllm import VllmModel
from ray_judge.judging.formats import Format, Parsed
from ray_judge.judging.formats.format import AnswerForm
from ray_judge.records import Example

TOKENIZER = Path(ray_judge.__file__).parent / "demo" / "model" / "judge"
SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
             "num_attention_heads": 8, "num_key_value_heads": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32},
}  # fmt: skip
CONTEXT = 2048


@dataclass(frozen=True)
class Lines:
    """The texts one behind the other."""

    def fill(self, example: Example, rubric: str) -> str:
        """Lay out an example."""
        return "\n".join((example.instruction, *example.responses)) + "\nBest: "


@dataclass(frozen=True)
class FirstLetter(AnswerForm):
    """The answer's first letter is the verdict, whatever follows."""

    def parse(self, answer: str) -> Parsed:
        """Take the first letter for the verdict."""
        return Parsed("A", start=0)


LETTERS = Format(
    "pairwise",
    Lines(),
    FirstLetter({"A": "A", "B": "B"}, leads=("",)),
    chat=False,
    max_output_tokens=256,
)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the ways of judging cost.")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--characters", type=int, default=300, help="of a prompt; about as tokens")
    parser.add_argument("--tokens", type=int, default=256, help="of a critique")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        judge = save(Path(folder) / "judge", options.shape, 1)
        base = save(Path(folder) / "base", options.shape, 2)
        for line in measure(judge, base, options):
            print(line, flush=True)
    return 0


def save(folder: Path, shape: str, seed: int) -> Path:
    """Write a model with random weights and the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) if shape == "tiny" else 32_000,
        max_position_embeddings=CONTEXT,
        **SHAPES[shape],
    )
    model = LlamaForCausalLM(config).to(torch.float32 if shape == "tiny" else torch.bfloat16)
    model.generation_config.eos_token_id = None  # it writes as much as it may
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(judge: Path, base: Path, options: Any) -> Sequence[str]:
    """Seconds for each way, best of the rounds, each round on prompts of its own."""
    shared = {"gpu_memory_utilization": 0.45, "max_model_len": CONTEXT}
    plain = JudgeConfig(model=str(judge), max_output_tokens=options.tokens)
    tapped = plain.model_copy(update={"confidence": "calibrated_entropy", "base_model": str(base)})
    model = VllmModel(tapped.model_copy(update={"engine_options": shared}))
    other = VllmModel(JudgeConfig(model=str(base), confidence="entropy", engine_options=shared))
    readers = {
        "verdict": TokenReader(plain, LETTERS, model),
        "full": TokenReader(plain.model_copy(update={"decode": "full"}), LETTERS, model),
        "calibrated": TokenReader(tapped, LETTERS, model),
    }

    def calibrated(examples: Sequence[Example]) -> None:
        readings = readers["calibrated"].read(examples)
        other.entropies([r.scored for r in readings if isinstance(r, Reading) and r.scored])

    ways: dict[str, tuple[Callable[[Sequence[Example]], object], int]] = {
        "verdict": (readers["verdict"].read, options.rows),
        "full": (readers["full"].read, max(8, options.rows // 10)),
        "calibrated": (calibrated, options.rows),
    }
    best: dict[str, float] = {}
    for number in range(options.rounds + 1):
        for name, (way, rows) in ways.items():
            examples = texts(rows, options.characters, f"{number} {name}")
            begun = time.perf_counter()
            way(examples)
            each = (time.perf_counter() - begun) / rows
            if number:  # the first round warms up
                best[name] = min(each, best.get(name, each))
    verdict, full, entropy = (best[name] for name in ways)
    return [
        f"verdict: {1 / verdict:.1f} rows/s",
        f"full, {options.tokens} tokens: {1 / full:.1f} rows/s",
        f"verdict is {full / verdict:.1f} times as fast as full",
        f"calibrated_entropy: {1 / entropy:.1f} rows/s",
        f"calibrated_entropy costs {entropy / verdict:.2f} times as much as probability",
    ]


def texts(count: int, characters: int, seed: str) -> list[Example]:
    """Pairs of random letters: no prompt begins like another."""
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choices("abcdefgh ", k=characters // 3))

    return [Example(text(), (text(), text())) for _ in range(count)]


if __name__ == "__main__":
    raise SystemExit(main())
