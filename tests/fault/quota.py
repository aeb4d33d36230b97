"""An account that is empty in the middle of a run: how soon the command gives its exit code 4.

    python -m tests.fault.quota

Measured from the provider's first `insufficient_quota` to the end of the process, on a Ray that
was there and on one that the command starts and stops itself. Then the account is filled, and the
same command finishes without asking anything again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

from tests.provider import RunningServer, running_server

from .kill import Scored, server_config, write_pairs
from .one_process import clean
from .storm import on_ray

WITHIN_S = 5.0


def exhausted(folder: Path, server: RunningServer, address: str | None, rows: int) -> float:
    """Score until the account is empty, check that all is kept, fill it, finish; seconds."""
    latency = server_config().latency.model_dump()
    clean(server, latency=latency, quota_usd=f"{rows * 0.00015:.6f}")  # about half of the rows'
    run = Scored(folder / "run", server, address)
    process = run.start()
    seconds, said = _ended(process, server)
    assert process.returncode == 4, said
    assert "insufficient_quota" in said
    kept = server.stats()["billed"]
    assert 0 < kept < rows
    assert not (run.output / "summary.json").exists()

    server.configure(quota_usd=None)
    process = run.start()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    stats, scored = server.stats(), run.rows()
    assert (stats["billed"], stats["billed_twice"]) == (rows, 0)
    assert scored["outcome"].to_list() == ["resolved"] * rows
    assert Decimal(stats["total_usd"]) <= Decimal(run.max_cost_usd)
    return seconds


def _ended(process: subprocess.Popen[str], server: RunningServer) -> tuple[float, str]:
    """Seconds from the provider's first refusal to the end of the process, and its last words."""
    _, said = process.communicate(timeout=300)
    ended = time.monotonic()  # the system's, as the provider's
    told = server.stats()["quota_told_monotonic"]
    assert told is not None, said
    return ended - told, said


def main() -> int:
    """Measure both."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.quota", description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="rj-", ignore_cleanup_errors=True) as name,
        running_server(server_config()) as server,
    ):
        folder = Path(name)
        for where in ("its", "ours"):
            (folder / where).mkdir()
            write_pairs(folder / where / "in", options.rows)

        def measure(address: str | None) -> int:
            where = "ours" if address else "its"
            seconds = exhausted(folder / where, server, address, options.rows)
            print(f"exit 4 within {seconds:.2f} s, on {'a' if address else 'its own'} Ray")
            return int(seconds > WITHIN_S)

        return measure(None) + on_ray(folder, measure)


if __name__ == "__main__":
    sys.exit(main())
