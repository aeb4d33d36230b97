"""Models that reason before they answer: how that is switched, and where the answer begins. Pure.

A chat template has a switch of its own: `enable_thinking` (Qwen3 and its kin) or `thinking`
(DeepSeek-V3.1, Granite). Switched off, the prompt ends with an empty block of reasoning, as
Qwen3's authors prescribe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from ray_judge.config import JudgeConfig
from ray_judge.errors import ConfigError

SWITCHES = ("enable_thinking", "thinking")
THINKING_TOKENS = 4096
"""What the reasoning may take besides the answer, where judge.max_output_tokens does not say."""
BEGINS = re.compile(
    r"(?i)\s*(?:<(?:\w+:)?(?:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷"
    r"|<\|channel\|>analysis)"
)
ENDS = re.compile(
    r"(?i)</(?:\w+:)?(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷"
    r"|<\|channel\|>final.*?<\|message\|>"
)
"""As Qwen and DeepSeek, Seed, Magistral, Kimi and gpt-oss write them."""
OPEN = re.compile(r"<think>(\s*)\Z")
NO_SWITCH = (
    "this model's chat template has no switch for thinking (enable_thinking, thinking): leave "
    "judge.thinking out, or say in judge.chat_template_kwargs how its template does it"
)


def template_options(judge: JudgeConfig, template: str | None) -> dict[str, Any]:
    """What the chat template is rendered with; null: a server's, which takes the name it knows.

    Raises ConfigError for a template without a switch where one is asked for.
    """
    given = judge.chat_template_kwargs
    if judge.thinking is None:
        return given
    known = [*SWITCHES] if template is None else _switches(template)
    if not known and not given:
        raise ConfigError(NO_SWITCH)
    return dict.fromkeys(known, judge.thinking) | given


def _switches(template: str) -> list[str]:
    """The switches that a template reads without setting them first."""
    syntax = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
    try:
        names: Iterable[str] = find_undeclared_variables(syntax.parse(template))
    except TemplateSyntaxError:  # it has tags of its own
        names = re.findall(r"\w+", template)
    return [name for name in SWITCHES if name in names]


def close_reasoning(prompt: str) -> str:
    """The same prompt with the empty block, where its end opens one."""
    if found := OPEN.search(prompt):
        return prompt + ("\n" if found[1] else "\n\n") + "</think>\n\n"
    return prompt


def answer_begins(text: str, *, opened: bool = False) -> int | None:
    """Characters in front of the answer: behind the last end of reasoning.

    `opened`: the prompt began the reasoning. None where it has begun and does not end.
    """
    ends = [found.end() for found in ENDS.finditer(text)]
    if ends:
        return ends[-1]
    return None if opened or BEGINS.match(text) else 0
