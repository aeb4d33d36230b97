"""A judge over two tensor-parallel ranks, in a process of its own: prints what it reads.

python -m tests.engines.parallel MODEL
"""

import json
import os
import sys
from pathlib import Path

from ray_judge.judging.engines.engine import Reading
from ray_judge.judging.engines.tokens import TokenReader
from ray_judge.judging.engines.vllm import VllmModel

from . import tiny

COUNT = 10


def main(folder: str) -> None:
    """Read some examples and score the answers again, as the base model would."""
    options = {"tensor_parallel_size": 2, "kv_cache_memory_bytes": 64 << 20}
    judge = tiny.judge(Path(folder), confidence="entropy", engine_options=options)
    model = VllmModel(judge)
    readings = TokenReader(judge, tiny.phrases(), model).read(asked())
    found = [reading for reading in readings if isinstance(reading, Reading) and reading.scored]
    again = model.entropies([reading.scored for reading in found if reading.scored])
    told = [
        {"logprobs": r.logprobs, "entropy": r.entropy, "again": values}
        for r, values in zip(found, again, strict=True)
    ]
    print(json.dumps(told), flush=True)
    os._exit(0)  # vLLM's workers end with their parent


def asked() -> list[tiny.Example]:
    return tiny.examples(COUNT, "pairwise", seed=11, longest=60)


if __name__ == "__main__":
    main(sys.argv[1])
