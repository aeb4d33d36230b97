"""How each family of judges is asked, and how its answers are read."""

from ray_judge.judging.formats.families import base_of, format_for
from ray_judge.judging.formats.format import Format, Parsed, Prompt, Template

__all__ = ["Format", "Parsed", "Prompt", "Template", "base_of", "format_for"]
