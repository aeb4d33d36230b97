"""`ray-judge demo`: a real cascade on this machine. Nothing in the path of `score` is special.

Pairs whose truth is known are written as Parquet shards, a local server stands in for the strong
judge (or a real one is asked, with `--base-url` or OPENAI_API_KEY), the ordinary YAML is written
and run, and what came out is compared with both judges alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ray_judge.config import RunConfig, load
from ray_judge.demo import server as simulator
from ray_judge.demo.server import ACCURACY, DemoServer, StrongAnswer
from ray_judge.demo.tasks import IN_DOMAIN, OUT_OF_DOMAIN, make_pairs
from ray_judge.errors import ConfigError
from ray_judge.escalation.pricing import cost, price_of
from ray_judge.escalation.questions import QuestionMaker
from ray_judge.pipeline import score
from ray_judge.progress import Progress
from ray_judge.records import Example, Usage

MODEL = Path(__file__).parent / "model" / "judge"
SHARDS = 6
IN_SHARE = 0.58
"""Share of the pairs that are of kinds that the judge was trained on."""
KEY_ENV = "RAY_JUDGE_DEMO_KEY"


def demo(options: argparse.Namespace) -> int:
    """Run the cascade on new pairs and print what it was worth."""
    output = Path(options.output).absolute()
    mine = (output / "demo.yaml").exists()
    if output.is_file() or (output.exists() and not mine and any(output.iterdir())):
        raise ConfigError("this folder is not a demo's: choose another --output", output=output)
    shutil.rmtree(output, ignore_errors=True)
    pairs = write_pairs(output / "pairs", options.pairs, options.seed)
    say(
        f"{pairs.height:,} pairs, {IN_SHARE:.0%} of kinds that the local judge "
        f"was trained on: {output}/pairs"
    )
    with strong_judge(options) as (strong, server):
        document = {
            "input": str(output / "pairs"),
            "output": str(output / "run"),
            "judge": {"format": "demo", "engine": "vllm", "model": str(MODEL), "dtype": "float32"},
            "route": {"policy": "fraction", "fraction": options.fraction},
            "strong": strong,
            "chunk_rows": 500,
        }
        (output / "demo.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        config = load(output / "demo.yaml")
        told = simulated_answers(config, pairs) if server else []
        if server:
            server.answers = dict(told)
        summary = score(config, Progress())
    rows = pl.read_parquet(output / "run" / "scored" / "*.parquet")
    alone = simulated_alone(options.model, pairs, told) if server else asked_alone(rows)
    print(report(rows, float(summary["spent_usd"]), alone, output))
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr)


def write_pairs(folder: Path, count: int, seed: int) -> pl.DataFrame:
    """Write `count` pairs as shards in which both domains are mixed; give them as one frame."""
    inside = round(count * IN_SHARE)
    made = [
        *make_pairs(inside, seed=seed, kinds=IN_DOMAIN),
        *make_pairs(count - inside, seed=seed + 1, kinds=OUT_OF_DOMAIN),
    ]
    pairs = pl.DataFrame([asdict(pair) for pair in made]).sample(
        fraction=1.0, shuffle=True, seed=seed
    )
    folder.mkdir(parents=True)
    size = -(-pairs.height // SHARDS)
    for number in range(-(-pairs.height // size)):
        pairs.slice(number * size, size).write_parquet(folder / f"part-{number:02d}.parquet")
    return pairs


@contextmanager
def strong_judge(options: Any) -> Iterator[tuple[dict[str, Any], DemoServer | None]]:
    """Give the config's `strong` part, and the simulated judge unless a real one is asked."""
    strong = {"model": options.model, "max_cost_usd": options.cap}
    strong |= {"concurrency": 32, "ties": False}
    if options.base_url or os.environ.get("OPENAI_API_KEY"):
        where = options.base_url or "api.openai.com"
        say(f"strong judge: {options.model} at {where}, at most ${options.cap:g}")
        yield {**strong, "base_url": options.base_url}, None
        return
    say(
        f"strong judge: a SIMULATOR on this machine, right in {ACCURACY:.0%}, at the prices "
        f"of {options.model}; no model runs in it and no money is spent "
        "(--base-url or OPENAI_API_KEY ask a real one)"
    )
    os.environ[KEY_ENV] = "demo"
    with simulator.running_server() as server:
        # No provider's limits hold here, so a laptop's patience is the only one.
        limits = {"requests_per_minute": 60_000, "tokens_per_minute": 60_000_000}
        address = {"base_url": server.base_url, "api_key_env": KEY_ENV}
        yield {**strong, **address, **limits}, server


