"""The ledger's files: claims, logs, and how the logs' lines become balances. See `ledger.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ray_judge.errors import AlreadyExists, CorruptedError, LedgerFenced
from ray_judge.escalation.books.accounts import Accounts, parse_usd
from ray_judge.escalation.books.lines import log_names, read_listed, read_log
from ray_judge.storage.local import Missing, Storage

FOLDER = "ledger"


def claim_path(epoch: int) -> str:
    """Name of the claim of an epoch."""
    return f"{FOLDER}/claim-{epoch:08d}"


def log_path(epoch: int) -> str:
    """Name of the log of an epoch."""
    return f"{FOLDER}/{epoch:08d}.log"


def epoch_of(log: str) -> int:
    """Tell the epoch of a log by its name."""
    stem = log.rsplit("/", 1)[-1].removesuffix(".log")
    if not stem.isdigit():
        raise CorruptedError("a file that is not the ledger's", file=log)
    return int(stem)


def create_claim(storage: Storage, owner: str, nonce: str, now: float) -> int:
    """Create the first free claim and give its epoch. `nonce` must be unique to this call."""
    claims = [p.rsplit("-", 1)[-1] for p in storage.list(FOLDER) if "/claim-" in p]
    epoch = max((int(text) for text in claims if text.isdigit()), default=0)
    data = json.dumps({"owner": owner, "nonce": nonce, "at": round(now, 3)}).encode()
    while True:
        epoch += 1
        try:
            storage.create(claim_path(epoch), data)
        except AlreadyExists:
            # Taken, unless it is our own claim whose confirmation was lost on the way.
            if storage.read(claim_path(epoch)) != data:
                continue
        return epoch


def recover(storage: Storage, epoch: int) -> Accounts:
    """The state that all epochs before this owner's have acknowledged.

    Raises `LedgerFenced` where a newer owner has removed their logs, `CorruptedError`.
    """
    try:
        return _read(storage, storage.list(FOLDER), epoch)
    except Missing as error:
        if storage.exists(claim_path(epoch + 1)):
            raise LedgerFenced("a newer owner holds this ledger", epoch=epoch) from None
        raise CorruptedError("a part of the ledger is gone", **error.where) from error


def look(storage: Storage) -> Accounts:
    """The state that is acknowledged now, for somebody who does not own the ledger."""
    return read_listed(storage, FOLDER, lambda paths: _read(storage, paths, sys.maxsize))


def _read(storage: Storage, paths: Sequence[str], before: int) -> Accounts:
    logs = log_names(paths)
    for log in sorted(logs, key=epoch_of, reverse=True):
        if epoch_of(log) < before:
            records = read_log(storage, log, logs[log])
            if records:  # else: its owner died before its snapshot, so it acknowledged nothing
                return _replay(records, log)
    return Accounts()


def _replay(records: Sequence[Mapping[str, Any]], log: str) -> Accounts:
    """Apply one log; its first record is a snapshot."""
    accounts = Accounts()
    for line, record in enumerate(records, start=1):
        kind = record.get("t")
        if line == 1 and kind != "snapshot":
            raise CorruptedError("the log does not begin with a snapshot", file=log)
        if kind == "snapshot":
            accounts = Accounts.from_json(record)
        elif kind == "grant":
            slots = [*zip(record["keys"], map(parse_usd, record["max"]), strict=True)]
            accounts.grant(record["lease"], record["actor"], slots, record["to"])
        elif kind == "settle":
            accounts.settle(record["lease"], record["slot"], parse_usd(record["cost"]))
        elif kind == "month":
            accounts.charge_also(record["to"])
        else:
            raise CorruptedError(f"an unknown kind of record: {kind}", file=log, line=line)
    return accounts


def forget_older(storage: Storage, epoch: int) -> None:
    """Remove logs that the durable snapshot of this epoch replaces."""
    for log, parts in log_names(storage.list(FOLDER)).items():
        if epoch_of(log) < epoch:
            for part in reversed(parts):
                storage.delete(part)
