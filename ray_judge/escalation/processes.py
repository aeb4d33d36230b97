"""Which process wrote a log, told by the log's name, and whether that process surely has ended.

A successor may ask at once what a process had in flight that has ended: it can write no answer any
more. Of a process that cannot be seen from here (another machine, another container) nothing is
known, and the successor waits.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ray_judge.errors import EscalationError, PausedError, RayJudgeError


def identity() -> str:
    """Name this process so that no other one, on any machine, is ever named alike.

    `<boot>.<pid namespace>.<pid>.<start>`: the kernel's boot id, the inode of
    the namespace in which the pid counts, and the clock tick at which the process started.
    """
    return f"{_here()}.{os.getpid()}.{_started(os.getpid())}"


def unique_name() -> str:
    """A name that nobody else ever has, and that tells whose it is: `<random>@<identity>`."""
    return f"{secrets.token_hex(12)}@{identity()}"


def is_dead(name: str) -> bool:
    """Whether the process whose `identity` ends a name surely has ended. False: nobody knows."""
    here, _, rest = name.rpartition("@")[2].rpartition(_here() + ".")
    pid, _, start = rest.partition(".")
    if here or not (pid.isdigit() and start.isdigit()):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, alive: it may be hidden from /proc
    started = _started(int(pid))
    return started is not None and started != int(start)


def _here() -> str:
    """This kernel, since its boot, and the namespace of this process's pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux: no process is known to have ended
        return "unknown"


def _started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; 0 for a zombie; None: it cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


class ProcessDied(EscalationError):
    """A process of a session is gone; what it had in hand is for its successor."""


def gravity(error: RayJudgeError) -> int:
    """How much an error explains: a refusal more than the pause that it caused."""
    if isinstance(error, ProcessDied):
        return 0
    return 1 if isinstance(error, PausedError) else 2
