"""Submit one night's run to a Ray cluster: for cron, or any scheduler that runs a command.

python jobs/nightly.py RUN.yaml [--date 2026-11-23] [--attempt 2] [--set KEY=VALUE ...]

`{date}` in the YAML's `input` and `output` becomes the date. The job's id is the YAML's name with
date and attempt, and Ray refuses an id that it has seen: two schedulers, or a retry that was not
needed, come to nothing instead of to two runs. `--attempt 2` continues a night that failed; the
run directory knows what is done. The cluster is RAY_ADDRESS, as for `ray job submit`, whose exit
code this is: 0 when the night succeeded.
"""

import argparse
import datetime
import os
import sys
from pathlib import Path

import yaml


def command(arguments: list[str]) -> list[str]:
    """Give the `ray job submit` command of one night."""
    parser = argparse.ArgumentParser(description="Submit one night's run to a Ray cluster.")
    parser.add_argument("config", metavar="RUN.yaml")
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--date", type=datetime.date.fromisoformat, default=today)
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)

    document = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    dated = [f"{key}={document[key].replace('{date}', str(options.date))}"
             for key in ("input", "output")]  # fmt: skip
    overrides = [word for pair in (*dated, *options.set) for word in ("--set", pair)]
    name = f"{Path(options.config).stem}-{options.date}-{options.attempt}"
    return [
        *("ray", "job", "submit", "--submission-id", name, "--working-dir", "."),
        *("--", "python", "jobs/score.py", options.config, "--quiet", *overrides),
    ]


if __name__ == "__main__":
    submit = command(sys.argv[1:])
    os.execvp(submit[0], submit)
