"""`demo`: the tiny judge shipped with the package; the token after its prompt is the verdict."""

from ray_judge.judging.formats.first_line import FirstLine
from ray_judge.judging.formats.format import Format, Template

TEMPLATE = "{instruction}\nA: {response_a}\nB: {response_b}\nBest: "
"""The model was trained on exactly this text."""
ALTERNATIVES = ("A", "B")
FORMAT = Format(
    "pairwise",
    Template.split(TEMPLATE, ("instruction", "response_a", "response_b")),
    FirstLine({name: name for name in ALTERNATIVES}, "A or B", leads=("",)),
    chat=False,
    max_output_tokens=1,
)
