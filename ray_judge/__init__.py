"""Score millions of LLM outputs with a local judge; pay a strong one for the doubtful rows.

    import ray_judge

    config = ray_judge.load_config("run.yaml", ["strong.max_cost_usd=5"])
    ray_judge.plan(config)          # what the run will cost and be worth; spends nothing
    ray_judge.calibrate(config, labels="human")
    summary = ray_judge.score(config)
    ray_judge.evaluate(config.output, "human")

Every error is a `RayJudgeError` (see `ray_judge.errors`). A function's module is imported when
it is first used, so that `ray-judge --help` does not wait for Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_judge import errors
from ray_judge.errors import RayJudgeError

if TYPE_CHECKING:
    from ray_judge.commands.calibrate import calibrate
    from ray_judge.commands.evaluate import evaluate
    from ray_judge.commands.plan import plan
    from ray_judge.config import load as load_config
    from ray_judge.pipeline import score

__version__ = "0.1.0"
_PLACES = {
    "calibrate": ("commands.calibrate", "calibrate"),
    "evaluate": ("commands.evaluate", "evaluate"),
    "plan": ("commands.plan", "plan"),
    "load_config": ("config", "load"),
    "score": ("pipeline", "score"),
}
__all__ = ["RayJudgeError", "calibrate", "errors", "evaluate", "load_config", "plan", "score"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'ray_judge' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(f"ray_judge.{module}"), attribute)
