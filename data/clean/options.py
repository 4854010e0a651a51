"""From `{step: name, option: value, …}` in a recipe to a step's frozen config, strictly."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from data.config import DataError


def configure(known: Mapping[str, type], options: Any, where: str) -> Any:
    """A step's config from `{step: name, option: value, …}`; where: the dotted option for messages.

    DataError for a step or an option that is not known (with the nearest that is), a missing one, and a wrong type.
    """
    if not isinstance(options, Mapping) or not isinstance(options.get("step"), str):
        raise DataError(f"{where} = {options!r}: it must be a step and its options, such as {{step: signals}}")
    name = options["step"]
    if name not in known:
        raise DataError(f"{where}.step = {name!r}: no such step{_nearest(name, known)}")
    kind, values = known[name], {}
    hints = typing.get_type_hints(kind)
    defaults = {item.name: item.default for item in fields(kind)}
    for option, value in options.items():
        if option == "step":
            continue
        if option not in defaults:
            raise DataError(f"{where}.{option} = {value!r}: step {name} has no such option{_nearest(option, defaults)}")
        values[option] = _typed(hints[option], value, f"{where}.{option}")
    for option, default in defaults.items():
        if default is MISSING and option not in values:
            raise DataError(f"{where}.{option} is missing: step {name} needs it")
    try:
        return kind(**values)
    except DataError as error:
        raise DataError(f"{where}.{error}") from None


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as kind, which is bool, int, float, str or a tuple of one of these; 1e6 and 1_000 serve as numbers."""
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise DataError(f"{where} = {value!r}: it must be a list")
        inner = typing.get_args(kind)[0]
        return tuple(_typed(inner, entry, f"{where}[{place}]") for place, entry in enumerate(value))
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(str(value).replace("_", ""))
        except ValueError:
            number = float("nan")
        if np.isfinite(number) and (kind is float or number == int(number)):
            return kind(number)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise DataError(f"{where} = {value!r}: it must be {names[kind]}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; choose one of {', '.join(sorted(known)) or 'none'}"
