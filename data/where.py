"""A small language for choosing documents by their columns: `language in ["en", "de"] and word_count >= 50`.

The same text filters while a corpus is built and when it is streamed. It is Python's syntax and precedence, read by `ast`
against a white list and never executed: comparisons (chained ones too), `in` a list or a text, `is None`, and, or, not, and
arithmetic (in float64). A name is a column; a dotted name such as meta.date is the column of that name.

A missing value (None, NaN, a division by zero) makes every comparison false but `is None`; so `not` of one is true.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.config import DataError

Columns = Mapping[str, np.ndarray]
_Value = Callable[[Columns], Any]  # to a constant or an array [n]
_Truth = Callable[[Columns], np.ndarray]  # to bool, [n] or [] where no column is involved

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Where:
    """A compiled expression. names: the columns it reads, in order of appearance; option: what messages call it."""

    text: str
    names: tuple[str, ...]
    option: str
    _truth: _Truth

    def __reduce__(self) -> tuple[Any, ...]:
        return compile_where, (self.text, self.option)

    def mask(self, columns: Columns) -> np.ndarray:
        """Columns [n], of numbers, bools, text (`U` or object) -> bool [n]. DataError for a column that is not there."""
        for name in self.names:
            if name not in columns:
                near = difflib.get_close_matches(name, list(columns), n=1, cutoff=0.5)
                cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(columns)) or 'none'}"
                raise DataError(f"{self.option} = {self.text!r}: no column {name!r}; {cure}")
        size = len(columns[self.names[0]]) if self.names else max(map(len, columns.values()), default=1)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.array(np.broadcast_to(self._truth(columns), size))

    def test(self, columns: Mapping[str, Any]) -> bool:
        """The same on one document's columns."""
        return bool(self.mask({name: column([value]) for name, value in columns.items() if name in self.names})[0])


def column(values: Sequence[Any]) -> np.ndarray:
    """Scalars as an array that `Where.mask` takes: bool, int64 or float64 where all are; None among numbers is NaN."""
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.array(values, dtype=bool)
    if kinds == {int} and all(-(1 << 63) <= value < 1 << 63 for value in values):
        return np.array(values, dtype=np.int64)
    if kinds <= {int, float, type(None)} and kinds & {int, float}:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def compile_where(text: str, option: str = "where") -> Where:
    """An expression ready to use. DataError says what in it is not understood; option: its name in messages."""
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(
            f"{option} = {text!r}: not an expression ({getattr(error, 'msg', error)}); {_EXAMPLE}"
        ) from None
    compiler = _Compiler(text, option)
    truth = compiler.truth(body)
    return Where(text, tuple(compiler.names), option, truth)


_EXAMPLE = "write one such as language == 'en' and word_count >= 50"


