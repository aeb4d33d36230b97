"""Where a run's ledger and journal lie: in its directory, or where several runs share them."""

from __future__ import annotations

from ray_judge.config import RunConfig
from ray_judge.errors import PausedError
from ray_judge.escalation.books.journal import compact
from ray_judge.storage.local import Storage, open_storage


def ledger_storage(config: RunConfig) -> tuple[Storage, str]:
    """Where the ledger lies: in the run directory, or where several runs share one."""
    return open_storage(config.strong.books or config.output), "ledger"


def ledger_name(config: RunConfig) -> str:
    """Under which name the ledger keeps this run's dollars."""
    return config.output if config.strong.books else "run"


def month_is_full(config: RunConfig, left: int) -> PausedError:
    """Say that the month's cap is reached before the run's own."""
    return PausedError(
        f"this month's cap of ${config.strong.max_cost_usd_per_month} "
        f"(strong.max_cost_usd_per_month, UTC) leaves no money for {left} questions: everything "
        "is kept, run again next month, or raise it",
        books=config.strong.books,
    )


def journal_storage(config: RunConfig) -> tuple[Storage, str]:
    """Where the journal lies: in the run directory, or where several runs share one."""
    return open_storage(config.strong.books or config.output), "journal"


def journal_name(config: RunConfig) -> str | None:
    """Under which name a shared journal keeps what this run paid for; None: it is not shared."""
    return config.output if config.strong.books else None


def compact_journal(config: RunConfig) -> None:
    """Fold the journal; only for the owner of the run's lock, with no asker alive."""
    storage, path = journal_storage(config)
    compact(storage, path, no_writers=not config.strong.books)
