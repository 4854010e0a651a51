"""From plain data to the typed recipe, strictly: unknown keys and wrong types fail with the dotted path and a cure."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from launcher.config import Recipe, RecipeError
from models.config import ModelConfig

T = TypeVar("T")


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def build(kind: type[T], data: Any, path: str = "") -> T:
    """Build a (nested) frozen dataclass from plain data; `path` is the dotted place for messages."""
    if not isinstance(data, dict):
        raise RecipeError(f"{path or 'recipe'}={data!r}: must be a section with fields")
    hints, known = _hints(kind), {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise RecipeError(unknown_key(f"{path}.{key}" if path else key))
    values = {key: _value(hints[key], value, f"{path}.{key}" if path else key) for key, value in data.items()}
    missing = [
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecipeError(f"{path}.{missing[0]}: is required; set it")
    return kind(**values)


def _value(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, path)
    if value == "???":
        raise RecipeError(f"{path}: is required by this recipe; set {path}=…")
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{path}={value!r}: must be a list")
        item = typing.get_args(kind)[0]
        return tuple(_value(item, entry, f"{path}[{index}]") for index, entry in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _value(typing.get_args(kind)[0], value, path)
    if origin is typing.Literal:
        return _scalar(str, value, path)
    if kind is dict or origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{path}={value!r}: must be a section with fields")
        return dict(value)
    return _scalar(kind, value, path)


def _scalar(kind: type, value: Any, path: str) -> Any:
    """A bool, int, float or str; whole floats and text such as 1e6 or 400_000 serve as numbers."""
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(str(value).replace("_", ""))
        except ValueError:
            number = float("nan")
        if kind is float and math.isfinite(number):
            return number
        if kind is int and math.isfinite(number) and number == int(number):
            return value if isinstance(value, int) else int(number)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise RecipeError(f"{path}={value!r}: must be {names.get(kind, kind)}")


def to_plain(value: Any) -> Any:
    """The recipe as plain data: dicts, lists and scalars, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def fields_of(kind: type = Recipe, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted path, default, documentation) of every leaf field, in order."""
    documentation, hints = documentation_of(kind), _hints(kind)
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        place = f"{path}.{item.name}" if path else item.name
        if dataclasses.is_dataclass(hints[item.name]):
            yield from fields_of(typing.cast(type, hints[item.name]), place)
        else:
            default = item.default if item.default is not dataclasses.MISSING else "required"
            default = item.default_factory() if item.default_factory is not dataclasses.MISSING else default
            yield place, default, documentation.get(item.name, "")


@lru_cache(maxsize=64)
def documentation_of(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass, by field name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        constant = following.value if isinstance(following, ast.Expr) else None
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
            found[statement.target.id] = " ".join(constant.value.split())
    return found


def known_paths() -> list[str]:
    """Every dotted path that a recipe may set, sections included."""
    leaves = [path for path, _, _ in fields_of()]
    sections = {path.rsplit(".", 1)[0] for path in leaves if "." in path}
    return [*leaves, *sorted(sections)]


def unknown_key(path: str) -> str:
    """The message for a key that no section has, with the nearest that one does."""
    leaves = [leaf for leaf, _, _ in fields_of()]
    near = difflib.get_close_matches(path, leaves, n=1, cutoff=0.5)
    if not near:
        last = path.rsplit(".", 1)[-1]
        near = [leaf for leaf in leaves if difflib.SequenceMatcher(None, leaf.rsplit(".", 1)[-1], last).ratio() > 0.75][
            :1
        ]
    return f"{path}: no such option" + (f"; did you mean {near[0]}?" if near else "; see `triaxis train --help`")


def recorded_model(directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """(the model, the whole recipe as plain data) of a run, also one of a younger Triaxis, whose other sections may hold
    options that this one does not know. RecipeError where the model's do."""
    return recorded(directory / "config.yaml", lambda tree: (build(ModelConfig, tree.get("model"), "model"), tree))


def recorded(path: Path, made: Callable[[dict[str, Any]], T]) -> T:
    """What is made of the recipe in a file. RecipeError, with the file's name, where there is none or it cannot be made."""
    try:
        tree = yaml.safe_load(path.read_text())
        if not isinstance(tree, dict):
            raise RecipeError("is no recipe")
        return made(tree)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; is this a run directory?") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error} (another version of Triaxis may have written this file)") from None
