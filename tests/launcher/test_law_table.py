"""Files as others publish them: delimiters, units, conditions, and what is refused with its cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from launcher.cli import main
from launcher.laws.columns import measure
from launcher.laws.form import LawError
from launcher.laws.table import Table, number, read_table


def written(path: Path, text: str) -> Table:
    path.write_text(text)
    return read_table(str(path))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_found(tmp_path, delimiter):
    lines = ["Model Size,Training Tokens,loss", "1e9,2e10,2.5", "2e9,4e10,2.4"]
    table = written(tmp_path / "a.csv", "\ufeff" + "\n".join(lines).replace(",", delimiter))
    assert table.names == ["Model Size", "Training Tokens", "loss"]
    assert table.numbers("Model Size").tolist() == [1e9, 2e9]


def test_json_lines_and_arrays_of_objects(tmp_path):
    lines = '{"params": 1e9, "data": {"tokens": 2e10}, "loss": 2.5}\n{"params": 2e9, "loss": null}\n'
    table = written(tmp_path / "a.jsonl", lines)
    assert table.names == ["params", "data.tokens", "loss"]
    assert np.isnan(table.numbers("loss")[1])
    assert written(tmp_path / "a.json", '[{"params": 3, "loss": 2}]').numbers("params").tolist() == [3.0]


@pytest.mark.parametrize(
    ("text", "value"), [("7B", 7e9), ("410M", 4.1e8), ("1,234,567", 1234567.0), ("1e-3", 1e-3), ("12 apples", None)]
)
def test_numbers_as_people_write_them(text, value):
    assert number(text) == value


def test_conditions_join_by_comma_and_part_by_bar(tmp_path):
    table = written(tmp_path / "a.csv", "name,n\na,1\na,5\nb,1\nb,9\n")
    assert [row["n"] for row in table.where("name=a, n<3 | n>=9").rows] == ["1", "9"]
    assert [row["n"] for row in table.where("name!=a").rows] == ["1", "9"]
    with pytest.raises(LawError, match="no column size; there are name, n"):
        table.where("size=1")
    with pytest.raises(LawError, match="which is no number"):
        table.where("n<many")


def test_millions_are_taken_when_the_name_says_so_or_a_factor_does_and_else_refused(tmp_path):
    rows = "\n".join(f"{n},{20 * n},2.5" for n in (57, 140, 425))
    named = written(tmp_path / "a.csv", f"Parameters (million),Tokens (million),loss\n{rows}\n")
    measured = measure(named, ("params", "tokens", "loss"), {})
    assert measured.columns["params"].tolist() == [57e6, 140e6, 425e6]
    assert any("times 1e+06" in note for note in measured.notes)
    plain = written(tmp_path / "b.csv", f"N,D,loss\n{rows}\n")
    with pytest.raises(LawError, match=r"--params 'N\*1e6'"):
        measure(plain, ("params", "tokens", "loss"), {})
    given = {"params": "N*1e6", "tokens": "D*1e6"}
    assert measure(plain, ("params", "tokens", "loss"), given).columns["flops"][0] == 6 * 57e6 * 20 * 57e6


def test_the_third_of_parameters_tokens_and_flops_follows(tmp_path):
    table = written(tmp_path / "a.csv", "tokens,Training FLOP,loss\n1e10,6e19,2.5\n")
    assert measure(table, ("params", "tokens", "loss"), {}).columns["params"].tolist() == [1e9]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("size_a,tokens,loss\n1e9,1e10,2\n", "no column is called as parameters N usually are; say --params NAME"),
        ("params,parameters,tokens,loss\n1e9,2e9,1e10,2\n", "params and parameters could all be parameters N"),
        ("params,tokens,loss\n1e9,1e10,80\n", "that is no loss in nats"),
        ("params,tokens,loss\n1e9,1e10,-2\n", "leave such rows out with --where"),
        ("params,tokens,loss\n1e9,1e10,high\n", "holds 'high', which is no number"),
        ("params,params,loss\n1,2,3\n", "two columns are called params"),
        ("params,tokens,loss\n1e9,,2\n", "no row has a number for each of"),
        ("params,tokens,loss\n", "holds no rows"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_cure(tmp_path, text, told):
    with pytest.raises(LawError) as caught:
        measure(written(tmp_path / "a.csv", text), ("params", "tokens", "loss"), {})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["chinchila", "x.csv"], "did you mean chinchilla?"),
        (["chinchilla", "nowhere.csv"], "no such file or directory"),
        (["chinchilla"], "takes a law and its data"),
        (["chinchilla", "x.csv", "--prams", "N"], "did you mean --params?"),
        (["chinchilla", "x.csv", "--level", "95"], "must be between 0 and 1"),
    ],
)
def test_the_command_refuses_with_the_nearest_name(words, told, capsys):
    assert main(["fit", *words]) == 1
    assert told in capsys.readouterr().err


def test_a_few_rows_are_refused_or_held(tmp_path, capsys):
    path = tmp_path / "few.csv"
    path.write_text("params,tokens,loss\n1e8,2e9,3.3\n2e8,4e9,3.1\n4e8,8e9,2.9\n")
    assert main(["fit", "chinchilla", str(path)]) == 1
    assert "3 rows cannot give 5 coefficients" in capsys.readouterr().err
    assert main(["fit", "kaplan-n", str(path), "--budget", "1e20"]) == 1
    assert "knows no best split" in capsys.readouterr().err
    assert main(["fit", "chinchilla", str(path), "--fix", "gamma=1"]) == 1
    assert "it has A, B, E, alpha, beta" in capsys.readouterr().err
