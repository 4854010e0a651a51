"""The language of `where`: equal to Python's evaluation row by row, and one message for everything it does not know."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataError
from data.where import column, compile_where

NUMBERS, TEXTS = ("n", "m"), ("t", "u")

number = st.deferred(
    lambda: st.one_of(
        st.sampled_from(NUMBERS),
        st.integers(-3, 9).map(str),
        st.sampled_from(["0.5", "2.25"]),
        st.tuples(number, st.sampled_from("+-*"), number).map(lambda parts: f"({' '.join(parts)})"),
    )
)
text = st.one_of(st.sampled_from(TEXTS), st.sampled_from(["'en'", "'a'", "''"]))
comparison = st.one_of(
    st.tuples(number, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), number).map(" ".join),
    st.tuples(number, number, number).map(lambda parts: f"{parts[0]} <= {parts[1]} < {parts[2]}"),
    st.tuples(text, st.sampled_from(["<", "==", "!=", "in", "not in"]), text).map(" ".join),
    st.tuples(text, st.sampled_from(["in", "not in"])).map(lambda parts: f"{parts[0]} {parts[1]} ['en', 'a', u]"),
    st.sampled_from(["flag", "n in (1, 2, m)"]),
)
expression = st.recursive(
    comparison,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda one: f"not ({one})"),
    ),
    max_leaves=6,
)
row = st.fixed_dictionaries(
    {
        "n": st.integers(-4, 9),
        "m": st.sampled_from([-1.5, 0.0, 2.25, 4.0]),
        "t": st.sampled_from(["en", "", "xax"]),
        "u": st.sampled_from(["a", "en"]),
        "flag": st.booleans(),
    }
)


@settings(max_examples=300, deadline=None)
@given(expression, st.lists(row, min_size=1, max_size=6))
def test_equals_python_on_every_row(written, rows):
    where = compile_where(written)
    columns = {name: column([values[name] for values in rows]) for name in rows[0]}
    expected = [bool(eval(written, {}, dict(values))) for values in rows]  # the oracle
    assert where.mask(columns).tolist() == expected
    assert [where.test(values) for values in rows] == expected
    if where.names:
        columns["t"], columns["u"] = columns["t"].astype(str), columns["u"].astype(str)  # numpy's own text
        assert where.mask(columns).tolist() == expected


def test_a_missing_value_makes_comparisons_false():
    columns = {"n": column([1, None, 3]), "t": column(["en", None, "de"]), "flag": column([True, None, False])}
    assert columns["n"].dtype == np.float64

    def chosen(written):
        return compile_where(written).mask(columns).tolist()

    assert chosen("n >= 0") == [True, False, True]
    assert chosen("n != 1") == [False, False, True]
    assert chosen("not n >= 0") == [False, True, False]
    assert chosen("t != 'en'") == [False, False, True]
    assert chosen("t is None or n is None") == [False, True, False]
    assert chosen("t is not None and t < 'e'") == [False, False, True]
    assert chosen("'e' in t") == [True, False, True]
    assert chosen("flag") == [True, False, False]
    assert chosen("n / 0 > 1 or n % 2 == 1") == [True, False, True]  # 1 / 0 is missing or endless, never an error


def test_names_are_those_of_columns_dotted_ones_too():
    where = compile_where("meta.date >= '2020' and score.max > 0.5")
    assert where.names == ("meta.date", "score.max")
    assert where.test({"meta.date": "2021-03", "score.max": 1, "other": 0})
    again = pickle.loads(pickle.dumps(where))
    assert again.names == where.names and again.test({"meta.date": "2021-03", "score.max": 1})


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("n >=", "not an expression"),
        ("", "not an expression"),
        ("open('x')", "\"open('x')\" is not understood"),
        ("n.__class__ ** 2", "is not understood"),
        ("(lambda: 1)() == 1", "is not understood"),
        ("n[0] > 1", "'n[0]' is not understood"),
        ("n == None", "write `is None`"),
        ("n is 3", "write =="),
        ("'x' + t == 'xa'", "counts with text"),
        ("n > 'x'", "compares numbers with text"),
        ("t", "'t' is no condition"),
        ("n and n > 1", "'n' is no condition"),
        ("3 in n", "`in` takes a list or a column of text"),
        ("word_cuont > 3", "no column 'word_cuont'; did you mean word_count?"),
        ("zzz > 3", "no column 'zzz'; there are n, t, word_count"),
    ],
)
def test_what_is_not_understood_is_told(written, told):
    columns = {"n": np.array([1.0]), "t": column(["a"]), "word_count": np.array([7])}
    with pytest.raises(DataError) as caught:
        compile_where(written, "data.where").mask(columns)
    assert told in str(caught.value) and str(caught.value).startswith(f"data.where = {written!r}")


def test_many_rows_of_a_stream():
    columns = {"word_count": np.arange(1000, dtype=np.int64), "language": np.array(["en", "de"] * 500, dtype=object)}
    mask = compile_where("language == 'en' and 100 <= word_count < 200").mask(columns)
    assert mask.dtype == bool and np.flatnonzero(mask).tolist() == list(range(100, 200, 2))
