"""What all parts of the configuration are made of, and how a policy is told."""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

Positive = Annotated[int, Field(gt=0)]
Usd = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]


def hide_secrets(text: str) -> str:
    """The same text without what addresses in it must not tell: passwords, values of a query."""
    text = re.sub(r"[^\s/'\"]*:[^\s'\"]*@", "…@", text)
    return re.sub(r"([?&](?!api-version=)[^\s=&]+=)[^\s&#'\"]+", r"\1…", text)


def _source(place: str) -> str:
    """A place in one spelling: of `file://` URIs the path."""
    scheme, separator, rest = place.partition("://")
    if not place.strip():
        raise ValueError("this is blank: name a path or a URI")
    if separator and "@" in rest.partition("/")[0]:
        raise ValueError("a user and a password in a URI would be written down: not taken")
    if separator and not rest.strip("/"):
        raise ValueError("this URI names no bucket")
    if scheme != "file" or not separator:
        return place
    path = unquote(rest.removeprefix("localhost"))
    if not path.startswith("/"):
        raise ValueError("file:// takes an absolute path, such as file:///data/pairs")
    return path


def _absolute(place: str) -> str:
    scheme, separator, rest = _source(place).partition("://")
    if scheme == "hf" and separator:
        raise ValueError("hf:// is only read: choose another place")
    if separator:
        return f"{scheme}{separator}{rest.rstrip('/')}"
    # Links are left as they are: each node may have its own behind the same name.
    return os.path.normpath(Path(scheme).expanduser().absolute())


Source = Annotated[str, AfterValidator(_source)]
Place = Annotated[str, AfterValidator(_absolute)]
"""A folder by path or URI, in one spelling: the ledger keeps a run's cap under it. A relative path
is the command's, since actors have other working directories."""


def _variable(name: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("this is to name an environment variable that holds the key")
    return name


def _checked(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    blank = len(url.split()) > 1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or blank:
        raise ValueError("this is no address: it is to be like https://host/v1")
    if parts.username or parts.password:
        raise ValueError("a user and a password in an address would be written down: not taken")
    return url


Address = Annotated[str, AfterValidator(_checked), PlainSerializer(hide_secrets, when_used="json")]
"""Of a server; its query may hold a key, which no document shows."""
Variable = Annotated[str, AfterValidator(_variable)]
Share = Annotated[Decimal, Field(ge=0, le=1, allow_inf_nan=False)]


class Tree(BaseModel):
    """A frozen node of the configuration; extra keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's yes, no, on, off are truth values, and Python's truth values are numbers."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("this is a truth value in YAML: quote it if it is text")
        return value


def nearest(word: str, known: Sequence[str]) -> str:
    """Give ` (did you mean ...?)` with the known word that is closest, or nothing."""
    close = [key for key in known if key.startswith(word)][:1]
    close = close or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # a key in the wrong group: compare the last part alone
        last = word.rpartition(".")[2]
        close = [key for key in known if key.rpartition(".")[2] == last][:1]
    return f" (did you mean {close[0]}?)" if close else ""


class RouteConfig(Tree):
    """Which rows the next judge is asked about."""

    policy: Literal["threshold", "fraction", "budget", "guarantee"] = "fraction"
    fraction: Share | None = None
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    budget_usd: Usd | None = None
    """policy: budget: dollars to spend at most, on the rows where they buy most."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """policy: guarantee: accepted verdicts agree in at least 1 − alpha ..."""
    delta: float | None = Field(default=None, gt=0, lt=1)
    """... with probability 1 − delta. Null: as the calibration says; else they must agree."""
    calibration: str | None = None
    """Path or URI of a calibration.json; every policy reports drift from it."""
    audit: Share = Decimal(0)
    """Share of the accepted rows that the strong judge is asked about all the same."""
    audit_by: str | None = None
    """An input column: the audit's agreement is also told for each of its values."""

    @model_validator(mode="after")
    def _own_key(self) -> RouteConfig:
        keys = {"threshold": "threshold", "fraction": "fraction", "budget": "budget_usd"}
        for policy, key in keys.items():
            given = getattr(self, key) is not None
            if given and policy != self.policy:
                raise ValueError(f"{key} goes with policy: {policy}, not {self.policy}")
            if not given and policy == self.policy:
                raise ValueError(f"policy: {policy} needs the key {key}")
        if self.policy == "guarantee" and self.calibration is None:
            raise ValueError(
                "policy: guarantee needs the key calibration (ray-judge calibrate makes the file)"
            )
        if self.policy != "guarantee" and (self.alpha, self.delta) != (None, None):
            raise ValueError(f"alpha and delta go with policy: guarantee, not {self.policy}")
        if self.audit_by is not None and not self.audit:
            raise ValueError("audit_by goes with audit: a share above 0")
        return self
