"""Phase A: chunks through a pool of judge actors under Ray Data, each committed when it is done.

One chunk is one read task, one block, one call and one file, so its identity and order are kept
from the input's slice to `judged/<chunk>.parquet`. What comes out of the stream is a receipt per
chunk; the verdicts are already on disk by then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError, RayTaskError

from ray_judge.config import RunConfig
from ray_judge.engines.engine import Engine, make_engine
from ray_judge.errors import EngineError, RayJudgeError
from ray_judge.escalation.question import StrongQuestion
from ray_judge.inputs import Columns, read_examples, read_rows, row_keys
from ray_judge.records import Chunk, Example, Judgment, judged_schema
from ray_judge.run_directory import RunDirectory
from ray_judge.workers import our_error

CHUNKS_PER_ACTOR = 3
"""In flight at once: one being judged, one being read and tokenised, one being committed."""
STUCK_AFTER_S = 1800
"""Ray Data gives up when nothing at all has moved for so long."""

log = logging.getLogger(__name__)


class ChunkSource(Datasource):
    """A Ray Data source whose read tasks are exactly the chunks that are still to be judged."""

    def __init__(self, chunks: Sequence[Chunk], columns: Columns) -> None:
        """Hold the work; nothing is read here."""
        super().__init__()
        self._chunks = list(chunks)
        self._columns = columns

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task per chunk, whatever parallelism Ray Data would like."""
        return [
            ReadTask(
                _Reader(chunk, self._columns),
                BlockMetadata(
                    num_rows=chunk.rows, size_bytes=None, input_files=None, exec_stats=None
                ),
            )
            for chunk in self._chunks
        ]


class _Reader:
    """Reads one chunk; its block carries the chunk's name in the schema's metadata."""

    def __init__(self, chunk: Chunk, columns: Columns) -> None:
        self.chunk = chunk
        self.columns = columns

    def __call__(self) -> list[pa.Table]:
        chunk = self.chunk
        table = read_rows(chunk.shard, chunk.start, chunk.rows, self.columns.needed())
        name = pa.array([chunk.name] * len(table), pa.string())
        rows = pa.array(range(chunk.start, chunk.start + len(table)), pa.int64())
        shard = pa.array([chunk.shard_name] * len(table), pa.string())
        for column, values in ((CHUNK, name), (SHARD, shard), (ROW, rows)):
            table = table.append_column(column, values)
        return [table]


CHUNK, SHARD, ROW = "__chunk", "__shard", "__row"


class JudgeActor:
    """One engine and the chunks that pass through it."""

    def __init__(self, config: RunConfig, columns: Columns, run: RunDirectory) -> None:
        """Start the engine. A failure is kept for the first call, which can carry it home."""
        self._columns = columns
        self._run = run
        self._config = config
        self._question = StrongQuestion(config)
        self._failure: RayJudgeError | None = None
        self._engine: Engine | None = None
        try:
            self._engine = make_engine(config)
        except RayJudgeError as error:
            self._failure = error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Judge one chunk, commit it, and give its receipt."""
        if self._engine is None:
            raise self._failure or EngineError("the engine did not start")
        chunk = block.column(CHUNK)[0].as_py()
        judged = judge_rows(block, self._engine, self._config, self._columns, self._question)
        self._run.commit_judged(chunk, judged)
        failed = judged.column("judge_verdict").null_count
        return pa.table({"chunk": [chunk], "rows": [len(judged)], "failed": [failed]})


def judge_rows(
    block: pa.Table,
    engine: Engine,
    config: RunConfig,
    columns: Columns,
    question: StrongQuestion,
) -> pa.Table:
    """Judge the rows of one chunk: one judged row per input row, in order, whatever befalls it."""
    examples = read_examples(block, columns)
    judgments = [_unread(example) for example in examples]
    keys = [None if isinstance(example, str) else question.keys(example) for example in examples]
    readable = [n for n, example in enumerate(examples) if not isinstance(example, str)]
    if not engine.needs_text:  # its verdicts are there, whatever the row's text is like
        readable = list(range(len(examples)))
    if readable:
        texts = [example for n in readable if not isinstance(example := examples[n], str)]
        for n, result in zip(readable, engine.judge(texts, block.take(readable)), strict=True):
            judgments[n] = replace(result, error=result.error or judgments[n].error)
    first = block.column(ROW)[0].as_py()
    names = config.alternatives()
    columns_out = {
        "row": block.column(ROW),
        "row_key": row_keys(block, columns, block.column(SHARD)[0].as_py(), first),
        "judge_verdict": [judgment.verdict for judgment in judgments],
        "judge_probs": [_struct(judgment, names) for judgment in judgments],
        "judge_mass": [judgment.mass for judgment in judgments],
        "judge_confidence": [judgment.confidence for judgment in judgments],
        "judge_model": [engine.model] * len(judgments),
        "error": [judgment.error for judgment in judgments],
        "question_keys": keys,
    }
    schema = judged_schema(config.task, names)
    return pa.table(
        {
            field.name: pa.chunked_array(columns_out[field.name].chunks, field.type)
            if isinstance(columns_out[field.name], pa.ChunkedArray)
            else pa.array(columns_out[field.name], field.type)
            for field in schema
        },
        schema=schema,
    )


def _unread(example: Example | str) -> Judgment:
    return Judgment(None, None, None, None, example if isinstance(example, str) else None)


def _struct(judgment: Judgment, names: Sequence[str]) -> dict[str, float | None] | None:
    if judgment.probs is None:
        return None
    return {name: judgment.probs.get(name) for name in names}


def judge_chunks(
    config: RunConfig, chunks: Sequence[Chunk], columns: Columns, run: RunDirectory
) -> Iterator[str]:
    """Judge the chunks and give each one's name once it is committed (in any order)."""
    if not chunks:
        return
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = STUCK_AFTER_S
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.read_datasource(
        ChunkSource(chunks, columns), override_num_blocks=len(chunks)
    ).map_batches(
        JudgeActor,
        fn_constructor_args=(config, columns, run),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        **_pool(config, len(chunks)),
    )
    try:
        for receipt in dataset.iter_rows():
            yield receipt["chunk"]
    except RayTaskError as error:
        raise our_error(error) from None
    except RayError as error:
        raise EngineError(f"the judge's actors died: {error}") from None


def _pool(config: RunConfig, chunks: int) -> dict[str, Any]:
    """Size the actor pool: GPUs where there are any, else a part of the CPUs.

    Ray hangs silently when actors hold every CPU and the read tasks find none, so the CPU pool
    takes at most half of what the cluster has.
    """
    judge = config.judge
    replicas = min(judge.replicas, chunks)
    cluster = ray.cluster_resources()
    gpus = judge.gpus_per_replica
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU") and judge.engine != "columns" else 0.0
    cpus = judge.cpus_per_replica
    if cpus is None:
        cpus = 1.0 if gpus else min(1.0, cluster.get("CPU", 1.0) / 2 / replicas)
    return {
        "compute": ray.data.ActorPoolStrategy(
            size=replicas,
            max_concurrent_calls_per_actor=CHUNKS_PER_ACTOR,
            max_tasks_in_flight_per_actor=CHUNKS_PER_ACTOR + 1,
            enable_true_multi_threading=True,
        ),
        "num_gpus": gpus or None,
        "num_cpus": cpus,
    }
