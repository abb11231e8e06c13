"""Closed, frozen models, and errors that say where and what is allowed."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class SchemaError(ValueError):
    """A job file or a row that does not fit its schema; one line for each fault."""


class Schema(BaseModel):
    """A model that refuses what it does not know and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """The model of `values`, or SchemaError with every fault, its path and a near name."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [describe(cls, fault) for fault in error.errors(include_url=False)]
            prefix = f"{where}: " if where else ""
            raise SchemaError("\n".join(prefix + line for line in lines)) from None


def describe(schema: type[BaseModel], fault: Mapping[str, Any]) -> str:
    """One line: the path into the file, what was found there and what is allowed."""
    place = [str(part) for part in fault["loc"]]
    path = ".".join(place) or "(top)"
    if fault["type"] == "extra_forbidden":
        names = sorted(known_names(schema, place[:-1]))
        near = get_close_matches(place[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
        return f"{path}: unknown name; {hint}"
    if fault["type"] == "missing":
        return f"{path}: is missing"
    if fault["type"] == "value_error":
        return f"{path}: {fault['ctx']['error']}"
    value = repr(fault.get("input"))
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"{path}: {fault['msg']} (found {shown})"


def known_names(schema: type[BaseModel], place: list[str]) -> set[str]:
    """The field names allowed at a path; path parts that are no field (indices) are passed over."""
    here: list[type[BaseModel]] = [schema]
    for part in place:
        deeper = [m for s in here if part in s.model_fields for m in models_in(s, part)]
        here = deeper or here
    return {name for s in here for name in s.model_fields}


def models_in(schema: type[BaseModel], field: str) -> Iterator[type[BaseModel]]:
    """The models that a field's annotation speaks of, at any depth."""
    waiting: list[Any] = [schema.model_fields[field].annotation]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        waiting += get_args(kind)
