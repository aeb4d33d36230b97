"""How each family of judges is asked and where its verdict sits: one module per family."""

from ray_judge.config import JudgeConfig
from ray_judge.judges.demo import DemoFormat
from ray_judge.judges.format import Format, Parsed, Question
from ray_judge.judges.generic import GenericFormat
from ray_judge.records import Task


def format_for(judge: JudgeConfig, task: Task) -> Format:
    """Make the format that the configuration names."""
    if judge.format == "demo":
        return DemoFormat()
    return GenericFormat(judge, task)


def base_model_of(judge: JudgeConfig) -> str | None:
    """The model that a known judge was tuned from."""
    return None


__all__ = ["Format", "Parsed", "Question", "base_model_of", "format_for"]
