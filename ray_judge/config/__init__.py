"""One YAML file is a whole run: it becomes one frozen tree, and its digest is stamped on the run.

Unknown keys are errors that name the nearest known key. Money is `Decimal`; rates are per
minute; times are seconds. `load` is the only way in: file, then `--set key=value` overrides.
"""

from ray_judge.config.data import LabelRule, presets
from ray_judge.config.judge import FORMAT_SCORES, CustomFormat, HttpConfig, JudgeConfig
from ray_judge.config.loading import load, override, parse
from ray_judge.config.run import OPERATIONAL, RunConfig, differences, is_asked, label_text
from ray_judge.config.strong import BatchConfig, StrongConfig, api_key, with_variables
from ray_judge.config.tree import RouteConfig, hide_secrets, nearest

__all__ = [
    "FORMAT_SCORES", "OPERATIONAL", "BatchConfig", "CustomFormat", "HttpConfig", "JudgeConfig",
    "LabelRule", "RouteConfig", "RunConfig", "StrongConfig", "api_key", "differences",
    "hide_secrets", "is_asked", "label_text", "load", "nearest", "override", "parse", "presets",
    "with_variables",
]  # fmt: skip
