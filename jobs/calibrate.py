"""What `ray job submit` runs: `ray-judge calibrate` as a cluster job. No logic of its own.

ray job submit --submission-id calibrate-2026-11 --working-dir . -- \
    python jobs/calibrate.py RUN.yaml --against strong --to s3://bucket/calibration.json
"""

import sys

from ray_judge.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
