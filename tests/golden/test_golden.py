"""Today's curve against the golden one: to the rounding that another CPU or another layout may bring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.compare import Curve, compare, compare_command, read_curve, write_golden
from tests.golden.record import GOLDEN, STEPS, run
from tests.launcher.running import Together

NARROW = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}


LENGTHS = {"one process": STEPS, "narrow vectors": 6, "two replicas": 6, "another seed": 2}
"""Steps of each run. Six are two beyond the warm-up: what rounding differs by another CPU or layout shows in each step."""


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    """The golden run as it is, as on a CPU of 2008, on two replicas, and with another seed."""
    found = Together(lambda name: tmp_path_factory.mktemp(name))

    def add(name: str, *more: str, **environment: str) -> None:
        length = f"train.max_steps={LENGTHS[name]}"
        found.add(name, lambda triaxis: run(triaxis, length, *more, **environment))

    add("one process")
    add("narrow vectors", **NARROW)
    add("two replicas", "parallel.data=2")
    add("another seed", "seed=2")
    yield found
    found.close()


@pytest.mark.parametrize("name", [name for name in LENGTHS if name != "another seed"])
def test_the_curve_is_the_golden_one(curves: Together, name: str) -> None:
    found = compare(curves[name], read_curve(GOLDEN))
    assert found.steps == LENGTHS[name]
    assert found.loss <= 1e-5, found
    assert found.grad_norm <= 1e-4, found


def test_another_seed_is_another_curve_and_compare_says_so(
    curves: Together, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve: Curve = curves["another seed"]
    assert compare(curve, read_curve(GOLDEN)).loss > 1e-3
    write_golden(curve, tmp_path / "other.jsonl")
    assert compare_command([str(tmp_path / "other.jsonl"), str(GOLDEN), "--tolerance=1e-5"]) == 1
    assert "at step" in capsys.readouterr().out
    assert compare_command([str(GOLDEN), str(GOLDEN)]) == 0
    assert "bitwise equal" in capsys.readouterr().out


def test_one_altered_number_is_found() -> None:
    """What the tolerances above are worth: a loss that is off by 2e-5 of itself is not the golden one."""
    curve = read_curve(GOLDEN)
    loss, norm = curve[7]
    found = compare({**curve, 7: (loss * (1 + 2e-5), norm)}, curve)
    assert found.loss == pytest.approx(2e-5, rel=1e-3)
    assert found.loss_step == 7 and found.grad_norm == 0
