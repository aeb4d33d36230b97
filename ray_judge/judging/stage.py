"""Phase A: chunks through a pool of judge actors under Ray Data, each committed when it is done.

One chunk is one read task, one block, one call and one file, so its identity and order are kept.
What comes out of the stream is a receipt per chunk; the verdicts are already on disk by then.
"""

from __future__ import annotations

import logging
import pickle
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError
from ray.util.annotations import RayDeprecationWarning

from ray_judge.cluster import our_error
from ray_judge.config import JudgeConfig, RunConfig
from ray_judge.errors import EngineError, RayJudgeError, brief
from ray_judge.judging.engines.checkpoint import weight_bytes
from ray_judge.judging.engines.engine import (
    Engine,
    LanguageModel,
    check_engine,
    make_engine,
    make_model,
)
from ray_judge.judging.engines.errors import engine_error
from ray_judge.judging.first_rows import FIRST_ROWS, check_first_rows
from ray_judge.judging.formats import base_of
from ray_judge.records import Chunk, Judgment, Scored, judged_schema
from ray_judge.run.columns import Columns
from ray_judge.run.directory import RunDirectory
from ray_judge.run.plan import chosen_sides, read_examples, read_rows, row_keys

Rows = Mapping[str, Sequence[int]]
"""Chunk → rows of its shard that are judged."""
WEIGHTS_SHARE = 0.6
"""Of a GPU's memory that the weights of two models may take together; the rest is for caches."""
CHUNKS_PER_ACTOR = 3
"""In flight at once: one being judged, one being read and tokenised, one being committed."""
RESTARTS = 3
"""How often a judge's process that died begins anew, and what it was at. Nodes that are taken away
with notice do not count (Ray's own default is for ever, whatever it dies of)."""
STUCK_AFTER_S = 1800
"""Ray Data gives up when nothing at all has moved for so long."""

CHUNK, SHARD, ROW, SCORED = "__chunk", "__shard", "__row", "__scored"
FAILED = "failed"
RECEIPT = pa.schema([("chunk", pa.string()), (FAILED, pa.binary())])
TOKENS = pa.list_(pa.int32())
SCORED_TYPE = pa.list_(pa.struct({"prompt": TOKENS, "answer": TOKENS}))


class ChunkSource(Datasource):
    """A Ray Data source of exactly these chunks. `rows`: those of each chunk, None for all."""

    def __init__(self, chunks: Sequence[Chunk], columns: Columns, rows: Rows | None) -> None:
        super().__init__()
        self._chunks, self._columns, self._rows = list(chunks), columns, rows

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        tasks = []
        for chunk in self._chunks:
            rows = None if self._rows is None else self._rows[chunk.name]
            count = chunk.rows if rows is None else len(rows)
            known = BlockMetadata(
                num_rows=count, size_bytes=None, input_files=None, exec_stats=None
            )
            tasks.append(ReadTask(partial(read_chunk, chunk, self._columns, rows), known))
        return tasks


def read_chunk(chunk: Chunk, columns: Columns, rows: Sequence[int] | None) -> list[pa.Table]:
    """Read one chunk, or some of its rows; its block carries where it comes from."""
    try:
        table = read_rows(chunk.shard, chunk.start, chunk.rows, columns.needed())
    except RayJudgeError as error:
        return [receipt(chunk.name, error)]
    for column, value in ((CHUNK, chunk.name), (SHARD, chunk.shard_name)):
        table = table.append_column(column, pa.repeat(value, len(table)))
    places = pa.array(range(chunk.start, chunk.start + len(table)), pa.int64())
    table = table.append_column(ROW, places)
    return [table if rows is None else table.take([row - chunk.start for row in rows])]


def receipt(chunk: str, error: RayJudgeError | None = None) -> pa.Table:
    """All that comes home of a chunk. An error does as a value: an exception that crosses Ray
    arrives wrapped beyond recognition, and is printed by it on the way.
    """
    failed = None if error is None else pickle.dumps(error)
    return pa.table({"chunk": [chunk], FAILED: [failed]}, schema=RECEIPT)


@dataclass(frozen=True)
class JudgeTask:
    """What the actors of one local judge have in common; `tier` is its number, from 0.

    `check`: the chunk whose first rows show whether the judge's model fits; None: it is known.
    """

    config: RunConfig
    columns: Columns
    run: RunDirectory
    tier: int
    check: str | None = None

    def judge(self, block: pa.Table, engine: Engine) -> pa.Table:
        """Judge one chunk and commit it; with calibrated_entropy it goes on to the base model."""
        if block.column(CHUNK)[0].as_py() == self.check:
            head, rest = block.slice(0, FIRST_ROWS), block.slice(FIRST_ROWS)
            judged = judge_rows(head, engine, self.config, self.columns)
            check_first_rows(judged, self.config.judge)
            if len(rest):
                others = judge_rows(rest, engine, self.config, self.columns)
                judged = pa.concat_tables([judged, others])
        else:
            judged = judge_rows(block, engine, self.config, self.columns)
        two = self.config.judge.confidence == "calibrated_entropy"
        return judged if two else self._commit(judged)

    def calibrate(self, block: pa.Table, base: LanguageModel) -> pa.Table:
        """Subtract the base model's entropies from a judged chunk and commit it."""
        return self._commit(calibrate_rows(block, base))

    def _commit(self, judged: pa.Table) -> pa.Table:
        """Make a judged chunk durable; gives its receipt, which is all that goes on."""
        chunk = judged.column(CHUNK)[0].as_py()
        schema = judged_schema(self.config.task, self.config.alternatives())
        self.run.commit_judged(self.tier, chunk, without_nan(judged.select(schema.names)))
        return receipt(chunk)


