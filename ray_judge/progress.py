"""What a run shows while it works: one line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

EVERY_S = 5.0
"""Between two lines where there is no terminal (a job's log)."""


class Progress:
    """Prints rows judged, questions asked and dollars spent, to stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._live = quiet, sys.stderr.isatty()
        self._parts: dict[str, str] = {}
        self._last = 0.0
        self._begun = time.monotonic()

    def __call__(self, phase: str, figures: Mapping[str, Any]) -> None:
        """Take note of a phase's figures and show the line."""
        if phase == "plan":
            self._parts["plan"] = f"{figures['rows']:,} rows in {figures['shards']:,} shards"
            self._parts["judge"] = "starting the judge"
        elif phase == "judge":
            self._parts["judge"] = f"judged {figures['done'] / max(1, figures['rows']):.0%}"
        elif phase == "escalate" and "waits" in figures:
            self._parts["spent"] = str(figures["waits"])
        elif phase == "escalate":
            spent, cap = float(figures["spent_usd"]), float(figures["cap_usd"])
            self._parts["spent"] = f"spent ${spent:.4f} of ${cap:g}"
            if figures.get("denied"):
                self._parts["denied"] = f"{figures['denied']:,} denied by the cap"
            if figures.get("paused") and figures.get("waiting"):
                self._parts["paused"] = "paused"
        now, last = time.monotonic(), phase == "done"
        due = now - self._last > (0.2 if self._live else EVERY_S)
        if self._quiet or not (due or last or phase == "plan"):
            return
        self._last = now
        line = " · ".join([f"{now - self._begun:6.1f} s", *self._parts.values()])
        end = "\n" if last or not self._live else ""
        sys.stderr.write((f"\r\x1b[2K{line}" if self._live else line) + end)
        sys.stderr.flush()
