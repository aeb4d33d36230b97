"""What `ray job submit` runs: `ray-judge score` as a cluster job. No logic of its own.

ray job submit --submission-id nightly-2026-11-23 --working-dir . -- \
    python jobs/score.py RUN.yaml --set strong.max_cost_usd=20

Ray tells the job its cluster (RAY_ADDRESS), and the exit code is the command's: Ray shows it as
`driver_exit_code` of the job, and calls every code but 0 FAILED. Submitting again continues the
run.
"""

import sys

from ray_judge.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
