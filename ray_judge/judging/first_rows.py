"""Whether a judge's model fits its prompt, by the first rows that it judges. Pure.

A model that does not fit gives verdicts all the same: what it holds for its alternatives is then a
thousandth of the probability, and which of them has more of it says nothing. Such a run would
escalate everything, or accept garbage. So it ends where that can be seen, before anything is paid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ray_judge.config import JudgeConfig
from ray_judge.errors import EngineError, brief
from ray_judge.records import Chunk

FIRST_ROWS = 100
KEYS = "judge.format, judge.model, judge.chat and judge.min_mass (0 lets everything pass)"


def chunk_to_check(
    judge: JudgeConfig, tier: int, chunks: Sequence[Chunk], counts: Mapping[str, int]
) -> str | None:
    """Name the chunk whose first rows are looked at: the first with `FIRST_ROWS` of them.

    It is the same one whenever a run is continued. Where no chunk has so many it is the largest,
    but of a later judge none: a handful that its predecessor left over is no sample of anything.
    """
    if judge.engine == "columns" or not judge.min_mass:
        return None
    first = max(chunks, key=lambda chunk: min(counts[chunk.name], FIRST_ROWS))
    return None if tier and counts[first.name] < FIRST_ROWS else first.name


def check_first_rows(judged: pa.Table, judge: JudgeConfig) -> None:
    """Raise EngineError where none of these rows has a verdict, or half of them a small mass.

    The median, since it is what "on most rows" means: the mean of a judge that is sure of 60 rows
    and lost on 40 is that of one which is half lost on all of them, and only the latter is of no
    use. Rows without text say nothing about the model.
    """
    rows = judged.filter(judged["has_text"])
    if not len(rows):
        return
    masses = rows["judge_mass"].drop_null()
    middle = pc.quantile(masses, 0.5)[0].as_py() if len(masses) else None
    if middle is None:
        seen = f"none of the first {len(rows)} rows got a verdict from {judge.model}"
    elif middle < judge.min_mass:
        seen = (
            f"the prompt does not fit {judge.model}: on half of the first {len(rows)} rows all "
            f"verdicts together have {middle:.2g} of the probability or less (judge.min_mass is "
            f"{judge.min_mass:g})"
        )
    else:
        return
    reason = next((text for text in rows["error"].to_pylist() if text), "")
    raise EngineError(
        f"{seen}. The first such row says: {brief(reason.removeprefix('judge: '))}. Look at "
        f"{KEYS}, and choose another output for another judge"
    )
