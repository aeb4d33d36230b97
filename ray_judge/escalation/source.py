"""The questions of a run's routed rows, in the order in which they are asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace

import polars as pl

from ray_judge.errors import InputChangedError, RayJudgeError
from ray_judge.escalation.questions import Question, QuestionMaker
from ray_judge.records import SURENESS, Chunk, Route

PER_TAKE = 256
"""Rows of a chunk whose questions are made at a time."""
REST_S = 2.0
"""So long the maker of frames is waited for at the end. It may be in the middle of a chunk."""
ASKED = pl.Schema(
    [("chunk", pl.String()), ("row", pl.Int64()), ("question_keys", pl.List(pl.String))]
)


class RoutedQuestions:
    """The questions of a run's routed rows; see `session.QuestionSource`.

    A thread takes the routed frames as phase A lets them come, so that asking never waits for
    judging nor judging for asking. Their questions are made when the session takes them: the least
    sure rows of each chunk first, or, where the whole run is known first (`whole`), of the run.
    """

    def __init__(
        self,
        routed: Iterable[pl.DataFrame],
        chunks: Mapping[str, Chunk],
        maker: QuestionMaker,
        *,
        whole: bool,
    ) -> None:
        self._routed, self._chunks, self._maker, self._whole = routed, chunks, maker, whole
        self._frames: queue.SimpleQueue[pl.DataFrame | None] = queue.SimpleQueue()
        self._arrived: list[pl.DataFrame] = []
        self._lots: list[tuple[str, list[int]]] = []
        self._made: list[pl.DataFrame] = []
        self._failure: RayJudgeError | None = None
        self._over = self._stopping = False
        self._thread = threading.Thread(target=self._read, name="routed-rows", daemon=True)
        self._thread.start()

    def take(self) -> list[Question] | None:
        self.check()
        self._receive()
        if self._whole:
            return self._take_whole()
        if self._lots:
            return self._make(*self._lots.pop(0))
        return None if self._over else []

    def check(self) -> None:
        """Raise the error that ended phase A, as soon as it is known."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no more frames, and let their maker come to rest."""
        self._stopping = True
        self._thread.join(REST_S)

    def asked(self) -> pl.DataFrame:
        """`chunk`, `row`, `question_keys` of every row whose questions were made."""
        return pl.concat([pl.DataFrame(schema=ASKED), *self._made])

    def _take_whole(self) -> list[Question] | None:
        """All questions at once, in the order of the whole run, without their bodies."""
        if not self._over:
            return []
        if not self._arrived:
            return None
        asked = in_asking_order(pl.concat(self._arrived)).select("chunk", "row")
        self._arrived = []
        rank = {place: at for at, place in enumerate(asked.rows())}
        found: list[Question] = []
        for (name,), rows in sorted(asked.group_by("chunk", maintain_order=True)):
            made = self._make(str(name), rows["row"].to_list())
            found += [replace(question, body=None) for question in made]
        return sorted(found, key=lambda question: rank[question.row[:2]])  # type: ignore[index]

    def _make(self, chunk: str, rows: list[int]) -> list[Question]:
        made = self._maker.of_rows(self._chunks[chunk], rows)
        keys = [[question.key for question in made[row]] for row in made]
        if not all(keys):  # a row without text is never routed to the strong judge
            file = self._chunks[chunk].shard
            raise InputChangedError("this shard changed since the run began", file=file)
        frame = {"chunk": [chunk] * len(made), "row": list(made), "question_keys": keys}
        self._made.append(pl.DataFrame(frame, schema=ASKED))
        return [question for row in rows for question in made[row]]

    def _receive(self) -> None:
        while not self._over:
            try:
                item = self._frames.get_nowait()
            except queue.Empty:
                return
            if item is None:
                self._over = True
            elif self._whole:
                self._arrived.append(item)
            else:
                asked = in_asking_order(item)
                for (name,), rows in sorted(asked.group_by("chunk", maintain_order=True)):
                    numbers = rows["row"].to_list()
                    for start in range(0, len(numbers), PER_TAKE):
                        self._lots.append((str(name), numbers[start : start + PER_TAKE]))

    def _read(self) -> None:
        frames = iter(self._routed)
        try:
            for frame in frames:
                if self._stopping:
                    if isinstance(frames, Generator):
                        frames.close()
                    break
                self._frames.put(frame)
        except RayJudgeError as error:
            self._failure = error
        except Exception as error:  # a thread has nobody to raise to
            self._failure = RayJudgeError(f"routing failed: {type(error).__name__}: {error}")
        else:
            self._frames.put(None)


def in_asking_order(routed: pl.DataFrame) -> pl.DataFrame:
    """Keep the rows that are asked, the least sure first: a cap that binds drops the surest.

    Audited rows come before all others: were they dropped where they are surest, what is left
    would no longer be a random sample.
    """
    asked = routed.filter(pl.col("route") != Route.ACCEPT.value)
    return asked.sort(pl.col("route") != Route.AUDIT.value, *SURENESS, nulls_last=False)
