"""What a run does now: a document in its directory (`progress.json`), and a line for who looks on.

The document has `phase`, `process`, `began` and `at` (Unix seconds), the last figures of all phases
(`FIGURES`), and `waits`: sentences that say what keeps a phase from going on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from ray_judge.errors import PausedError, ProviderDown, Stopped, StorageError

PHASES = ("plan", "judge", "escalate", "merge")
FIGURES = (
    "rows", "shards", "judged", "to_judge", "questions", "answered", "denied", "in_flight",
    "in_batches", "spent_usd", "open_usd", "cap_usd", "excess_usd", "excess_said",
    "requests_per_minute",
)  # fmt: skip
TICK_S = 1.0
AGAIN_S = 60.0
"""So much later the document is written again that could not be."""
EVERY_S = 10.0
"""Between two lines where there is no terminal (a job's log)."""
IN_FULL_S = 30.0
"""How often what is waited for is told in full where the moving line has no room for it."""
ALIKE = 20
"""Sentences that begin with the same so many characters tell of the same thing."""
Watch = Callable[[str, Mapping[str, Any]], None]
"""Told what happens: (phase, figures)."""

log = logging.getLogger(__name__)


class Record:
    """Keeps a run's document while the run works. It is told as a `Watch`, by any thread.

    What it is told goes to the next `Watch` as the whole document, at each event and each second.
    """

    def __init__(
        self,
        watch: Watch,
        write: Callable[[bytes], None],
        *,
        process: str,
        every_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`write` replaces the document, at most each `every_s` seconds. `process`: who works."""
        self._watch, self._write, self._every_s, self._clock = watch, write, every_s, clock
        self._document: dict[str, Any] = {"phase": "plan", "process": process, "began": clock()}
        self._waits: dict[str, str | None] = {}
        self._write_at = self._clock()
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._over.set()
        self._thread.join()
        with self._lock:
            self._waits.clear()
            self._document |= _end(error)
        self._write_at = self._clock()
        self.tick()

    def __call__(self, phase: str, figures: Mapping[str, Any]) -> None:
        """Take note of a phase's figures; `waits`: what it waits for, if it does."""
        with self._lock:
            document = self._document
            if figures.get("excess_said") and not document.get("excess_said"):
                log.warning(figures["excess_said"])
            document |= {name: figures[name] for name in FIGURES if name in figures}
            document["phase"] = max(document["phase"], phase, key=PHASES.index)
            self._waits[phase] = figures.get("waits")
            self._tell()

    def tick(self) -> None:
        """Pass the document on, and keep it where that is due: no other thread waits for it."""
        document = self._tell()
        if document["at"] < self._write_at:
            return
        self._write_at = document["at"] + self._every_s
        try:
            self._write(json.dumps(document, indent=1, default=float).encode())
        except StorageError as error:
            self._write_at += AGAIN_S
            log.warning("the run's progress cannot be kept: %s", error)

    def _tell(self) -> dict[str, Any]:
        with self._lock:
            waits = [said for said in self._waits.values() if said]
            self._document |= {"at": self._clock(), "waits": waits}
            document = dict(self._document)
            self._watch(document["phase"], document)
            return document

    def _run(self) -> None:
        while not self._over.wait(TICK_S):
            self.tick()


def _end(error: BaseException | None) -> dict[str, str]:
    if error is None:
        return {"phase": "done"}
    if not isinstance(error, Exception) or isinstance(error, Stopped):
        return {"phase": "stopped"}
    paused = isinstance(error, PausedError | ProviderDown)
    return {"phase": "paused" if paused else "failed", "error": str(error)}


class Progress:
    """Prints a `Record`'s document to stderr: a line that moves on a terminal, lines elsewhere."""

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet, self._clock, self._live = quiet, clock, sys.stderr.isatty()
        self._last = self._in_full = float("-inf")
        self._begun, self._told = clock(), ""

    def __call__(self, phase: str, document: Mapping[str, Any]) -> None:
        """Show the line, where one is due."""
        now, last = self._clock(), phase not in PHASES
        due = now - self._last >= (0.2 if self._live else EVERY_S)
        if self._quiet or not (due or last):
            return
        self._last = now
        line = f"{now - self._begun:6.1f} s · {describe(document)}"
        if not self._live:
            sys.stderr.write(f"{line}\n")
        else:
            room, full, waits = width() - 1, "", "".join(document["waits"])
            new = waits[:ALIKE] != self._told or now - self._in_full >= IN_FULL_S
            if len(waits) > room - ALIKE and new:
                self._in_full, self._told, full = now, waits[:ALIKE], f"{line}\n"
            end = "\n" if last else "\r"  # a line of the log begins where this one does
            sys.stderr.write(f"\x1b[2K{full}{line[:room]}{end}")
        sys.stderr.flush()


def width() -> int:
    """Columns of the terminal."""
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80


def describe(document: Mapping[str, Any]) -> str:
    """What a document says, in one line for people; what is waited for comes first."""
    parts = [f"waits: {said}" for said in document["waits"]]
    parts.append(f"{document['rows']:,} rows in {document['shards']:,} shards")
    if "judged" in document:
        parts.append(f"judged {document['judged'] / max(1, document['to_judge']):.0%}")
    if document.get("questions"):
        parts.append(f"answered {document['answered']:,} of {document['questions']:,}")
    if "spent_usd" in document:
        spent, cap = float(document["spent_usd"]), float(document["cap_usd"])
        parts.append(f"spent ${spent:.4f} of ${cap:g}")
    if document.get("denied"):
        parts.append(f"{document['denied']:,} denied by the cap")
    return " · ".join(parts if document["phase"] in PHASES else [*parts, document["phase"]])
