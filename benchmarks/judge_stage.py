"""What phase A costs on top of vLLM: rows/s of Ray Data, chunks and commits against bare vLLM.

    make bench                     or: .venv/bin/python benchmarks/judge_stage.py --rows 8000

The same prompts, model and options, on the same machine, one after the other: bare vLLM first
(one `LLM.generate` over all prompts in a process of its own), then phase A as `ray-judge score`
runs it (read, render, tokenise, judge, commit), then bare vLLM again, so that a machine that is
busy with something else shows as a difference between the two. Neither number has the start of
the engine in it: bare vLLM is warmed up, and phase A is timed from one of its first commits to
its last.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import polars as pl

import ray_judge
from ray_judge.cluster import connected
from ray_judge.config import RunConfig, parse
from ray_judge.demo.tasks import IN_DOMAIN, make_pairs
from ray_judge.judging.engines.vllm import CPU_DEFAULTS
from ray_judge.judging.formats import format_for
from ray_judge.judging.stage import CHUNKS_PER_ACTOR, JudgeTask, judge_chunks
from ray_judge.records import Example
from ray_judge.run.directory import RunDirectory
from ray_judge.run.plan import plan_input

MODEL = Path(ray_judge.__file__).parent / "demo" / "model" / "judge"
WARM_UP = CHUNKS_PER_ACTOR + 1
"""Chunks that are committed before the clock starts: then the pipeline is full."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Rows/s of phase A against bare vLLM.")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--chunk-rows", type=int, default=250)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        print(
            f"there is no judge in {options.model}: train it (python -m tools.demo_judge.train) or "
            "name another with --model",
            file=sys.stderr,
        )
        return 2
    if options.rows < 2 * WARM_UP * options.chunk_rows:
        parser.error(f"at least {2 * WARM_UP} chunks: fewer would time the start and the end")
    if options.bare:
        print(bare(options.model, pl.read_parquet(options.bare)["prompt"].to_list()))
        return 0
    with tempfile.TemporaryDirectory(prefix="rj-", ignore_cleanup_errors=True) as folder:
        compare(options, Path(folder))
    return 0


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Bare, phase A, bare; on the same rows."""
    config = configuration(options, folder)
    rows = pl.DataFrame([asdict(p) for p in make_pairs(options.rows, seed=1, kinds=IN_DOMAIN)])
    (folder / "pairs").mkdir()
    rows.write_parquet(folder / "pairs" / "part-0.parquet")
    form = format_for(config.judge, config.task)
    prompts = [
        form.render(Example(row["instruction"], (row["response_a"], row["response_b"]))).plain()
        for row in rows.iter_rows(named=True)
    ]
    pl.DataFrame({"prompt": prompts}).write_parquet(folder / "prompts.parquet")

    before = bare_in_its_own_process(options.model, folder)
    ours = phase_a(config)
    after = bare_in_its_own_process(options.model, folder)
    theirs = (before + after) / 2
    print(f"{options.rows} rows of {sum(map(len, prompts)) / len(prompts):.0f} characters, "
          f"chunks of {options.chunk_rows}, {os.cpu_count()} cores")  # fmt: skip
    print(f"bare vLLM   {before:8.1f} rows/s before, {after:.1f} after")
    print(f"phase A     {ours:8.1f} rows/s")
    print(f"ratio       {ours / theirs:8.2f}")


def configuration(options: argparse.Namespace, folder: Path) -> RunConfig:
    """Give a run of one judge; its strong judge is never asked."""
    return parse(
        {
            "input": str(folder / "pairs"),
            "output": str(folder / "run"),
            "judge": {"format": "demo", "model": str(options.model), "dtype": "float32"},
            "route": {"policy": "fraction", "fraction": 0},
            "strong": {"model": "gpt-4.1", "max_cost_usd": 0},
            "chunk_rows": options.chunk_rows,
        }
    )


def phase_a(config: RunConfig) -> float:
    """Rows/s of phase A between one of its first commits and the last."""
    run = RunDirectory(config.output)
    plan = plan_input(config, ())
    run.begin(config, plan)
    rows = {chunk.name: chunk.rows for chunk in plan.chunks()}
    with connected():
        names = judge_chunks(JudgeTask(config, plan.columns, run, 0), list(plan.chunks()))
        commits = [(time.monotonic(), rows[name]) for name in names]
    timed = commits[WARM_UP:]
    return sum(count for _, count in timed) / (timed[-1][0] - commits[WARM_UP - 1][0])


def bare_in_its_own_process(model: Path, folder: Path) -> float:
    """Rows/s of bare vLLM; one engine per process."""
    command = [sys.executable, __file__, "--model", str(model)]
    prompts = folder / "prompts.parquet"
    found = subprocess.run(
        [*command, "--bare", str(prompts)], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(found.stdout.split()[-1])


def bare(model: Path, prompts: list[str]) -> float:
    """Rows/s of one `generate` over all prompts, by the engine options that phase A has."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    options = dict(CPU_DEFAULTS) if current_platform.is_cpu() else {}
    llm = LLM(model=str(model), dtype="float32", enable_prefix_caching=True, **options)
    tokenizer = llm.get_tokenizer()
    verdicts = [tokenizer.convert_tokens_to_ids(name) for name in ("A", "B")]
    params = SamplingParams(
        max_tokens=1, temperature=0.0, logprob_token_ids=verdicts, detokenize=False
    )
    llm.generate([prompt[::-1] for prompt in prompts[:200]], params, use_tqdm=False)
    begun = time.monotonic()
    llm.generate(prompts, params, use_tqdm=False)
    return len(prompts) / (time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
