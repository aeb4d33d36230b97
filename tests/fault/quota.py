"""An account that is empty in the middle of a run: how soon the command gives its exit code 4.

    python -m tests.fault.quota

Measured from the provider's first `insufficient_quota` to the end of the process, which stops its
own Ray. Then the account is filled, and the same command finishes without asking anything again.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.provider import RunningServer, running_server

from .kill import LATENCY, described, finish, rows_of, write_pairs

WITHIN_S = 5.0
ROWS = 2000


def exhausted(folder: Path, server: RunningServer) -> float:
    """Score until the account is empty, check that all is kept, fill it, finish; seconds."""
    server.clean(latency=LATENCY, quota_usd=f"{ROWS * 0.00015:.6f}")  # about half of the rows'
    write_pairs(folder / "in", ROWS)
    run = described(folder / "run", server)
    assert "insufficient_quota" in finish(run, None, 4)
    ended = time.monotonic()  # the system's, as the provider's
    seconds: float = ended - server.stats()["quota_told_monotonic"]
    assert 0 < server.stats()["billed"] < ROWS
    assert not (folder / "run" / "out" / "summary.json").exists()

    server.configure(quota_usd=None)
    finish(run, None)
    stats = server.stats()
    assert (stats["billed"], stats["billed_twice"]) == (ROWS, 0)
    assert rows_of(run)["outcome"].to_list() == ["resolved"] * ROWS
    return seconds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="rj-") as name, running_server() as provider:
        taken_s = exhausted(Path(name), provider)
    print(f"exit 4 within {taken_s:.2f} s")
    sys.exit(taken_s > WITHIN_S)
