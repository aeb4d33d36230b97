"""What a run's pending batches ask, said to the runs that share its journal.

    <strong.books>/in-batches/<id>.json   whose batch `<id>` is, and its questions

A batch may be pending for a day, and its answers are in the journal only when they were read. A
run that knew of the journal alone would pay for the same questions again meanwhile. So a notice
lies there from before the batch is sent until it was read or came to nothing. It is put up by the
ledger's owner in the run's turn (`turn.py`), and read in another one's: what is in no notice nobody
is asking.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from ray_judge.config import RunConfig
from ray_judge.errors import CorruptedError, PausedError
from ray_judge.storage.local import Missing, Storage, open_storage

FOLDER = "in-batches"
VERSION = 1


class Notice(NamedTuple):
    """One pending batch: whose it is, and the keys of its questions."""

    run: str
    keys: list[str]


class BatchNotices:
    """The notices beside one journal. Where no run shares it there are none."""

    def __init__(self, config: RunConfig) -> None:
        """Touch nothing yet."""
        shared = config.strong.books
        self._storage: Storage | None = open_storage(shared) if shared else None
        self._run = config.output

    def put_up(self, batch: str, keys: Iterable[str]) -> None:
        """Say, durably, that a batch of this run asks these questions."""
        if self._storage is not None:
            document = {"version": VERSION, "run": self._run, "keys": list(keys)}
            self._storage.write(_path(batch), json.dumps(document).encode())

    def take_down(self, batch: str) -> None:
        """Its answers are in the journal, or nothing of it ran; no matter if there is none."""
        if self._storage is not None:
            self._storage.delete(_path(batch))

    def mine(self) -> set[str]:
        """The batches of this run that have a notice.

        Read it before the records: a batch has one before it has a notice.
        """
        mine = [path for path, notice in self._all().items() if notice.run == self._run]
        return {PurePosixPath(path).stem for path in mine}

    def others(self) -> dict[str, str]:
        """Question key → file of the notice, of every question that another run is asking.

        Read it before the journal: what is taken down in between is answered there.
        """
        others = {path: one for path, one in self._all().items() if one.run != self._run}
        return {key: path for path, notice in others.items() for key in notice.keys}

    def asked(self, elsewhere: Mapping[str, str]) -> PausedError:
        """Say that only questions are left which others are asking: key → file, as above."""
        assert self._storage is not None  # without it nobody asks elsewhere
        files = sorted(set(elsewhere.values()))
        runs = sorted({notice.run for path, notice in self._all().items() if path in files})
        return PausedError(
            f"{len(elsewhere)} questions are asked by pending batches of "
            f"{', '.join(runs) or 'another run'}, which shares strong.books: everything else is "
            "done and kept. Run again when they are read; where that run is gone for good, delete "
            "the notice, and they are asked here",
            file=", ".join(f"{self._storage.uri}/{path}" for path in files[:3]),
        )

    def _all(self) -> dict[str, Notice]:
        """Every notice by its path."""
        if self._storage is None:
            return {}
        found = {}
        for path in self._storage.list(FOLDER):
            try:
                document = json.loads(self._storage.read(path))
                version, run, keys = document["version"], document["run"], document["keys"]
            except Missing:
                continue  # taken down just now
            except (ValueError, LookupError, TypeError):
                version = None
            if version != VERSION:
                raise CorruptedError(
                    "a notice of a pending batch is damaged, or from a newer version",
                    file=f"{self._storage.uri}/{path}",
                )
            found[path] = Notice(str(run), list(keys))
        return found


def _path(batch: str) -> str:
    return f"{FOLDER}/{batch}.json"
