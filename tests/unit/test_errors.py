"""Every error crosses a process boundary whole, and ends a command with its documented code."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re

import pytest

import ray_judge
from ray_judge import errors
from ray_judge.errors import RayJudgeError

pytestmark = pytest.mark.timeout(60)

ROOMS = (
    "ray_judge.storage.local",
    "ray_judge.escalation.online.actors",
    "ray_judge.escalation.processes",
)
"""Modules with errors of their own below the tree."""


def tree(cls: type[RayJudgeError] = RayJudgeError) -> list[type[RayJudgeError]]:
    """The class and everything below it."""
    return [cls, *(below for child in cls.__subclasses__() for below in tree(child))]


def all_errors() -> list[type[RayJudgeError]]:
    for name in ROOMS:
        importlib.import_module(name)
    return list(dict.fromkeys(tree()))


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
def test_pickles_with_message_place_and_class(cls: type[RayJudgeError]) -> None:
    error = cls("this is wrong", file="a.parquet", column="x", row=7, nothing=None)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert back.message == "this is wrong"
    assert back.where == {"file": "a.parquet", "column": "x", "row": 7}
    assert str(back) == str(error) == "this is wrong [file=a.parquet, column=x, row=7]"
    assert back.exit_code == error.exit_code


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"^\s+[│├└─ ]*(\w+)\s+(\d)\s{2,}", errors.__doc__ or "", re.MULTILINE)
    defined = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, RayJudgeError)
    }
    assert {name: int(code) for name, code in drawn} == defined


def test_a_message_without_a_place_stands_alone() -> None:
    assert str(RayJudgeError("broken")) == "broken"


def test_no_error_of_ours_is_defined_where_this_test_does_not_look() -> None:
    """Modules that name RayJudgeError or a child as a base class are all listed above."""
    known = {"ray_judge.errors", *ROOMS}
    base = "|".join(cls.__name__ for cls in all_errors())
    pattern = re.compile(rf"^class \w+\(({base})\)", re.MULTILINE)
    found = set()
    for module in pkgutil.walk_packages(ray_judge.__path__, "ray_judge."):
        spec = importlib.util.find_spec(module.name)
        if spec and spec.origin and spec.origin.endswith(".py"):
            with open(spec.origin, encoding="utf-8") as file:
                if pattern.search(file.read()):
                    found.add(module.name)
    assert found <= known
