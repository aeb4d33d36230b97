"""The command line. Thin: it reads arguments, calls a room, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ray_judge import __version__
from ray_judge.errors import RayJudgeError
from ray_judge.progress import Progress

EXIT_CODES = """exit codes:
  0  done
  1  failure
  2  usage or configuration
  3  input data
  4  paused, run again later (quota, billing, monthly cap)
  5  a promise was missed (audit under the guarantee)
  130  stopped (Ctrl-C, SIGTERM): the same command continues
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except RayJudgeError as error:
        print(f"ray-judge: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("ray-judge: stopped; the same command continues", file=sys.stderr)
        return 130
    except (ImportError, AttributeError) as error:
        if not (hiding := _hiding_modules()):
            raise
        said = f"{', '.join(hiding)}: hides a module of that name that is needed: rename it"
        print(f"ray-judge: {said} ({error})", file=sys.stderr)
        return 2


def _hiding_modules() -> list[str]:
    """Files in the place where Python looks first that hide modules of Python or of a package."""
    first, *others = sys.path
    ours, found = Path(__file__).parent, []
    for file in (*Path(first).glob("*.py"), *Path(first).glob("*/__init__.py")):
        name = file.parent.name if file.stem == "__init__" else file.stem
        hidden = name in sys.stdlib_module_names or PathFinder.find_spec(name, others)
        if hidden and file.parent.resolve() != ours:
            found.append(str(file.resolve()))
    return found


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="ray-judge",
        description="Score LLM outputs with a local judge; pay a strong one for the doubtful rows.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="command")
    _add_runs(commands)
    _add_results(commands)
    _add_judges(commands)
    _add_demo(commands)
    return top


def _add(commands: Any, name: str, command: Callable[..., Any], said: str) -> Any:
    made = commands.add_parser(name, help=said)
    made.set_defaults(command=command)
    return made


def _add_runs(commands: Any) -> None:
    score = _add(commands, "score", _score, "run the cascade, or continue it")
    plan = _add(commands, "plan", _plan, "what a run will cost and be worth; spends nothing")
    said = "learn how far the local judge can be trusted"
    calibrate = _add(commands, "calibrate", _calibrate, said)
    for command in (score, plan, calibrate):
        command.add_argument("config", metavar="RUN.yaml")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
        command.add_argument("--quiet", action="store_true", help="no progress")
    plan.add_argument("--sample", type=_count, default=500, metavar="N", help="rows to judge (500)")
    plan.add_argument("--json", action="store_true", help="for programs")
    add = calibrate.add_argument
    add("--labels", metavar="COLUMN", help="the input column with the truth")
    add("--against", choices=["strong"], help="buy the strong judge's verdicts")
    add("--sample", type=_count, metavar="N", help="rows at most")
    add("--alpha", type=float, help="agreement is to be at least 1 - alpha (0.1)")
    add("--delta", type=float, help="with probability 1 - delta (0.1)")
    add("--to", metavar="FILE", help="default: route.calibration, else the output")


def _add_results(commands: Any) -> None:
    status = _add(commands, "status", _status, "how far a run is, and what it has spent")
    report = _add(commands, "report", _report, "print the summary of a finished run")
    for command in (status, report):
        command.add_argument("output")
    said = "evaluate against labels (default: the run's own label column)"
    report.add_argument("--labels", nargs="?", const="", metavar="COLUMN", help=said)
    said = "what they mean: 'labels={model_a: A, model_b: B}'"
    report.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=said)


def _add_judges(commands: Any) -> None:
    judges = commands.add_parser("judges", help="the judges' own prompts: list, pull, check")
    actions = judges.add_subparsers(required=True, metavar="list|pull|check")
    _add(actions, "list", _judges_list, "what there is, and what is cached")
    pull = _add(actions, "pull", _judges_pull, "get the prompts from where they are pinned")
    said = "a file or folder that has them"
    pull.add_argument("--from", dest="source", metavar="PATH", type=Path, help=said)
    pull.add_argument("names", nargs="*", metavar="NAME", help="such as judgelm (all unless given)")
    said = "verify the cached prompts; exit 1 unless all are right"
    _add(actions, "check", _judges_check, said).add_argument("names", nargs="*", metavar="NAME")


def _add_demo(commands: Any) -> None:
    add = _add(commands, "demo", _demo, "a real cascade on this machine, in minutes").add_argument
    add("--output", default="demo-run")
    add("--pairs", type=_count, default=6000)
    add("--seed", type=int, default=2026)
    add("--fraction", type=float, default=0.45)
    add("--base-url", help="a real strong judge (its key in OPENAI_API_KEY)")
    add("--model", default="gpt-4.1")
    add("--cap", type=float, default=5.0, help="dollars at most")


def _score(options: argparse.Namespace) -> None:
    from ray_judge.config import load
    from ray_judge.pipeline import score

    summary = score(load(options.config, options.set), Progress(quiet=options.quiet))
    print(json.dumps(summary, indent=1, default=float))


def _plan(options: argparse.Namespace) -> None:
    from ray_judge.commands.plan import as_text, plan
    from ray_judge.config import load

    found = plan(load(options.config, options.set), options.sample, Progress(quiet=options.quiet))
    print(json.dumps(found, indent=1) if options.json else as_text(found))


def _calibrate(options: argparse.Namespace) -> None:
    from ray_judge.commands.calibrate import as_text, calibrate
    from ray_judge.config import load

    made, place = calibrate(
        load(options.config, options.set),
        labels=options.labels,
        against_strong=options.against == "strong",
        sample=options.sample,
        alpha=options.alpha,
        delta=options.delta,
        to=options.to,
        watch=Progress(quiet=options.quiet),
    )
    print(as_text(made, place))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _status(options: argparse.Namespace) -> None:
    from ray_judge.report.status import status

    print(json.dumps(status(options.output), indent=1, default=float, ensure_ascii=False))


def _report(options: argparse.Namespace) -> None:
    from ray_judge.report.status import finished_run

    run, summary = finished_run(options.output)
    if options.labels is None:
        print(json.dumps(summary, indent=1))
    else:
        from ray_judge.commands.evaluate import as_text, evaluate

        print(as_text(evaluate(options.output, options.labels or None, options.set)))
    print(f"{run.uri}/report.html", file=sys.stderr)


def _judges_list(_: argparse.Namespace) -> None:
    from ray_judge.judging.formats.families import list_judges

    print("\n".join(list_judges()))


def _judges_pull(options: argparse.Namespace) -> None:
    from ray_judge.judging.formats.templates import pull

    print("\n".join(pull(options.names, options.source)))


def _judges_check(options: argparse.Namespace) -> int:
    from ray_judge.judging.formats.templates import check

    lines, right = check(options.names)
    print("\n".join(lines))
    return int(not right)


def _demo(options: argparse.Namespace) -> int:
    from ray_judge.demo.command import demo

    return demo(options)


def entry_point() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    # A thread that Ray is shut down under is not to start another Ray.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    code = main()
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)  # there is nothing left to stop
    if code:
        # Threads that wait for Ray can fault while Python takes itself apart, and hide the code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
