"""Today's curve against the golden one: to the rounding that another CPU or another layout may bring."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launcher.compare import compare, read_curve, write_golden
from tests.golden.record import GOLDEN, STEPS, run
from tests.launcher.running import command


@pytest.mark.parametrize("layout", [[], ["parallel.data=2"]], ids=["one process", "two replicas"])
def test_the_curve_is_the_golden_one(tmp_path: Path, layout: list[str]) -> None:
    found = compare(run(tmp_path, *layout), read_curve(GOLDEN))
    assert found.steps == STEPS
    assert found.loss <= 1e-5, found
    assert found.grad_norm <= 1e-4, found


def test_another_seed_is_another_curve_and_compare_says_so(tmp_path: Path) -> None:
    curve = run(tmp_path, "seed=2")
    assert compare(curve, read_curve(GOLDEN)).loss > 1e-3
    write_golden(curve, tmp_path / "other.jsonl")
    done = subprocess.run(
        [command(), "compare", str(tmp_path / "other.jsonl"), str(GOLDEN), "--tolerance=1e-5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "at step" in done.stdout
    same = subprocess.run([command(), "compare", str(GOLDEN), str(GOLDEN)], capture_output=True, text=True, check=False)
    assert same.returncode == 0
    assert "bitwise equal" in same.stdout
