"""The ledger's files: claims, logs, and how their lines become balances. See `ledger.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray_judge.errors import AlreadyExists, CorruptedError, LedgerFenced
from ray_judge.escalation.books.accounts import Accounts, parse_usd
from ray_judge.escalation.books.lines import log_names, read_log
from ray_judge.storage.local import Missing, Storage


def claim_path(path: str, epoch: int) -> str:
    """Name of the claim of an epoch."""
    return f"{path}/claim-{epoch:08d}"


def log_path(path: str, epoch: int) -> str:
    """Name of the log of an epoch."""
    return f"{path}/{epoch:08d}.log"


def epoch_of(log: str) -> int:
    """Tell the epoch of a log by its name."""
    stem = log.rsplit("/", 1)[-1].removesuffix(".log")
    if not stem.isdigit():
        raise CorruptedError("a file that is not the ledger's", file=log)
    return int(stem)


def claim(storage: Storage, path: str, owner: str, nonce: str, now: float) -> int:
    """Create the first free claim and give its epoch."""
    claims = [p.rsplit("-", 1)[-1] for p in storage.list(path) if "/claim-" in p]
    epoch = max((int(text) for text in claims if text.isdigit()), default=0)
    while True:
        epoch += 1
        data = json.dumps({"owner": owner, "nonce": nonce, "at": round(now, 3)}).encode()
        try:
            storage.create(claim_path(path, epoch), data)
        except AlreadyExists:
            # Taken, unless it is our own claim whose confirmation was lost on the way.
            if storage.read(claim_path(path, epoch)) != data:
                continue
        return epoch


def recover(storage: Storage, path: str, epoch: int) -> Accounts:
    """The state that all older epochs together have acknowledged."""
    logs = log_names(storage.list(path))
    for log in sorted(logs, key=epoch_of, reverse=True):
        if epoch_of(log) >= epoch:
            continue
        try:
            records = read_log(storage, log, logs[log])
        except Missing as error:  # only a newer owner removes logs
            raise LedgerFenced("a newer owner holds this ledger", epoch=epoch) from error
        if records:  # else: its owner died before its snapshot, so it acknowledged nothing
            return replay(records, log)
    return Accounts()


def replay(records: Sequence[Mapping[str, Any]], log: str) -> Accounts:
    """Apply one log; its first record is a snapshot."""
    accounts = Accounts()
    for line, record in enumerate(records, start=1):
        kind = record.get("t")
        if line == 1 and kind != "snapshot":
            raise CorruptedError("the log does not begin with a snapshot", file=log)
        if kind == "snapshot":
            accounts = Accounts.from_json(record)
        elif kind == "grant":
            maxima = [parse_usd(text) for text in record["max"]]
            accounts.grant(record["lease"], record["actor"], maxima, record["to"])
        elif kind == "settle":
            accounts.settle(record["lease"], record["slot"], parse_usd(record["cost"]))
        elif kind == "month":
            accounts.charge_also(record["to"])
        elif kind == "orphan":
            accounts.orphan(record["at"], record["actor"])
        elif kind == "adopt":
            accounts.adopt(record["actor"])
            accounts.charge_also(record["to"])
        else:
            raise CorruptedError(f"an unknown kind of record: {kind}", file=log, line=line)
    return accounts
