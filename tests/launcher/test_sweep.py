"""The parts of a sweep: axes and labels, the table that several write, the arithmetic, and the recipe mx_parity."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launcher.check import check_layout, check_recipe, with_vocabulary
from launcher.cli import main
from launcher.compose import build_recipe, compose_tree, load_recipe
from launcher.config import RecipeError
from launcher.schema import to_plain
from launcher.sweep.adopt import adopt
from launcher.sweep.config import SweepConfig, SweepError
from launcher.sweep.picture import picture
from launcher.sweep.points import Planned, Point, differences, points_of, sweep_of
from launcher.sweep.results import results_of, write_csv, write_json
from launcher.sweep.running import figures_of, last_error
from launcher.sweep.store import Row, Store, alive, new_owner

TWO = {"arm": {"a": [], "b": ["optimizer.learning_rate=1e-4"]}, "seed": [1, 2]}


def planned(*points: Point) -> list[Planned]:
    return [Planned(point, build_recipe(compose_tree(point.overrides))) for point in points]


@pytest.fixture(scope="module")
def four() -> list[Planned]:
    return planned(*points_of(SweepConfig(name="s", axes=TWO), ["train.tokens=8192"]))


@pytest.fixture
def store(tmp_path: Path, four: list[Planned]) -> Store:
    found = Store(tmp_path / "s", create=True)
    found.add(four)
    return found


# Axes


def test_points_are_every_combination_of_the_chosen_labels() -> None:
    sweep = SweepConfig(axes=TWO, only={"seed": [2]})
    first, second = points_of(sweep, ["train.tokens=5"])
    assert first.labels == {"arm": "a", "seed": "2"} and first.overrides == ("seed=2", "train.tokens=5")
    assert second.overrides == ("optimizer.learning_rate=1e-4", "seed=2", "train.tokens=5")
    assert (first.position, second.position) == (1, 3), "places among all, chosen or not"


@pytest.mark.parametrize(
    ("given", "chosen"), [("[3e11,8e11]", ["3e11", "8e11"]), ("[16x2]", ["16x2"]), ("2e12", ["2e12"])]
)
def test_labels_that_look_like_numbers_are_chosen_as_they_are_written(given: str, chosen: list[str]) -> None:
    axis = "size" if "x" in given else "budget"
    sweep, _ = sweep_of(["experiment=isoflop", f"sweep.only.{axis}={given}"])
    assert sweep.labels(axis) == chosen


def test_the_command_line_gives_axes_and_chooses_labels() -> None:
    sweep, line = sweep_of(["sweep.axes.seed=[1,2,3]", "sweep.only.seed=3", "train.tokens=4096"])
    assert line == ["train.tokens=4096"] and sweep.name == "tiny"
    assert [point.overrides for point in points_of(sweep, line)] == [("seed=3", "train.tokens=4096")]


MISTAKES = [
    ([], ["sweep.axes", "has none", "mx_parity"]),
    (["sweep.axes.seed=3"], ["sweep.axes.seed=3", "map of labels"]),
    (["sweep.axes.seed=[]"], ["sweep.axes.seed=", "map of labels"]),
    (["sweep.axes.a={x: 3}"], ["sweep.axes.a.x=3", "list of overrides"]),
    (["sweep.axes.a={x: [seed]}"], ["sweep.axes.a.x", "'seed' is not an override"]),
    (["sweep.axes.a={x: ['run.name=y']}"], ["run.name=y", "leave it out"]),
    (["sweep.axes.seed=[1]", "sweep.only.sed=[1]"], ["sweep.only.sed", "no such axis", "did you mean seed"]),
    (["sweep.axes.seed=[1]", "sweep.only.seed=[2]"], ["sweep.only.seed=2", "no such label", "labels: 1"]),
    (["sweep.axes.seed=[1]", "sweep.workers=0"], ["sweep.workers=0", "at least 1"]),
    (["sweep.axes.seed=[1]", "sweep.metric=los"], ["sweep.metric=los", "validation_loss"]),
    (["sweep.axes.seed=[1]", "sweep.compare=seed"], ["sweep.compare=seed", "repeat"]),
    (["sweep.axes.a={x: []}", "sweep.baseline=y"], ["sweep.baseline=y", "no such label"]),
    (["sweep.axes.a={x: []}", "sweep.published={x: 3}"], ["sweep.published.x=3", "map of names to gaps"]),
    (["sweep.name=a/b"], ["sweep.name", "plain name"]),
    (["sweep.naem=a"], ["sweep.naem", "did you mean sweep.name"]),
    (["sweep.axes.seed=[1]", "run.dir=x"], ["run.dir=x", "sweep.dir"]),
    (["--retri", "sweep.axes.seed=[1]"], ["--retri", "no such option"]),
    (["sweep.axes.seed=[1]", "optimizer.lr=3"], ["optimizer.lr"]),
    (["sweep.axes.a={x: ['model.heads=3']}"], ["a=x: model.heads=3", "model.hidden_size=256"]),
    (["sweep.axes.a={x: ['precision=mxfp9']}"], ["a=x: precision=mxfp9", "did you mean mxfp8"]),
    (["sweep.axes.a={x: ['precision=bf16']}", "precision=fp32"], ["precision=fp32", "axis a", "sweep.only.a"]),
    (["sweep.axes.seed=[1]", "cluster=fastest"], ["seed=1: cluster.layout=fastest", "cluster.layout=recipe"]),
]


@pytest.mark.parametrize(
    ("line", "told"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_mistakes_are_one_message_and_nothing_starts(
    line: list[str], told: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "run", "tracker=none", *line]) == 1
    message = capsys.readouterr().err
    assert all(part in message for part in told) and "Traceback" not in message, message
    assert not list(tmp_path.iterdir())


def test_a_command_line_that_makes_labels_equal_is_refused(
    corpus: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [f"data.path={corpus}", "sweep.axes.seed=[1,2]", "seed=3", "train.batch_tokens=8192", "train.tokens=8192"]
    assert main(["sweep", *line]) == 1
    assert "seed=3: makes one run of seed=1 and seed=2" in capsys.readouterr().err


def test_train_refuses_what_only_a_sweep_reads(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "experiment=mx_parity", "sweep.workers=2"]) == 1
    assert "sweep.workers=2: has no effect on one run" in capsys.readouterr().err


def test_commands_on_what_is_no_sweep(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for command in ("status", "table", "plot"):
        assert main(["sweep", command, str(tmp_path)]) == 1
        assert "holds no sweep" in capsys.readouterr().err
        assert main(["sweep", command]) == 1
        assert "takes one directory" in capsys.readouterr().err


# The table


def test_two_writers_claim_different_runs(store: Store, four: list[Planned]) -> None:
    among = {row.fingerprint for row in store.rows()}
    assert len(among) == 4
    claimed: list[str] = []

    def work() -> None:
        own, owner = Store(store.directory), new_owner()
        while (row := own.claim(among, owner)) is not None:
            claimed.append(row.fingerprint)
            time.sleep(0.002)
            own.leave(row.fingerprint, owner, "done", figures={"validation_loss": 1.0})
        own.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(among), "each once"
    assert [row.state for row in store.rows()] == ["done"] * 4
    assert set(store.add(four)) == among and store.claim(among, new_owner()) is None, "what is done stays done"


def test_what_a_dead_owner_left_is_taken_over(store: Store) -> None:
    among = {row.fingerprint for row in store.rows()}
    mine = new_owner()
    assert alive(mine, 0.0), "on this machine the process counts, not its beats"
    one = store.claim(among, mine)
    assert one is not None
    dead = mine.replace(mine.split()[-2], "1")  # a process with this id that began at another time
    assert not alive(dead, time.time())
    elsewhere = "other pid:[1] 7 7 abc"
    assert alive(elsewhere, time.time()) and not alive(elsewhere, time.time() - 1000)
    second = store.claim(among, elsewhere)
    assert second is not None and second.fingerprint != one.fingerprint, "mine is alive"
    with store._writing() as base:
        base.execute("UPDATE runs SET owner = ? WHERE fingerprint = ?", (dead, one.fingerprint))
    again = store.claim(among, "another pid:[1] 8 8 abd")
    assert again is not None and again.fingerprint == one.fingerprint
    assert not store.beat(one.fingerprint, mine), "it is another's now"
    store.leave(one.fingerprint, mine, "failed", error="late")
    assert store.rows()[0].state == "running", "who lost a run does not change it"


def test_status_tells_of_what_runs_and_what_failed(store: Store, capsys: pytest.CaptureFixture) -> None:
    among, owner = [row.fingerprint for row in store.rows()], new_owner()
    assert store.claim(among, owner) is not None and store.claim(among, owner) is not None
    store.leave(among[1], owner, "failed", error="no luck")
    assert main(["sweep", "status", str(store.directory)]) == 0
    told = capsys.readouterr().out
    assert "2 waiting, 1 running, 0 done, 1 failed: 4 runs" in told
    assert f"running  arm=a seed=1: starts; process {os.getpid()} on " in told
    assert f"failed  arm=a seed=2: no luck  (log: {store.directory}/runs/a_2/sweep.log)" in told
    assert main(["sweep", "table", str(store.directory)]) == 1, "never described"
    assert store.retry(among) == 1 and store.retry(among) == 0


def test_points_of_one_configuration_are_one_run(tmp_path: Path, four: list[Planned]) -> None:
    store = Store(tmp_path, create=True)
    twin = replace(four[0], point=replace(four[0].point, labels={"arm": "c", "seed": "1"}, position=9))
    first, second = store.add([four[0], twin])
    assert first == second and len(store.rows()) == 2
    owner = new_owner()
    assert store.claim({first}, owner) is not None and store.claim({first}, new_owner()) is None, "one run, one owner"
    store.leave(first, owner, "done", figures={"validation_loss": 2.0})
    assert [row.figures["validation_loss"] for row in store.rows()] == [2.0, 2.0]
    assert {one.directory for one in store.rows()} == {"runs/a_1"}


def test_what_ran_is_not_redefined(store: Store, four: list[Planned]) -> None:
    other = replace(four[0], recipe=replace(four[0].recipe, train=replace(four[0].recipe.train, tokens=4096)))
    owner = new_owner()
    run = store.rows()[0].fingerprint
    store.add([other])  # it only waits: the new recipe takes its place
    assert store.rows()[0].fingerprint != run
    row = store.claim({store.rows()[0].fingerprint}, owner)
    assert row is not None and row.labels == four[0].point.labels
    assert row.directory == f"runs/a_1_{row.fingerprint}", "the first one's directory stays its own"
    store.leave(row.fingerprint, owner, "done")
    with pytest.raises(
        SweepError, match=r"arm=a seed=1 is done there by another recipe \(train.tokens: 4096 -> 8192\)"
    ):
        store.add([four[0]])
    moved = replace(other, recipe=replace(other.recipe, run=replace(other.recipe.run, name="elsewhere")))
    assert store.add([moved]) == [row.fingerprint], "where a run lies changes no figure"


def test_what_a_sibling_has_done_is_taken_over(store: Store, four: list[Planned]) -> None:
    other, owner = Store(store.directory.parent / "other", create=True), new_owner()
    first, second, *_ = other.add(four)
    for name, state in ((first, "done"), (second, "failed")):
        row = other.claim({name}, owner)
        assert row is not None
        (other.directory / row.directory).mkdir(parents=True)
        (other.directory / row.directory / "summary.json").write_text("{}")
        other.leave(name, owner, state, figures={"validation_loss": 2.5})
    with other._writing() as base:  # by a version that knew fewer options
        known = json.loads(base.execute("SELECT configuration FROM runs WHERE fingerprint = ?", (first,)).fetchone()[0])
        assert known.pop("model.qk_norm_whole") is False
        base.execute("UPDATE runs SET configuration = ? WHERE fingerprint = ?", (json.dumps(known), first))
    (store.directory.parent / "torn").mkdir()
    (store.directory.parent / "torn" / "sweep.db").write_text("no table")
    names = [row.fingerprint for row in store.rows()]
    assert adopt(store, names[1:]) == {} and adopt(store, names) == {"other": 1} and adopt(store, names) == {}
    row = store.rows()[0]
    assert (row.state, row.figures, row.directory) == ("done", {"validation_loss": 2.5}, "../other/runs/a_1")
    assert [row.state for row in store.rows()[1:]] == ["waiting"] * 3 and other.rows()[0].directory == "runs/a_1"


def test_a_budget_is_the_tokens_that_it_comes_to(four: list[Planned]) -> None:
    recipe = four[0].recipe
    named = replace(four[0], recipe=replace(recipe, train=replace(recipe.train, flops=1e12)))
    assert named.configuration == four[0].configuration
    assert differences({**four[0].configuration, "train.flops": 1.0}, four[0].configuration) == []


def test_axes_stay_and_labels_grow(store: Store) -> None:
    store.describe({"axes": {"arm": {"a": []}, "seed": [1]}})
    store.describe({"axes": {"arm": {"a": [], "b": []}, "seed": [1]}})
    with pytest.raises(SweepError, match=r"has the axes arm, seed, not size; set sweep\.name"):
        store.describe({"axes": {"size": {"a": []}}})


def test_an_option_younger_than_a_run_makes_no_difference(four: list[Planned]) -> None:
    new = four[0].configuration
    old = {key: value for key, value in new.items() if key != "model.qk_norm_whole"}
    assert differences(old, new) == []
    assert differences(old, {**new, "model.qk_norm_whole": True}) == ["model.qk_norm_whole: False -> True"]


def test_a_run_of_a_younger_triaxis_has_its_figures(tmp_path: Path) -> None:
    """A sweep goes on while Triaxis is updated: its next runs are of the new code, what reads them is of the old."""
    recipe = build_recipe(compose_tree(["experiment=tiny"]))
    tree = to_plain(replace(recipe, model=replace(recipe.model, vocab_size=256)))
    tree["train"]["of_tomorrow"] = 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    summary = {"validation_loss": 3.0, "bits_per_byte": 2.0, "tokens": 512, "parameters": 10, "skipped_steps": 0}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"kind": "step", "step_seconds": 1.5, "batch_tokens": 512}) + "\n"
    )
    figures = figures_of(tmp_path)
    assert figures["seconds"] == 1.5 and figures["flops"] > 512 * 6 * 1e6
    with pytest.raises(RecipeError, match=r"config\.yaml: train\.of_tomorrow: no such option.*another version"):
        load_recipe(tmp_path / "config.yaml")


def test_the_last_error_is_the_one_told_to_the_user(tmp_path: Path) -> None:
    log = tmp_path / "sweep.log"
    log.write_text("begun\ntriaxis: data.path=x: no corpus\n  of any kind\nlog: y\n")
    assert last_error(log, 1) == "data.path=x: no corpus"
    assert "SIGKILL" in last_error(log, -9) and "outside" in last_error(log, 75)
    assert last_error(tmp_path / "none", 3) == "ended with exit code 3"


# Arithmetic


def rows_of(figures: dict[tuple[str, str, str], float], state: str = "done") -> list[Row]:
    names = ("size", "seed", "arm")
    return [
        Row(dict(zip(names, labels, strict=True)), str(labels), (), "", state, "", 0.0, "", {"validation_loss": value})
        for labels, value in figures.items()
    ]


MADE_UP = SweepConfig(
    name="made up",
    axes={"size": {"s": [], "l": []}, "seed": [1, 2], "arm": {"fp32": [], "mxfp6": [], "mxfp4": []}},
    compare="arm",
    baseline="fp32",
    published={"mxfp6": {"GPT-20M": 0.03}},
)


def test_gaps_are_between_runs_of_one_seed_and_size(tmp_path: Path) -> None:
    figures = {
        ("s", "1", "fp32"): 3.0,
        ("s", "1", "mxfp6"): 3.1,
        ("s", "2", "fp32"): 4.0,
        ("s", "2", "mxfp6"): 4.3,
        ("l", "1", "fp32"): 2.0,
        ("l", "1", "mxfp6"): 2.05,
        ("l", "2", "mxfp6"): 9.0,  # its baseline is missing
        ("l", "1", "mxfp4"): math.nan,
    }
    results = results_of(MADE_UP, [*rows_of(figures), *rows_of({("l", "2", "fp32"): 0.0}, "failed")])
    small, large = ({"size": size} for size in ("s", "l"))
    line = results.line("mxfp6", small)
    assert line is not None and line.gap is not None
    assert line.mean == pytest.approx(3.7) and line.spread == pytest.approx(1.2)
    assert line.gap == pytest.approx(0.2) and line.gap_spread == pytest.approx(0.2)
    line = results.line("mxfp6", large)
    assert line is not None and line.gap == pytest.approx(0.05) and line.gap_spread == 0
    base = results.line("fp32", large)
    assert base is not None and base.gap is None and (len(base.values), base.expected) == (1, 2)
    assert results.columns == (small, large) and results.labels == ("fp32", "mxfp6", "mxfp4")
    write_json(results, tmp_path / "t.json")
    write_csv(results, tmp_path / "t.csv")
    told = json.loads((tmp_path / "t.json").read_text())
    assert next(one for one in told["lines"] if one["arm"] == "mxfp4")["mean"] is None, "strict JSON"
    assert told["published"] == {"mxfp6": {"GPT-20M": 0.03}}
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "arm,size,runs,expected,validation_loss,validation_loss_spread,gap,gap_spread,published"
    assert (
        lines[1] == "fp32,s,2,2,3.5,1.0,,,"
        and lines[2].startswith("mxfp6,s,2,2,3.7,")
        and lines[2].endswith("GPT-20M:0.03")
    )
    assert picture(results)[:4] == b"\x89PNG"


def test_a_sweep_without_baseline_or_seeds_has_a_table_too() -> None:
    sweep = SweepConfig(name="s", axes={"size": {"s": [], "l": []}})
    rows = [
        replace(row, labels={"size": row.labels["size"]}) for row in rows_of({("s", "", ""): 3.0, ("l", "", ""): 2.0})
    ]
    results = results_of(sweep, rows)
    assert [(line.label, line.mean, line.gap) for line in results.lines] == [("s", 3.0, None), ("l", 2.0, None)]
    assert picture(results)[:4] == b"\x89PNG"


# The recipe


def test_every_run_of_mx_parity_is_sound() -> None:
    sweep, line = sweep_of(["experiment=mx_parity"])
    points = points_of(sweep, line)
    assert len(points) == 66 and sweep.compared == "arm"
    seen = {}
    for point in points:
        if point.labels["seed"] == "2":  # differs from seed 1 in that alone
            assert point.overrides == tuple(
                text.replace("seed=1", "seed=2") for text in points[point.position - 11].overrides
            )
            continue
        recipe = with_vocabulary(build_recipe(compose_tree(point.overrides)), 1024)
        check_recipe(replace(recipe, parallel=replace(recipe.parallel, data=1)), 1, "cpu")
        check_layout(replace(recipe, parallel=replace(recipe.parallel, data=1, tensor=2)), 2)
        seen[point.labels["size"], point.labels["arm"]] = recipe
    assert len({str(recipe.precision) for recipe in seen.values()}) == 11, "no two arms are one"
    for (size, arm), recipe in seen.items():
        plain = seen[size, "fp32"]
        assert replace(recipe, precision=plain.precision) == plain, f"{arm} differs in its precision alone"
        assert recipe.precision.name == ("bf16" if arm == "bf16" else "fp32")
