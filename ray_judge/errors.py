"""Every error of ray_judge, and the exit code each one ends a command with.

    RayJudgeError                      1   something failed
    ├── ConfigError                    2   the YAML, a flag, a key, a model path
    │   └── RunChangedError            2   the run directory was made by another configuration
    ├── InputError                     3   the data: names file, column and row where there is one
    │   └── InputChangedError          3   an input shard is not what it was when the run began
    ├── RunLockedError                 1   another process owns this run directory
    ├── StorageError                   1   the file system or object store refused
    │   ├── AlreadyExists              1   an exclusive create lost the race
    │   └── CorruptedError             1   a file of ours is damaged or from a newer version
    ├── EngineError                    1   the local judge could not be started or died
    ├── EscalationError                1   the strong judge's API, for the whole run
    │   ├── LedgerFenced               1   another owner took over the ledger
    │   └── ProviderDown               4   the provider does not answer: paused, run again later
    ├── PausedError                    4   quota, billing, monthly cap, pending batch
    └── PromiseBroken                  5   the audit contradicts the guarantee

Every class pickles (Ray carries them between processes), and nothing of a third party's
exceptions is kept inside: they are translated once, at the edge, by type.
"""

from __future__ import annotations

from typing import Any


class RayJudgeError(Exception):
    """Root of the tree. `message` is for people: what was wrong, where, and what to do."""

    exit_code = 1

    def __init__(self, message: str, **where: Any) -> None:
        """Keep the sentence and, as keywords, where it happened (file, column, row, ...)."""
        super().__init__(message)
        self.message = message
        self.where = {k: v for k, v in where.items() if v is not None}

    def __str__(self) -> str:
        """Give the sentence, then the place, e.g. `no such column [file=a.parquet, column=x]`."""
        if not self.where:
            return self.message
        return f"{self.message} [{', '.join(f'{k}={v}' for k, v in self.where.items())}]"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and place, so that no constructor signature can break the way back."""
        return (_rebuild, (type(self), self.message, self.where))


def _rebuild(cls: type[RayJudgeError], message: str, where: dict[str, Any]) -> RayJudgeError:
    return cls(message, **where)


class ConfigError(RayJudgeError):
    """The configuration or a flag cannot be used as it is."""

    exit_code = 2


class RunChangedError(ConfigError):
    """The run directory belongs to another configuration; names every differing key."""


class InputError(RayJudgeError):
    """The input data cannot be used; names file, column and row where there is one."""

    exit_code = 3


class InputChangedError(InputError):
    """An input shard is no longer the one that the run planned with."""


class RunLockedError(RayJudgeError):
    """Another process is working in this run directory."""


class StorageError(RayJudgeError):
    """The file system or object store refused an operation."""


class AlreadyExists(StorageError):
    """An exclusive create found the name taken."""


class CorruptedError(StorageError):
    """A file written by ray_judge is damaged, or by a newer version than this one."""


class EngineError(RayJudgeError):
    """The local judge's engine could not start, or died."""


class EscalationError(RayJudgeError):
    """The strong judge's API refused in a way that holds for the whole run."""


class LedgerFenced(EscalationError):
    """A newer owner holds this ledger: nothing more may be granted here."""


class ProviderDown(EscalationError):
    """The provider has not answered for longer than the run is willing to wait."""

    exit_code = 4


class PausedError(RayJudgeError):
    """Everything is kept; the same command continues later (quota, billing, pending batch)."""

    exit_code = 4


class PromiseBroken(RayJudgeError):
    """The audit contradicts the guarantee that the run was made under."""

    exit_code = 5
