"""Which processes are known to have ended: who may ask at once what they had in flight."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ray_judge.escalation import processes
from ray_judge.escalation.processes import identity, is_dead, unique_name

CHILD = (
    "import sys; from ray_judge.escalation.processes import unique_name\n"
    "print(unique_name(), flush=True); sys.stdin.read()"
)


@pytest.fixture
def child() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that waits, and a name that it gave."""
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_process_is_dead_from_its_kill_on(child: tuple[subprocess.Popen[str], str]) -> None:
    process, name = child
    assert not is_dead(name)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: nobody waited for it
    assert is_dead(name)
    process.wait()
    assert is_dead(name)


def test_this_process_lives_and_its_names_differ() -> None:
    assert not is_dead(unique_name())
    assert unique_name() != unique_name()


def test_a_pid_that_another_process_has_now_is_dead() -> None:
    """The same pid, started at another time."""
    place, _, start = identity().rpartition(".")
    assert is_dead(f"x@{place}.{int(start) + 1}")


@pytest.mark.parametrize("part", [0, 1])
def test_nothing_is_known_of_another_machine_or_container(part: int) -> None:
    parts = identity().split(".")
    parts[2] = "999999999"  # no such pid here
    assert is_dead(f"x@{'.'.join(parts)}")
    parts[part] = "1234"
    assert not is_dead(f"x@{'.'.join(parts)}")


@pytest.mark.parametrize("name", ["", "x", "x@", "@1.2.3.4", "batch:rj-1", f"x@{'9' * 30}"])
def test_nothing_is_known_of_names_that_are_no_process(name: str) -> None:
    assert not is_dead(name)


def test_a_process_that_is_hidden_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with /proc mounted `hidepid`, where other users' processes cannot be seen."""
    monkeypatch.setattr(processes, "_started", lambda pid: None)
    parts = identity().split(".")
    parts[2] = "1"  # alive, and another's
    assert not is_dead(f"x@{'.'.join(parts)}")
