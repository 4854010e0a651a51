"""A run whose batch and layout change at every resume reads the same sequence of samples; skips are part of its state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.orderings import make
from data.orderings.simple import Shuffle
from data.progress import silent
from launcher.corpus.replay import read_phases
from tests.data.synthetic import write_corpus
from tests.launcher.running import BATCH, Triaxis, committed, minute
from tests.launcher.test_data_recipes import corpus as corpus

MIXED = "data.sources=[{path: CORPUS, name: a, weight: 0.7}, {path: CORPUS, name: b, weight: 0.3}]"


def recipe(corpus: Path, steps: int, *more: str, packing: str = "best_fit", **options: object) -> list[str]:
    own = ["data=mixture", MIXED.replace("CORPUS", str(corpus)), f"data.packing={packing}", *more]
    whole = minute(corpus, steps, *own, **options)
    return [part for part in whole if "data.path" not in part and "span_tokens" not in part]


def test_samples_stay_where_they_are(triaxis: Triaxis, corpus: Path) -> None:
    attempts: tuple[dict, ...] = (
        {"train__max_steps": 3},
        {"train__max_steps": 5, "train__batch_tokens": 2 * BATCH, "parallel__data": 2},
        {"data__skip": f"[[{9 * BATCH},{10 * BATCH}]]", "parallel__tensor": 2},
    )
    for attempt in attempts:
        triaxis.run("train", *recipe(corpus, 12, **attempt))
    run = triaxis.directory / "runs" / "run"
    (phase,) = read_phases([str(run)], "")
    assert [made.rows * made.length // BATCH for made in phase.steps] == [1, 1, 1, 2, 2, 1, 1, 1, 1, 1]
    assert [made.place for made in phase.steps] == [sum(m.rows * m.length for m in phase.steps[:i]) for i in range(10)]
    told = triaxis.run("data", "replay", "runs/run").output
    assert told.count("as logged") == 10 and "DIFFERS" not in told
    assert f"{10 * BATCH}:{11 * BATCH}" in told and f"{9 * BATCH}:{10 * BATCH} " not in told  # of the line
    assert "at most once" in triaxis.run("data", "audit", "runs/run").output
    # what was read cannot be skipped any more
    refused = triaxis.start("train", *recipe(corpus, 24, data__skip=f"[[0,{BATCH}]]")).wait(code=1)
    assert "data.skip=" in refused.output and "cannot change" in refused.output


def test_another_sequence_is_refused(triaxis: Triaxis, corpus: Path) -> None:
    triaxis.run("train", *recipe(corpus, 4, train__max_steps=2))
    refused = triaxis.start("train", *recipe(corpus, 4, packing="cut")).wait(code=1)
    assert "is not the text (or its order) that this phase was reading" in refused.output


def test_epochs_are_counted_and_their_checkpoints_kept(triaxis: Triaxis, corpus: Path) -> None:
    make(corpus, "few", "shuffle", Shuffle(tokens=1500), ("train",), silent)
    own = ["data.ordering=few", "data.packing=document"]
    options = {"train__epochs": 2.5, "checkpoint__every_epoch": True, "checkpoint__keep_last": 1}
    decided = ("data.span_tokens", "train.tokens")  # by packing and by epochs
    argument = [part for part in minute(corpus, 4, *own, **options) if not part.startswith(decided)]
    triaxis.run("train", *argument)
    run = triaxis.directory / "runs" / "run"
    (phase,) = read_phases([str(run)], "")
    epoch = phase.reading.stream.sources[0].units * 16
    ends = [next(made.step for made in phase.steps if made.end >= times * epoch) for times in (1, 2)]
    assert committed(run) == [*ends, phase.steps[-1].step]
    assert phase.steps[-1].end - BATCH < 2.5 * epoch <= phase.steps[-1].end
    told = triaxis.run("data", "audit", "runs/run").output
    assert "(2 whole)" in told and "at most once" in told


def test_what_was_drawn_is_logged_and_drawn_and_each_corpus_validated(
    triaxis: Triaxis, corpus: Path, tmp_path: Path
) -> None:
    other = write_corpus(tmp_path / "other", [[40] * 30], name="other")
    sources = f"data.sources=[{{path: {corpus}, weight: 3}}, {{path: {other}, weight: 1}}]"
    argument = minute(corpus, 6, "data=mixture", sources, tracker__report=True)
    triaxis.run("train", *(part for part in argument if "data.path" not in part and "span_tokens" not in part))
    run = triaxis.directory / "runs" / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drawn = [record["drawn"] for record in records if record["kind"] == "step"]
    assert all(sum(one.values()) == BATCH for one in drawn)
    total = {name: sum(one.get(name, 0) for one in drawn) for name in ("readings", "other")}
    assert total["other"] == pytest.approx(6 * BATCH / 4, abs=16)
    (validation,) = [record for record in records if record["kind"] == "validation"]
    assert set(validation["by_source"]) == {"readings", "other"}
    low, high = sorted(validation["by_source"].values())
    assert low < validation["validation_loss"] < high
    assert (run / "report_reading.png").read_bytes()[:4] == b"\x89PNG"
    assert "Sources, sequence lengths and batch sizes" in (run / "report.html").read_text()