def simulated_answers(config: RunConfig, pairs: pl.DataFrame) -> list[tuple[str, StrongAnswer]]:
    """Key of the question about each pair, and what the simulated judge answers to it."""
    maker, found = QuestionMaker(config), []
    for pair in pairs.iter_rows(named=True):
        responses = (pair["response_a"], pair["response_b"])
        (question,) = maker.of_example(Example(pair["instruction"], responses))
        verdict = simulator.strong_verdict(pair["instruction"], responses, pair["label"])
        assert question.body is not None
        tokens = simulator.prompt_tokens(question.body)
        found.append((question.key, StrongAnswer(verdict, tokens)))
    return found


def simulated_alone(
    model: str, pairs: pl.DataFrame, told: Sequence[tuple[str, StrongAnswer]]
) -> dict[str, Any]:
    """What the simulated judge answers to every pair, and what that would cost."""
    price = price_of(model)
    answers = [answer for _, answer in told]  # a tie is wrong, though the schema makes it an A
    right = sum(a.verdict == label for a, label in zip(answers, pairs["label"], strict=True))
    usages = [Usage(answer.prompt_tokens, simulator.ANSWER_TOKENS) for answer in answers]
    return {
        "judge": "strong judge (simulated)",
        "accuracy": right / pairs.height,
        "usd": sum((cost(price, usage) for usage in usages), Decimal(0)),
        "how": "asked about every pair",
    }


def asked_alone(rows: pl.DataFrame) -> dict[str, Any]:
    """A real strong judge on the rows that it was asked about; dollars extrapolated from them."""
    asked = rows.filter(pl.col("strong_verdict").is_not_null())
    spent = Decimal(asked["strong_cost_usd"].sum())
    return {
        "judge": "strong judge",
        "accuracy": share(asked, "strong_verdict") if asked.height else None,
        "usd": spent / max(1, asked.height) * rows.height,
        "how": "on the rows it was asked about" if asked.height else "it answered nothing",
    }


def share(rows: pl.DataFrame, column: str) -> float:
    return rows.filter(pl.col(column) == pl.col("label")).height / max(1, rows.height)


def report(rows: pl.DataFrame, spent: float, alone: Mapping[str, Any], output: Path) -> str:
    asked = rows.filter(pl.col("route") != "accept").height
    everything, strong, how = float(alone["usd"]), alone["judge"], alone["how"]
    inside, outside = rows.filter(domain="in"), rows.filter(domain="out")
    strong_accuracy = "  –  " if alone["accuracy"] is None else f"{alone['accuracy']:.3f}"
    saved = 1 - spent / everything if everything else 0.0
    return f"""
                                  accuracy   calls      dollars
local judge alone                    {share(rows, "judge_verdict"):.3f}       0       0.0000
  on kinds it was trained on         {share(inside, "judge_verdict"):.3f}
  on kinds it never saw              {share(outside, "judge_verdict"):.3f}
{strong:<28}         {strong_accuracy}   {rows.height:5d}   {everything:10.4f}   ({how})
cascade                              {share(rows, "final_verdict"):.3f}   {asked:5d}   {spent:10.4f}

{asked / rows.height:.0%} of the pairs were escalated; {saved:.0%} of the dollars stayed with you.
scored shards   {output}/run/scored/
page            {output}/run/report.html
summary         {output}/run/summary.json
configuration   {output}/demo.yaml   (ray-judge score runs it)
"""