class ModelActor:
    """One model (the judge, or its base), and what is done with it to the chunks."""

    def __init__(
        self,
        load: Callable[[], Any],
        work: Callable[[pa.Table, Any], pa.Table],
        explain: Callable[[Exception, str], RayJudgeError],
    ) -> None:
        self._work, self._explain = work, explain
        self._model = self._try("the judge's model cannot be loaded", load)

    def __call__(self, block: pa.Table) -> pa.Table:
        if FAILED in block.column_names:
            return block
        found = self._model
        if not isinstance(found, RayJudgeError):
            found = self._try("the judge failed", self._work, block, self._model)
        chunk = block.column(CHUNK)[0].as_py()
        return receipt(chunk, found) if isinstance(found, RayJudgeError) else found

    def _try(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function gives, or an error of ours in its place."""
        try:
            return function(*arguments)
        except Exception as error:  # an engine raises whatever it likes
            logging.getLogger(__name__).exception("%s", doing)  # all of it, for the worker's log
            return self._explain(error, doing)


def without_nan(judged: pa.Table) -> pa.Table:
    """The same rows; a confidence that is no number is null, and the row's error says so."""
    sure, error = judged["judge_confidence"], judged["error"]
    bad = pc.fill_null(pc.is_nan(sure), False)
    said = pc.coalesce(error, pa.scalar("judge: its confidence is not a number"))
    columns = dict(zip(judged.column_names, judged.columns, strict=True))
    columns["judge_confidence"] = pc.if_else(bad, None, sure)
    columns["error"] = pc.if_else(bad, said, error)
    return pa.table(columns, schema=judged.schema)


def calibrate_rows(block: pa.Table, model: LanguageModel) -> pa.Table:
    """The same rows with `judge_confidence`: the judge's mean entropy minus the base model's."""
    own = block.column("judge_confidence").to_pylist()
    asked = [
        [Scored(**item) for item in row] if known is not None else []
        for known, row in zip(own, block.column(SCORED).to_pylist(), strict=True)
    ]
    found = iter(model.entropies([item for row in asked for item in row]))
    values = [
        None if known is None else known - fmean([fmean(next(found)) for _ in row])
        for known, row in zip(own, asked, strict=True)
    ]
    place = block.schema.get_field_index("judge_confidence")
    return block.set_column(place, block.schema.field(place), pa.array(values, pa.float64()))


def turn(judgment: Judgment) -> Judgment:
    """The same judgment of the pair in its other order."""
    other = {"A": "B", "B": "A"}
    probs = {other.get(name, name): p for name, p in (judgment.probs or {}).items()}
    verdict = other.get(str(judgment.verdict), judgment.verdict)
    return replace(judgment, verdict=verdict, probs=probs or None)


def judge_rows(block: pa.Table, engine: Engine, config: RunConfig, columns: Columns) -> pa.Table:
    """Judge the rows of one chunk: one judged row per input row, in order, whatever befalls it.

    Each comes with its chunk's name and with what the base model is to be asked (`SCORED`).
    """
    examples = read_examples(block, columns)
    judgments = [
        Judgment(None, None, None, None, example if isinstance(example, str) else None)
        for example in examples
    ]
    texts = {n: example for n, example in enumerate(examples) if not isinstance(example, str)}
    # Verdicts that are there already are so whatever the row's text is like.
    asked = list(texts) if engine.needs_text else list(range(len(examples)))
    if asked:
        found = engine.judge(list(texts.values()), block.take(asked))
        for n, result in zip(asked, found, strict=True):
            judgments[n] = replace(result, error=result.error or judgments[n].error)
    if columns.chosen and not engine.needs_text:  # recorded of the chosen one as A
        sides = chosen_sides(block, columns)
        pairs = zip(judgments, sides, strict=True)
        judgments = [turn(judgment) if side == "B" else judgment for judgment, side in pairs]
    names, shown = config.alternatives(), [judgment.probs for judgment in judgments]
    shard, places = block.column(SHARD)[0].as_py(), block.column(ROW).to_pylist()
    values = {
        "row": places,
        "row_key": row_keys(block, columns, shard, places),
        "has_text": [n in texts for n in range(len(examples))],
        "judge_probs": [
            None if probs is None else {name: probs.get(name) for name in names} for probs in shown
        ],
        "judge_model": [engine.model] * len(judgments),
        "error": [judgment.error for judgment in judgments],
    }
    for name in ("verdict", "mass", "unseen", "orders_agree", "confidence"):
        values[f"judge_{name}"] = [getattr(judgment, name) for judgment in judgments]
    scored = [
        [{"prompt": one.prompt, "answer": one.answer} for one in judgment.scored]
        for judgment in judgments
    ]
    judged = pa.table(values, schema=judged_schema(config.task, names))
    judged = judged.append_column(SCORED, pa.array(scored, SCORED_TYPE))
    return judged.append_column(CHUNK, block.column(CHUNK))


def judge_chunks(
    task: JudgeTask, chunks: Sequence[Chunk], rows: Rows | None = None
) -> Iterator[str]:
    """Judge the chunks and give each one's name once it is committed (in any order).

    `rows`: which rows of each chunk; None for all of them.
    """
    if not chunks:
        return
    task = replace(task, config=settle_sharing(task.config))
    format_ = check_engine(task.config)
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = STUCK_AFTER_S
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    dataset = ray.data.read_datasource(
        ChunkSource(chunks, task.columns, rows), override_num_blocks=len(chunks)
    )
    explain = partial(engine_error, task.config.judge)
    stages: list[tuple[Any, ...]] = [
        (partial(make_engine, task.config, format_), task.judge, explain)
    ]
    if task.config.judge.confidence == "calibrated_entropy":
        load = partial(make_model, task.config, base=True)
        stages.append((load, task.calibrate, partial(explain, base=True)))
    pool = pool_size(task.config.judge, ray.cluster_resources(), len(chunks))
    for stage in stages:
        dataset = _through(dataset, stage, pool)
    try:
        for row in dataset.iter_rows():
            if row[FAILED] is not None:
                raise pickle.loads(row[FAILED])  # noqa: S301  our own worker's
            yield row["chunk"]
    except RayTaskError as error:
        raise our_error(error) from None
    except RayError as error:
        why = brief(str(error).rpartition("Worker exit detail:")[2])
        raise EngineError(f"a judge's process died {RESTARTS + 1} times: {why}") from None
    except ExecutionTimeoutError:
        said = f"no chunk was judged, read or begun for {STUCK_AFTER_S // 60} minutes"
        raise EngineError(f"{said}: the run is stuck; the same command continues it") from None


def _through(dataset: ray.data.Dataset, stage: tuple[Any, ...], pool: Pool) -> ray.data.Dataset:
    """Lead the chunks through a pool of actors of one model."""
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to say how often an actor is restarted, and warns of this one.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            ModelActor,
            fn_constructor_args=stage,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                size=pool.replicas,
                max_concurrent_calls_per_actor=CHUNKS_PER_ACTOR,
                max_tasks_in_flight_per_actor=CHUNKS_PER_ACTOR + 1,
                enable_true_multi_threading=True,
            ),
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )


