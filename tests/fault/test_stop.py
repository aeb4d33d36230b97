"""Some runs of `stop.py`; `tests/pipeline/test_resume.py` tells a run to stop in each phase.

python -m tests.fault.stop --stops 100 --rows 600      is the whole of it
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .kill import Scored, write_pairs
from .plain import plain_server
from .stop import Stop, finish, slow_answers, stop

ROWS = 200
pytestmark = pytest.mark.timeout(400)


@pytest.mark.long
@pytest.mark.parametrize("seed", [seed for seed in range(40) if seed % 4 < 2])
def test_told_to_stop_and_continued(ray_cluster: None, tmp_path: Path, seed: int) -> None:
    import ray

    write_pairs(tmp_path / "in", ROWS)
    with plain_server(slow_answers(seed)) as server:
        address = ray.get_runtime_context().gcs_address
        run = Scored(tmp_path / "run", server, address)  # type: ignore[arg-type]
        assert "BROKEN" not in stop(run, server, Stop.draw(seed, ROWS, 0))
        finish(run, server, ROWS)
