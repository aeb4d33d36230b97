"""How each family of judges is asked and where its verdict sits: one module per family."""

from ray_judge.config import JudgeConfig
from ray_judge.judges.demo import DemoFormat
from ray_judge.judges.format import Format, Question
from ray_judge.judges.generic import GenericFormat
from ray_judge.records import Task


def format_for(judge: JudgeConfig, task: Task) -> Format:
    """Make the format that the configuration names."""
    if judge.format == "demo":
        return DemoFormat()
    return GenericFormat(judge, task)


__all__ = ["Format", "Question", "format_for"]
