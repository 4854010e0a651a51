"""Searches: what is drawn follows from (seed, number, table) alone, budgets end them, and halving trains what it promises."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.sweep.config import SweepConfig, SweepError
from launcher.sweep.halving import survivors
from launcher.sweep.search import Range, SearchConfig, Tried, draw, written
from launcher.sweep.store import Store
from tests.launcher.running import Triaxis, curve, minute_sweep

SPACE = {
    "optimizer.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.layers": {"low": 1, "high": 3},
    "model.activation": ["gelu", "swiglu"],
}


def searched(kind: str, trials: int, space: dict | None = None, seed: int = 1) -> SearchConfig:
    return SearchConfig(kind=kind, trials=trials, seed=seed, space=SPACE if space is None else space)


def test_random_draws_cover_the_space_and_depend_on_nothing_else() -> None:
    search = searched("random", 1)
    drawn = [draw(search, number) for number in range(400)]
    assert drawn[7] == draw(search, 7) and drawn[7] != draw(searched("random", 1, seed=2), 7)
    rates = [math.log10(one["optimizer.learning_rate"]) for one in drawn]
    assert -4 <= min(rates) < -3.9 and -1.1 < max(rates) <= -1
    assert abs(statistics.mean(rates) + 2.5) < 4 * (3 / math.sqrt(12)) / math.sqrt(400), "even in the logarithm"
    for option, values in (("model.layers", (1, 2, 3)), ("model.activation", ("gelu", "swiglu"))):
        counts = [sum(one[option] == value for one in drawn) for value in values]
        expected = 400 / len(values)
        assert sum(counts) == 400 and all(abs(found - expected) < 4 * math.sqrt(expected) for found in counts)
    assert written(True) == "true" and Range.of({"low": 1, "high": 3}).rounded(7) == 3


def loss_of(values: dict) -> float:
    """A planted bowl: best at 1e-2 with 3 layers and swiglu."""
    rate = math.log10(values["optimizer.learning_rate"]) + 2
    return rate**2 + 0.3 * (3 - values["model.layers"]) + 0.5 * (values["model.activation"] == "gelu")


def best_of(kind: str, trials: int, seed: int) -> float:
    search, tried = searched(kind, trials, seed=seed), []
    for number in range(trials):
        values = draw(search, number, tried)
        tried.append(Tried({option: written(value) for option, value in values.items()}, loss_of(values), False))
    return min(one.loss for one in tried if one.loss is not None)


def test_optuna_learns_from_the_table() -> None:
    pytest.importorskip("optuna")
    seeds = range(3)
    assert statistics.mean(best_of("optuna", 24, seed) for seed in seeds) < statistics.mean(
        best_of("random", 24, seed) for seed in seeds
    )
    search = searched("optuna", 24)
    known = [Tried({o: written(v) for o, v in draw(search, n).items()}, 1.0 * n, False) for n in range(9)]
    strange = [
        *known,
        Tried(known[0].values, None, False),
        Tried(known[1].values, None, True),
        Tried(known[2].values, math.nan, False),
    ]
    assert draw(search, 12, strange) == draw(search, 12, strange), "running, failed and diverged trials are told too"
    assert draw(search, 12, known) == draw(search, 12, list(known))


MISTAKES = [
    ({"kind": "bayes"}, "choose one of grid, random, optuna, halving"),
    ({"kind": "random"}, "sweep.search.space, which is empty"),
    ({"kind": "random", "space": SPACE}, "sweep.search.trials=0: must be at least 1"),
    ({"space": SPACE, "trials": 3}, "no effect with sweep.search.kind=grid"),
    ({"kind": "halving", "trials": 3, "rungs": (0.5, 1.0)}, "no effect without sweep.search.space"),
    ({"kind": "halving", "rungs": (0.5, 0.2, 1.0)}, "ascending from above 0 to 1"),
    ({"kind": "halving", "rungs": (0.5, 1.0), "keep": 1.0}, "sweep.search.keep=1.0"),
    ({"kind": "random", "trials": 1, "space": SPACE, "rungs": (0.5, 1.0)}, "no effect unless"),
    ({"kind": "random", "trials": 1, "space": {"seed": {"low": 3, "high": 1}}}, "low must be below high"),
    ({"kind": "random", "trials": 1, "space": {"seed": {"low": 0, "high": 1, "log": True}}}, "above 0 with log"),
    ({"kind": "random", "trials": 1, "space": {"seed": {"low": "x", "high": 1}}}, "seed.low='x': must be a number"),
    ({"kind": "random", "trials": 1, "space": {"seed": 3}}, "must be a list of values"),
    ({"kind": "random", "trials": 1, "space": {"run.name": ["a"]}}, "cannot differ from run to run"),
]


@pytest.mark.parametrize(("given", "told"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_mistakes(given: dict, told: str) -> None:
    with pytest.raises(SweepError) as caught:
        SearchConfig(**given)
    assert told in str(caught.value)


def test_axes_and_a_space_are_two_sweeps() -> None:
    with pytest.raises(SweepError, match="leave one out"):
        SweepConfig(axes={"seed": [1]}, search=searched("random", 2))
    assert [survivors(count, 0.5) for count in (9, 2, 1)] == [4, 1, 1]


# Through the command


RATE = "sweep.search.space={optimizer.learning_rate: {low: 1e-4, high: 1e-2, log: true}, model.heads: [2, 3]}"


def test_a_grid_dearer_than_its_budget_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *minute_sweep(corpus, 2), "sweep.axes.seed=[1,2]", "sweep.flops=1e6"]) == 1
    told = capsys.readouterr().err
    assert "sweep.flops=1e+06: its 2 runs take" in told and "sweep.only" in told
    assert not (tmp_path / "sweeps" / "s" / "runs").exists()
    given = minute_sweep(corpus, 2, "sweep.search.kind=random", "sweep.search.trials=2", RATE)
    assert main(["sweep", *given, "model.heads=2"]) == 1
    assert "model.heads: is drawn from sweep.search.space and given" in capsys.readouterr().err


def test_a_search_goes_on_to_its_trials_and_stops_at_its_budget(triaxis: Triaxis, corpus: Path) -> None:
    """Four trials: the second has three heads, which no model of this width has."""
    given = [text for text in minute_sweep(corpus, 2) if not text.startswith("model.heads=")]
    given += ["sweep.search.kind=random", "sweep.search.trials=4", "sweep.search.seed=10", RATE]
    place = triaxis.directory / "sweeps" / "s"
    short = triaxis.run("sweep", *given, "sweep.flops=1e8", code=1)
    assert "no more begin" in short.output and "model.heads=3: does not divide" in short.output, short.output
    store = Store(place)
    spent = [row.figures["flops"] for row in store.rows() if row.state == "done"]
    assert len(spent) == 2 and sum(spent) <= 1e8 < 3 * spent[0]
    rest = triaxis.run("sweep", *given, code=1)
    rows = store.rows()
    store.close()
    assert [row.labels["trial"][:3] for row in rows] == ["000", "001", "002", "003"]
    assert [row.state for row in rows] == ["done", "failed", "done", "done"], "what no model is failed, others went on"
    table = json.loads((place / "table.json").read_text())
    assert len(table["lines"]) == 3 and rest.output.count("begins") == 1


def test_halving_trains_the_best_as_if_alone(triaxis: Triaxis, corpus: Path) -> None:
    rates = {"a": "1e-5", "b": "3e-3"}
    labels = ", ".join(f"{name}: ['optimizer.learning_rate={rate}']" for name, rate in rates.items())
    given = minute_sweep(corpus, 8, "sweep.search={kind: halving, rungs: [0.25, 1]}", f"sweep.axes.rate={{{labels}}}")
    done = triaxis.run("sweep", *given, "sweep.keep_checkpoints=false", timeout=500)
    place = triaxis.directory / "sweeps" / "s"
    store = Store(place)
    rows = {row.name: row for row in store.rows()}
    store.close()
    first = {name: rows[name].figures["validation_loss"] for name in ("rate=a rung=0.25", "rate=b rung=0.25")}
    best = min(first, key=lambda name: first[name]).split()[0]
    assert set(rows) - set(first) == {f"{best} rung=1"}
    assert "rung 0.25: 1 of 2 go on" in done.output and "3/3 done" in done.output
    assert not list(place.glob("runs/*/checkpoints"))
    alone = [text for text in given if not text.startswith("sweep.")]
    triaxis.run("train", *alone, f"optimizer.learning_rate={rates[best[-1]]}", "run.name=alone")
    whole = curve(triaxis.directory / "runs" / "alone")
    parts = [step for share in ("0.25", "1") for step in curve(place / rows[f"{best} rung={share}"].directory)]
    assert parts == whole, "bit by bit"
    summary = json.loads((triaxis.directory / "runs" / "alone" / "summary.json").read_text())
    assert rows[f"{best} rung=1"].figures["validation_loss"] == summary["validation_loss"]
    costs = [rows[f"{best} rung={share}"].figures["flops"] for share in ("0.25", "1")]
    assert 3 * costs[0] == costs[1], "each its own steps alone"