@dataclass(frozen=True, slots=True)
class Pool:
    """Actors of one model: how many, and what each one holds."""

    replicas: int
    gpus: float
    cpus: float


def settle_sharing(config: RunConfig) -> RunConfig:
    """Decide whether judge and base model share a GPU: as configured, else when they fit.

    Only local checkpoints are measured: what a hub would send is not known before it is loaded.
    """
    judge = config.judge
    if judge.confidence != "calibrated_entropy" or judge.share_gpu is not None:
        return config
    sizes = [weight_bytes(str(judge.model)), weight_bytes(base_of(judge))]
    fits = False
    if ray.cluster_resources().get("GPU") and all(sizes):
        there = ray.get(gpu_bytes.remote())
        fits = sum(size or 0 for size in sizes) <= there * WEIGHTS_SHARE
    return config.model_copy(update={"judges": (judge.model_copy(update={"share_gpu": fits}),)})


@ray.remote(num_gpus=0.01, num_cpus=0.01)
def gpu_bytes() -> int:
    """Memory of the GPU that Ray gives to a worker; 0 where nobody says."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return 0
    sizes = [int(line) for line in found.split() if line.isdigit()]
    return min(sizes, default=0) << 20


def pool_size(judge: JudgeConfig, cluster: Mapping[str, float], chunks: int) -> Pool:
    """Size the actor pool of a judge; with calibrated_entropy its base model has one like it.

    GPUs where there are any: one per engine and tensor-parallel rank, or half of one where judge
    and base model share it. Else a part of the CPUs: Ray hangs silently when actors hold every
    CPU and the read tasks find none, so all pools together take at most half of what there is.
    """
    replicas = min(judge.replicas, chunks)
    models = 2 if judge.confidence == "calibrated_entropy" else 1
    gpus = judge.gpus_per_replica
    if gpus is None:
        here = bool(cluster.get("GPU")) and judge.engine in ("vllm", "transformers")
        ranks = float(judge.engine_options.get("tensor_parallel_size", 1))
        shared = models == 2 and ranks == 1 and judge.share_gpu
        gpus = (0.5 if shared else ranks) if here else 0.0
    cpus = judge.cpus_per_replica
    if cpus is None:
        cpus = 1.0 if gpus else min(1.0, cluster.get("CPU", 1.0) / 2 / (replicas * models))
    return Pool(replicas, gpus, cpus)
