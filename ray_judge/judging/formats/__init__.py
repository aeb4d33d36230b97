"""How each family of judges is asked and where its verdict sits: one module per family."""

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError
from ray_judge.judging.formats import auto_j, custom, demo, generic, judgelm, pandalm, prometheus
from ray_judge.judging.formats.family import Family
from ray_judge.judging.formats.format import Format, Parsed, Question
from ray_judge.judging.formats.registry import pin_for
from ray_judge.judging.formats.slots import Slots
from ray_judge.judging.formats.templates import template
from ray_judge.records import Task

FAMILIES: tuple[Family, ...] = (
    judgelm.FAMILY,
    pandalm.FAMILY,
    auto_j.FAMILY,
    prometheus.FAMILY,
    prometheus.FAMILY_2,
    generic.FAMILY,
    custom.FAMILY,
    demo.FAMILY,
)


def format_for(judge: JudgeConfig, task: Task) -> Format:
    """Make the format that the configuration names, with its template filled in.

    For a pairwise task it is pointwise where the family cannot compare, or `by_scores` asks for
    it: then both responses are scored. Raises ConfigError for what does not fit together, and
    where a template is neither at hand nor to be had.
    """
    mode = _mode(judge, task)
    if judge.custom is not None:
        return custom.make(judge, judge.custom)
    if judge.format == "demo":
        return demo.DemoFormat()
    if judge.format == "generic":
        return generic.make(judge, mode)
    if judge.chat and judge.format != "prometheus-2":
        raise ConfigError(
            f"judge.format {judge.format} is asked with the whole prompt that it was tuned on: "
            "judge.chat cannot be true"
        )
    pin = pin_for(judge.format, mode)
    slots = Slots.split(template(pin, judge.templates), pin.placeholders)
    forced = judge.decode == "verdict"
    if judge.format == "judgelm":
        return judgelm.make(mode, slots)
    if judge.format == "pandalm":
        return pandalm.make(mode, slots)
    if judge.format == "auto-j":
        return auto_j.make(mode, slots, forced=forced)
    if judge.format == "prometheus":
        return prometheus.make(mode, slots, forced=forced, rubric=judge.rubric)
    return prometheus.make_2(mode, slots, forced=forced, rubric=judge.rubric, chat=judge.chat)


def base_model_of(judge: JudgeConfig) -> str | None:
    """Name the model that a judge was tuned from: as configured, else as its authors say.

    An adapter was tuned on the very model that it is put on. Null: nobody says.
    """
    if judge.base_model:
        return judge.base_model
    if judge.adapter:
        return judge.model
    for family in FAMILIES:
        if judge.model and judge.model in family.bases:
            return family.bases[judge.model]
    return None


def _mode(judge: JudgeConfig, task: Task) -> Task:
    """Decide whether pairs are compared or responses are scored."""
    if judge.custom is not None:
        modes: tuple[Task, ...] = (judge.custom.task(),)
    else:
        modes = next(family.modes for family in FAMILIES if family.name == judge.format)
    if "pointwise" not in modes and (task == "pointwise" or judge.by_scores):
        key = "by_scores" if task == "pairwise" else "task: pointwise"
        raise ConfigError(f"judge.format {judge.format} gives no scores here: {key} needs them")
    return task if task in modes and not judge.by_scores else "pointwise"


__all__ = ["FAMILIES", "Format", "Parsed", "Question", "base_model_of", "format_for"]
