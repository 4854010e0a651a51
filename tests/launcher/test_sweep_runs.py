"""`triaxis sweep` through the real command: everything runs once, whatever interrupts it, and failures are shown."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

from launcher.cli import main
from launcher.sweep.store import Store
from tests.launcher.running import INTERRUPTED, Triaxis, curve, last_start, last_step, minute_sweep

RATES = ["sweep.axes.rate={low: ['optimizer.learning_rate=1e-4'], high: ['optimizer.learning_rate=1e-2']}"]
COMPARED = ["sweep.compare=rate", "sweep.baseline=low"]


def states(place: Path) -> list[str]:
    store = Store(place)
    found = [row.state for row in store.rows()]
    store.close()
    return found


def test_every_run_once_then_table_and_picture(triaxis: Triaxis, corpus: Path, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    line = minute_sweep(
        corpus, 2, *RATES, "sweep.axes.seed=[1,2]", *COMPARED, "sweep.workers=2", "sweep.keep_checkpoints=false"
    )
    some = triaxis.run("sweep", *line, "sweep.only.seed=[1]")
    assert "2 runs" in some.output and "2/2 done" in some.output
    rest = triaxis.run("sweep", "run", *line)
    assert "4 runs, 2 of them done before" in rest.output and rest.output.count("begins") == 2
    place = triaxis.directory / "sweeps" / "s"
    assert states(place) == ["done"] * 4
    assert sorted(path.name for path in (place / "runs").iterdir()) == ["high_1", "high_2", "low_1", "low_2"]
    first = curve(place / "runs" / "low_1")[0]
    assert first[3] == curve(place / "runs" / "high_1")[0][3], "one seed has the same weights and the same data"
    assert first[-1] != curve(place / "runs" / "low_2")[0][-1], "another seed reads other data"
    assert not (place / "runs" / "low_1" / "checkpoints").exists()

    monkeypatch.chdir(triaxis.directory)
    assert main(["sweep", "status", "sweeps/s"]) == 0
    assert main(["sweep", "table", "sweeps/s", "--json", "t.json", "--csv", "t.csv"]) == 0
    assert main(["sweep", "plot", "sweeps/s", "--out", "p.png"]) == 0
    told = capsys.readouterr().out
    assert "0 waiting, 0 running, 4 done, 0 failed: 4 runs" in told and "gap to low" in told
    figures = json.loads(Path("t.json").read_text())
    losses = {(run["rate"], run["seed"]): run["validation_loss"] for run in figures["runs"]}
    own = json.loads((place / "runs" / "high_2" / "summary.json").read_text())["validation_loss"]
    assert losses["high", "2"] == own
    high = next(one for one in figures["lines"] if one["rate"] == "high")
    gaps = [losses["high", seed] - losses["low", seed] for seed in "12"]
    assert abs(high["gap"] - sum(gaps) / 2) < 1e-12 and high["gap_spread"] == max(gaps) - min(gaps)
    with Path("t.csv").open() as file:
        assert [float(row["validation_loss"]) for row in csv.DictReader(file)][1] == high["mean"]
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG" and (place / "gaps.png").exists()


def test_interrupted_and_killed_it_goes_on(triaxis: Triaxis, corpus: Path) -> None:
    line = minute_sweep(
        corpus, 300, "sweep.axes.seed=[1]", f"checkpoint.every_tokens={128 * 5}", "checkpoint.keep_last=2"
    )
    place, run = triaxis.directory / "sweeps" / "s", triaxis.directory / "sweeps" / "s" / "runs" / "1"
    started = triaxis.start("sweep", *line)
    started.until_step(run, 8)
    started.process.send_signal(signal.SIGINT)
    done = started.wait(120, code=INTERRUPTED)
    triaxis.assert_nothing_runs()
    assert "the same command goes on from here" in done.output and states(place) == ["waiting"]
    stopped_at = last_step(run)
    started = triaxis.start("sweep", *line)
    started.until_step(run, stopped_at + 12)
    started.kill()
    assert states(place) == ["running"], "whose owner is dead"
    triaxis.run("sweep", *line)
    assert states(place) == ["done"] and stopped_at <= last_start(run)
    assert [step for step, *_ in curve(run)] == list(range(1, 301))


def test_a_failed_run_is_shown_and_tried_again_only_when_asked(triaxis: Triaxis, corpus: Path) -> None:
    broken = "sweep.axes.start={fresh: [], broken: ['run.init_from=nowhere']}"
    line = minute_sweep(corpus, 2, broken)
    told = triaxis.run("sweep", *line, code=1).output
    assert "failed  start=broken: nowhere: no such checkpoint directory" in told and "--retry" in told, told
    assert "done    start=fresh" in told and "Traceback" not in told
    again = triaxis.run("sweep", *line, code=1).output
    assert "begins" not in again and "failed  start=broken: nowhere: no such checkpoint directory" in again
    assert triaxis.run("sweep", *line, "--retry", code=1).output.count("begins") == 1
    place = triaxis.directory / "sweeps" / "s"
    refused = triaxis.run("sweep", *line, "train.micro_batch=1", code=1).output
    assert f"{place.relative_to(triaxis.directory)}: start=fresh is done there by another recipe" in refused
    assert "train.micro_batch: 2 -> 1" in refused and "sweep.name" in refused
