"""The demo's server: it knows the questions of one demo, and counts the tokens of each."""

import json
from pathlib import Path

import httpx
import polars as pl

from ray_judge.config import parse
from ray_judge.demo.command import simulated_alone, simulated_answers, write_pairs
from ray_judge.demo.server import running_server
from ray_judge.escalation.questions import QuestionMaker
from ray_judge.records import Example


def test_the_demos_questions_are_answered_and_no_others(tmp_path: Path) -> None:
    strong = {"model": "gpt-4.1", "max_cost_usd": 1, "ties": False}
    config = parse(
        {"input": "i", "output": "o", "judge": {"model": "m"}, "strong": strong,
         "route": {"policy": "fraction", "fraction": 0.5}}
    )  # fmt: skip
    pairs = write_pairs(tmp_path / "pairs", 1000, 1)
    assert pairs.height == pl.read_parquet(tmp_path / "pairs" / "*.parquet").height == 1000
    told = simulated_answers(config, pairs)
    alone = simulated_alone("gpt-4.1", pairs, told)
    assert 0.95 < alone["accuracy"] < 0.99 and 0 < alone["usd"] < 1
    maker, pair = QuestionMaker(config), pairs.row(0, named=True)
    ours = Example(pair["instruction"], (pair["response_a"], pair["response_b"]))
    examples = (ours, Example("Nothing of ours", ("a", "b")))
    known, other = (maker.of_example(example)[0].body for example in examples)
    with running_server() as server, httpx.Client(trust_env=False) as client:
        server.answers = dict(told)
        address = f"{server.base_url}/chat/completions"
        found, unknown = (client.post(address, json=body) for body in (known, other))
    completion = found.json()
    assert completion["choices"][0]["message"]["content"] == told[0][1].content
    assert json.loads(told[0][1].content)["verdict"] in {"A", "B"}
    assert completion["usage"]["prompt_tokens"] == told[0][1].prompt_tokens > 50
    assert unknown.status_code == 404
