"""A run whose batch and layout change at every resume reads the same sequence of samples; skips are part of its state."""

from __future__ import annotations

from pathlib import Path

from launcher.corpus.replay import read_phases
from tests.launcher.running import BATCH, Triaxis, minute
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
