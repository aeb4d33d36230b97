"""The share of the allowed rate that a run uses, and how many of its requests are answered 429.

    make bench                     or: .venv/bin/python -m benchmarks.rates --case requests

`ray-judge score` with eight askers, as its command line runs it, against the simulated provider,
which enforces 5,000 requests and 1,000,000 tokens a minute over every single second (it saves up
no more than that). Twice: with questions so short that the requests are what is scarce, and with
the default answer length, where the tokens are. What counts is what the provider itself admitted,
from the moment when all askers are at work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.provider import RunningServer, running_server

RPM, TPM = 5000, 1_000_000
ASKERS, IN_FLIGHT = 8, 512
WARM_UP_S = 10.0
"""From the first bill on; Ray starts the askers' processes one after the other."""
LATENCY = {"min_ms": 300, "max_ms": 1500}


@dataclass(frozen=True)
class Case:
    """What is scarce, and the answer length that makes it so."""

    name: str
    max_output_tokens: int
    per_minute: float
    """Requests that the limits allow, about: how many rows are needed."""


CASES = (Case("requests", 30, RPM), Case("tokens", 300, TPM / 460))


def main() -> int:
    """Measure and print; 1 when a share is below 98 % or more than 0.1 % are 429."""
    parser = argparse.ArgumentParser(description="The share of the allowed rate that is used.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append")
    options = parser.parse_args()
    good = True
    for case in CASES:
        if not options.case or case.name in options.case:
            good = measure(case, options.seconds) and good
    return 0 if good else 1


def measure(case: Case, seconds: float) -> bool:
    """One run of its own, with a server and a Ray of its own."""
    limits = {"rpm": RPM, "tpm": TPM}
    rows = int(case.per_minute / 60 * (WARM_UP_S + seconds) * 1.1) + 500
    with (
        tempfile.TemporaryDirectory(prefix="rj-", ignore_cleanup_errors=True) as folder,
        running_server(latency=LATENCY, limits=limits) as server,
    ):
        score(case, rows, Path(folder), server)
        requests, tokens = admitted(case, seconds, server)
        stats = server.stats()
    asked, refused = stats["chat_requests"], stats["by_status"].get("429", 0)
    share = max(requests / (RPM / 60 * seconds), tokens / (TPM / 60 * seconds))
    print(
        f"{case.name} are scarce: {requests} requests and {tokens} tokens in {seconds:g} s, "
        f"{share:.2%} of what is allowed; {refused} of {asked} requests answered 429 "
        f"({refused / asked:.3%}); at most {stats['max_in_flight']} in flight"
    )
    return share >= 0.98 and refused <= 0.001 * asked


def score(case: Case, rows: int, folder: Path, server: RunningServer) -> None:
    """Run the command to its end."""
    (folder / "in").mkdir()
    table = {
        "instruction": [f"Write down the number {n}." for n in range(rows)],
        "response_a": [f"{n}" for n in range(rows)],
        "response_b": [f"perhaps {n + 1}" for n in range(rows)],
        "p_a": [0.6] * rows,
        "p_b": [0.4] * rows,
    }
    pq.write_table(pa.table(table), folder / "in" / "part-0.parquet")
    document = {
        "input": str(folder / "in"),
        "output": str(folder / "out"),
        "judge": {"engine": "columns", "prob_columns": {"A": "p_a", "B": "p_b"}},
        "route": {"policy": "fraction", "fraction": 1},
        "strong": {
            "model": "gpt-4.1",
            "base_url": server.base_url,
            "max_cost_usd": 100,
            "requests_per_minute": RPM,
            "tokens_per_minute": TPM,
            "concurrency": IN_FLIGHT,
            "max_output_tokens": case.max_output_tokens,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    code = "from ray_judge.cli import entry_point; entry_point()"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    subprocess.run(
        [sys.executable, "-c", code, "score", str(folder / "run.yaml"), "--quiet"],
        env={
            # At the provider's own priority: at Ray's, whatever else this machine does comes first.
            "RAY_worker_niceness": "0",
            **environment,
            "OPENAI_API_KEY": server.api_key,
            "RAY_TMPDIR": str(folder),
        },
        stdout=subprocess.DEVNULL,
        check=True,
    )


def admitted(case: Case, seconds: float, server: RunningServer) -> tuple[int, int]:
    """Requests and tokens, as the provider's limits count them, of the middle of the run."""
    bills = sorted(server.bills(), key=lambda bill: bill["billed_monotonic"])
    times = [bill["billed_monotonic"] for bill in bills]
    begin = bisect_left(times, times[0] + WARM_UP_S)
    end = bisect_left(times, times[begin] + seconds)
    assert end < len(times), "the run was shorter than the measurement"
    window = bills[begin:end]
    return len(window), sum(b["prompt_tokens"] + case.max_output_tokens for b in window)


if __name__ == "__main__":
    sys.exit(main())
