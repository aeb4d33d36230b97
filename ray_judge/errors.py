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
    │   └── Stopped                  130   told to stop (Ctrl-C, SIGTERM): all in good order
    └── PromiseBroken                  5   the audit contradicts the guarantee

Every class pickles (Ray carries them between processes), and nothing of a third party's
exceptions is kept inside: they are translated once, at the edge, by type.
"""

from __future__ import annotations

from typing import Any

WORDS = 300
"""Characters of anybody else's own words that are told."""


def brief(text: str) -> str:
    """Somebody else's words as a part of a sentence: on one line, and cut at `WORDS`."""
    text = " ".join(text.split())
    return text if len(text) <= WORDS else text[:WORDS] + "…"


class RayJudgeError(Exception):
    """`message`: what was wrong, and what to do; `where`: in which file, column, row, ..."""

    exit_code = 1

    def __init__(self, message: str, **where: Any) -> None:
        super().__init__(message)
        self.message = message
        self.where = {k: v for k, v in where.items() if v is not None}

    def __str__(self) -> str:
        where = ", ".join(f"{key}={value}" for key, value in self.where.items())
        return f"{self.message} [{where}]" if where else self.message


class ConfigError(RayJudgeError):
    exit_code = 2


class RunChangedError(ConfigError): ...


class InputError(RayJudgeError):
    exit_code = 3


class InputChangedError(InputError): ...


class RunLockedError(RayJudgeError): ...


class StorageError(RayJudgeError): ...


class AlreadyExists(StorageError): ...


class CorruptedError(StorageError): ...


class EngineError(RayJudgeError): ...


class EscalationError(RayJudgeError): ...


class LedgerFenced(EscalationError): ...


class ProviderDown(EscalationError):
    exit_code = 4


class PausedError(RayJudgeError):
    exit_code = 4


class Stopped(PausedError):
    """The run was told to stop (Ctrl-C, SIGTERM), and has let go of everything in good order."""

    exit_code = 130


class PromiseBroken(RayJudgeError):
    exit_code = 5