class _Compiler:
    """From a syntax tree to closures over arrays. names: columns met so far."""

    def __init__(self, text: str, option: str) -> None:
        self.text, self.option, self.names = text, option, dict[str, None]()

    def truth(self, node: ast.expr) -> _Truth:
        """What stands where a condition must."""
        if isinstance(node, ast.BoolOp):
            parts = [self.truth(value) for value in node.values]
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return lambda columns: _reduce(join, [part(columns) for part in parts])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.truth(node.operand)
            return lambda columns: np.logical_not(inner(columns))
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            pairs = [
                self.comparison(node, left, op, right)
                for left, op, right in zip(operands, node.ops, operands[1:], strict=False)
            ]
            return lambda columns: _reduce(np.logical_and, [pair(columns) for pair in pairs])
        value, shown = self.value(node), ast.unparse(node)
        return lambda columns: self._flags(value(columns), shown)

    def comparison(self, whole: ast.Compare, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Truth:
        """One operator and its two sides."""
        shown = ast.unparse(whole)
        if isinstance(op, ast.In | ast.NotIn):
            found = self._membership(left, right, shown)
            return found if isinstance(op, ast.In) else lambda columns: np.logical_not(found(columns))
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._refused(ast.unparse(right), "`is` is for None alone; write ==")
            value = self.value(left)
            if isinstance(op, ast.Is):
                return lambda columns: _missing(value(columns))
            return lambda columns: ~_missing(value(columns))
        one, other, compare = self.value(left), self.value(right), _COMPARISONS[type(op)]
        return lambda columns: self._compare(compare, one(columns), other(columns), shown)

    def value(self, node: ast.expr) -> _Value:
        """What stands where a number or a text must."""
        if isinstance(node, ast.Name | ast.Attribute):
            name = self._dotted(node)
            self.names[name] = None
            return lambda columns: np.asarray(columns[name])
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
            constant = node.value
            return lambda columns: constant
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner, sign, shown = self.value(node.operand), -1 if isinstance(node.op, ast.USub) else 1, ast.unparse(node)
            return lambda columns: self._number(inner(columns), shown) * sign
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            left, right, shown = self.value(node.left), self.value(node.right), ast.unparse(node)
            apply = _ARITHMETIC[type(node.op)]
            return lambda columns: apply(self._number(left(columns), shown), self._number(right(columns), shown))
        if isinstance(node, ast.Constant) and node.value is None:
            raise self._refused("None", "write `is None` or `is not None`")
        raise self._refused(ast.unparse(node), "only columns, constants, arithmetic, comparisons, in, and, or, not")

    def _membership(self, left: ast.expr, right: ast.expr, shown: str) -> _Truth:
        """`value in [constants]`, or `"part" in text_column`."""
        one = self.value(left)
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            members = [self.value(member) for member in right.elts]
            return lambda columns: self._any_equal(one(columns), [member(columns) for member in members], shown)
        texts = self.value(right)
        return lambda columns: self._contains(one(columns), texts(columns), shown)

    def _dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        raise self._refused(ast.unparse(node), "only names of columns have dots")

    def _refused(self, part: str, cure: str) -> DataError:
        return DataError(f"{self.option} = {self.text!r}: {part!r} is not understood; {cure}")

    def _mixed(self, shown: str, what: str) -> DataError:
        return DataError(f"{self.option} = {self.text!r}: {shown!r} {what}")

    def _compare(self, compare: Callable[[Any, Any], Any], left: Any, right: Any, shown: str) -> np.ndarray:
        """Elementwise, false where either is missing."""
        (left, of_left), (right, of_right) = _kinds(left), _kinds(right)
        if of_left and of_right and of_left != of_right:
            raise self._mixed(shown, f"compares {of_left} with {of_right}; quote texts, and numbers not")
        left, right, there = *np.broadcast_arrays(left, right), ~_missing(left) & ~_missing(right)
        there = np.array(np.broadcast_to(there, left.shape))
        found = np.zeros(left.shape, dtype=bool)
        try:
            found[there] = compare(left[there], right[there])
        except TypeError:
            raise self._mixed(shown, "compares values of different kinds within one column") from None
        return found

    def _any_equal(self, value: Any, members: list[Any], shown: str) -> np.ndarray:
        equal = [self._compare(operator.eq, value, member, shown) for member in members]
        return _reduce(np.logical_or, [np.zeros(np.shape(value), dtype=bool), *equal])

    def _contains(self, part: Any, texts: Any, shown: str) -> np.ndarray:
        parts, texts = np.broadcast_arrays(np.asarray(part, dtype=object), np.asarray(texts, dtype=object))
        pairs = list(zip(parts.ravel().tolist(), texts.ravel().tolist(), strict=True))
        if any(not isinstance(value, str | None) for pair in pairs for value in pair):
            raise self._mixed(shown, "looks for something in what is not text; `in` takes a list or a column of text")
        found = [one is not None and text is not None and one in text for one, text in pairs]
        return np.array(found, dtype=bool).reshape(texts.shape)

    def _number(self, value: Any, shown: str) -> np.ndarray:
        value, kind = _kinds(value)
        if kind == "text":
            raise self._mixed(shown, "counts with text")
        if value.dtype == object:
            value = np.where(_missing(value), np.nan, value)
        return value.astype(np.float64)

    def _flags(self, value: Any, shown: str) -> np.ndarray:
        """A column of true and false standing alone."""
        value = np.asarray(value)
        if value.dtype == bool:
            return value
        gone = _missing(value)
        if value.dtype == object and all(isinstance(entry, bool | np.bool_) for entry in value[~gone].tolist()):
            return np.where(gone, False, value).astype(bool)
        if gone.all():
            return np.zeros(value.shape, dtype=bool)
        raise self._mixed(shown, "is no condition; compare it with something")


def _reduce(join: np.ufunc, parts: Sequence[np.ndarray]) -> np.ndarray:
    found = parts[0]
    for part in parts[1:]:
        found = join(found, part)
    return found


def _kinds(value: Any) -> tuple[np.ndarray, str]:
    """The value as an array, and `text`, `numbers` (bools too) or nothing where all is missing."""
    value = np.asarray(value)
    if value.dtype.kind in "US":
        return value.astype(object), "text"
    if value.dtype != object:
        return value, "numbers"
    known = {type(entry) for entry in value.ravel().tolist()} - {type(None)}
    if not known:
        return value, ""
    return value, "text" if known <= {str, np.str_} else "numbers" if str not in known else "mixed"


def _missing(value: Any) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype == object:
        return np.array([entry is None or entry != entry for entry in value.ravel()], dtype=bool).reshape(value.shape)
    return np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, dtype=bool)
