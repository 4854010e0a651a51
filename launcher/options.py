"""Options of a command that are the fields of frozen dataclasses: read from its arguments, and shown by its --help."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from launcher.config import RecipeError
from launcher.schema import documentation_of

T = TypeVar("T")
Kinds = Mapping[str, Any]
"""Types of options by name, as annotations: bool, int, float, str, or tuples of them."""


def kinds_of(*classes: type) -> dict[str, Any]:
    """The options that the fields of dataclasses are."""
    return {
        item.name: typing.get_type_hints(one)[item.name]
        for one in classes
        for item in dataclasses.fields(one)  # type: ignore[arg-type]
    }


def parse(arguments: Sequence[str], kinds: Kinds, usage: str) -> tuple[list[str], dict[str, Any]]:
    """(what is no option, values of the options given) of `--name value`, `--name=value` and, for a bool, `--name`.

    A tuple is written with commas. RecipeError for an option that is not among `kinds`, or has a value of another type.
    """
    places: list[str] = []
    values: dict[str, Any] = {}
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        shown, equals, value = word.partition("=")
        name = shown[2:].replace("-", "_")
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            cure = f"did you mean {flag(near[0])}?" if near else f"`{usage}`"
            raise RecipeError(f"{shown}: no such option; {cure}")
        if name in values:
            raise RecipeError(f"{shown}: is given twice; give it once")
        if not equals and kinds[name] is not bool:
            if not queue:
                raise RecipeError(f"{shown}: needs a value: `{usage}`")
            value = queue.pop(0)
        values[name] = _value(kinds[name], value if equals or kinds[name] is not bool else "true", shown)
    return places, values


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def _value(kind: Any, text: str, shown: str) -> Any:
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_value(item, part.strip(), shown) for part in text.split(",") if part.strip())
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _value(typing.get_args(kind)[0], text, shown)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float):
        try:
            number = float(text.replace("_", ""))
        except ValueError:
            number = math.nan
        if math.isfinite(number) and (kind is float or number == int(number)):
            return kind(number)
    if kind is str:
        return text
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    raise RecipeError(f"{shown}={text}: must be {names[kind]}")


def options_help(kind: type) -> str:
    """The options of a dataclass with their defaults and documentation."""
    import textwrap

    documentation, lines = documentation_of(kind), []
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        default = item.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        shown = shown.lower() if isinstance(default, bool) else shown
        lines.append(f"  {flag(item.name)}={shown if default is not dataclasses.MISSING else '…'}")
        lines += textwrap.wrap(documentation.get(item.name, ""), 116, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
