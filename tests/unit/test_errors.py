"""Every error crosses a process boundary whole, and ends a command with its documented code."""

import importlib
import pickle
import re
from pathlib import Path

import pytest

import ray_judge
from ray_judge import errors
from ray_judge.cli import main
from ray_judge.errors import RayJudgeError

PACKAGE = Path(ray_judge.__file__).parent


def tree(cls: type[RayJudgeError] = RayJudgeError) -> list[type[RayJudgeError]]:
    """The class and everything below it."""
    return [cls, *(below for child in cls.__subclasses__() for below in tree(child))]


def all_errors() -> list[type[RayJudgeError]]:
    """Those of errors.py, and those of modules that name one of them as a base class."""
    base = "|".join(name for name in vars(errors) if name[0].isupper())
    for path in sorted(PACKAGE.rglob("*.py")):
        if re.search(rf"^class \w+\(({base})\)", path.read_text(), re.MULTILINE):
            module = path.relative_to(PACKAGE.parent).with_suffix("")
            importlib.import_module(".".join(module.parts))
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
    assert str(cls("broken")) == "broken"


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"^\s+[│├└─ ]*(\w+)\s+(\d+)\s{2,}", errors.__doc__ or "", re.MULTILINE)
    defined = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, RayJudgeError)
    }
    assert {name: int(code) for name, code in drawn} == defined


def test_help_has_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert "exit codes" in said and all(f"  {code}  " in said for code in range(6))


def test_the_library_is_flat() -> None:
    for name in ray_judge.__all__:
        assert getattr(ray_judge, name)
    with pytest.raises(AttributeError, match="nothing"):
        ray_judge.nothing  # noqa: B018
