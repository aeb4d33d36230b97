"""Watching a parent process, so that a server never outlives its test run."""

from __future__ import annotations

import os
from pathlib import Path


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """State letter and start time of a process from /proc, or None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


class ParentWatch:
    """Tells whether a process still lives; a zombie or a reused number counts as dead."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._proc = Path("/proc/self/stat").exists()
        found = _state_and_start(pid)
        self._start = found[1] if found else None

    def alive(self) -> bool:
        """Whether the process that was watched from the start is there."""
        if self._proc:
            found = _state_and_start(self._pid)
            return found is not None and found[0] not in "ZX" and found[1] == self._start
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
