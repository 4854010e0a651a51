"""`train.trace_step`: a trace of every rank's operators, and what they took in log and report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from launcher.check import check_recipe
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from launcher.report.operators import operators_of
from tests.launcher.running import Triaxis, minute


def test_a_traced_step_is_told_by_all_ranks(corpus: Path, triaxis: Triaxis) -> None:
    layout = {"parallel__data": 2, "train__trace_step": 2, "tracker__report": True}
    printed = triaxis.run("train", *minute(corpus, 3, **layout)).output
    assert "trace" in printed and "Perfetto" in printed
    run = triaxis.directory / "runs" / "run"
    traces = sorted((run / "trace").glob("rank_*.json.gz"))
    assert [path.name for path in traces] == ["rank_00000.json.gz", "rank_00001.json.gz"]
    for path in traces:
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        products = [event for event in events if event.get("name") in ("aten::mm", "aten::addmm")]
        layers, micro_batches = 2, 2
        assert len(products) >= 3 * 4 * layers * micro_batches, "four matrices a layer, three products each"
    told = json.loads((run / "trace" / "operators.json").read_text())
    own = [seconds for *_, seconds in told["operators"]]
    assert told["step"] == 2 and own == sorted(own, reverse=True)
    assert sum(own) < 1.5 * told["seconds"], "one thread's own times fill its step, no more"
    sentence, rows = operators_of(run, most=5) or ("", [])
    assert "Step 2" in sentence and len(rows) == 6 and rows[-1][0].endswith("others")
    page = (run / "report.html").read_text()
    assert "Operators" in page and rows[0][0] in page


def test_a_step_is_not_timed_and_recorded_at_once() -> None:
    overrides = ["experiment=tiny", "model.vocab_size=300", "parallel.pipeline=2"]
    steps = ["train.profile_step=2", "train.trace_step=2"]
    with pytest.raises(RecipeError, match=r"train.profile_step=2 and train.trace_step=2"):
        check_recipe(build_recipe(compose_tree([*overrides, *steps])), 2, "cpu")
