"""`train.profile_step`: files a rank, and a report with the step as measured beside the step in theory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.check import check_recipe
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from launcher.report.timeline import pipeline_pictures
from parallel.timeline import FORWARD
from tests.launcher.running import Triaxis, minute


def test_a_profiled_run_reports_its_pipeline(corpus: Path, triaxis: Triaxis) -> None:
    layout = {"parallel__engine": "torch", "parallel__pipeline": 2, "train__profile_step": 2, "tracker__report": True}
    triaxis.run("train", *minute(corpus, 3, **layout))
    run = triaxis.directory / "runs" / "run"
    told = [json.loads(path.read_text()) for path in sorted((run / "profile").iterdir())]
    assert [(rank["step"], rank["place"]["pipeline"]) for rank in told] == [(2, 0), (2, 1)]
    for rank in told:
        assert sum(kind == FORWARD for _, kind, *_ in rank["spans"]) == rank["micro_batches"] == 4
    page = (run / "report.html").read_text()
    assert "A step of the pipeline" in page
    assert page.count("data:image/png") == 2
    measured, theory = (caption for caption, _ in pipeline_pictures(run))
    assert "Step 2 as measured" in measured and "idle" in theory


def test_without_a_pipeline_there_is_nothing_to_profile() -> None:
    recipe = build_recipe(compose_tree(["experiment=tiny", "train.profile_step=2", "model.vocab_size=300"]))
    with pytest.raises(RecipeError, match=r"train.profile_step=2.*parallel.pipeline=1"):
        check_recipe(recipe, 1, "cpu")
