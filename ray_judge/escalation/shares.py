"""Who may use how much of one provider's limits. Pure: time (seconds of any clock) is an argument.

Every run paces itself; what is agreed on here is only the *part* of the limits that is its own.
About once a second a run reports what part it could use and hears what part it may use until its
next report. Nobody is called back: a run keeps what it was granted until it reports again.
"""

from __future__ import annotations

from dataclasses import dataclass

SILENT_S = 10.0
"""A run that has not reported for so long is gone, and what it was granted is free."""
LEARN_S = 2.0
"""So long a new registry waits for reports before it believes that nobody else holds anything."""


@dataclass(slots=True)
class _Run:
    wants: float
    granted: float
    """What it was granted last: it may use that much until it reports again."""
    reported_at: float


class Shares:
    """Max-min fair parts of one whole, never more than the whole together.

    Σ granted ≤ 1 at every instant, in whatever order runs report: a run is granted what is fair,
    but at most what the grants to all others leave. The others give up the rest when they
    report next, so fairness is a round of reports behind; the limit is not.

    A registry that was started anew, after its process died, knows nobody. It learns from what
    runs believe to hold, and for `LEARN_S` grants no more than that. Only whoever comes holding
    nothing before all others have reported may be granted what they still use: for one round of
    reports more than the whole may be in use.
    """

    def __init__(self) -> None:
        """Nobody is known yet."""
        self._runs: dict[str, _Run] = {}
        self._begun_at: float | None = None

    def report(self, run: str, wants: float, holds: float, now: float) -> float:
        """What part of the limits `run` may use from now on.

        `wants`: the part that it could use. `holds`: the part that it believes to be its own.
        """
        self._begun_at = now if self._begun_at is None else self._begun_at
        for name, known in list(self._runs.items()):
            if now - known.reported_at > SILENT_S:
                del self._runs[name]
        wants = min(1.0, max(0.0, wants))
        most = holds if holds > 0 and now - self._begun_at < LEARN_S else 1.0
        others = sum(known.granted for name, known in self._runs.items() if name != run)
        known = self._runs[run] = _Run(wants, 0.0, now)
        known.granted = max(0.0, min(self._fair(wants), 1.0 - others, most))
        return known.granted

    def leave(self, run: str) -> None:
        """The run asks no more: what it was granted is free."""
        self._runs.pop(run, None)

    def _fair(self, wants: float) -> float:
        """The fair part of one that wants so much (water-filling).

        Those who want less than an equal part get what they want, the others share the rest
        equally. What nobody wants is shared equally too: a run alone always has the whole.
        """
        left, asked = 1.0, sorted(known.wants for known in self._runs.values())
        for number, want in enumerate(asked):
            equal = left / (len(asked) - number)
            if want > equal:
                return min(wants, equal)
            left -= want
        return wants + left / len(asked)
