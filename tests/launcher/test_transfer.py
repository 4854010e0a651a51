"""`triaxis sweep transfer`: optima that were planted are found, and what a sweep cannot say is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from launcher.check import check_depth, check_same_multipliers
from launcher.compose import build_recipe, compose_tree
from launcher.config import OptimizerConfig, RecipeError
from launcher.schema import to_plain
from launcher.sweep.config import SweepError
from launcher.sweep.points import points_of, sweep_of
from launcher.sweep.transfer import RATE, Optimum, as_json, lowest, transfer_of
from launcher.sweep.transfer_picture import picture

RATES = [2.0**-k for k in range(10, 3, -1)]


class Row:
    """As much of a sweep's row as is read."""

    def __init__(self, labels: dict[str, str], loss: float | None) -> None:
        self.labels, self.state = labels, "waiting" if loss is None else "done"
        self.figures: dict[str, Any] = {} if loss is None else {"validation_loss": loss}


def rows(shift: dict[str, float], widths: tuple[int, ...] = (64, 128, 256, 512)) -> list[Any]:
    """Parabolas around 2^-6.3 at width 64 that move by `shift` octaves with each doubling."""
    return [
        Row(
            {"width": str(width), "kind": kind, RATE: f"{rate:g}"},
            3 + (math.log2(rate) + 6.3 - drift * math.log2(width / 64)) ** 2 / 10,
        )
        for kind, drift in shift.items()
        for width in widths
        for rate in RATES
    ]


def test_planted_optima_and_drifts_are_found() -> None:
    found = transfer_of("planted", "validation_loss", rows({"standard": -0.9, "mup": 0.0}))
    assert found.drift("mup") == pytest.approx(0, abs=1e-3)
    assert found.drift("standard") == pytest.approx(-0.9, abs=1e-3)
    assert found.optimum("mup", 512).rate == pytest.approx(2**-6.3, rel=1e-3)
    assert found.optimum("mup", 512).loss == pytest.approx(3.0, abs=1e-4)
    assert as_json(found)["kinds"]["standard"]["widths"]["64"]["rate"] == pytest.approx(2**-6.3, rel=1e-3)
    assert picture(found).startswith(b"\x89PNG")


def test_an_optimum_at_the_edge_is_not_counted() -> None:
    assert lowest({1.0: 3.0, 2.0: 4.0, 4.0: 5.0}) == Optimum(1.0, 3.0, True)
    found = transfer_of("planted", "validation_loss", rows({"standard": -4.0}, (64, 128, 256)))
    assert found.optimum("standard", 256).edge
    assert found.drift("standard") is None


def test_repeated_runs_are_averaged_and_missing_ones_left_out() -> None:
    one = {"width": "64", "kind": "mup", "seed": "1"}
    given = [Row({**one, RATE: f"{rate:g}", "seed": seed}, 4 + int(seed)) for rate in RATES[:4] for seed in "12"]
    given.append(Row({**one, RATE: f"{RATES[5]:g}"}, None))
    curve = transfer_of("some", "validation_loss", given).curves["mup"][64]  # type: ignore[arg-type]
    assert list(curve) == pytest.approx(sorted(RATES[:4]), rel=1e-5)
    assert set(curve.values()) == {5.5}


def test_other_sweeps_are_refused() -> None:
    with pytest.raises(SweepError, match="no axis width"):
        transfer_of("other", "validation_loss", [Row({RATE: "0.1"}, 1.0)])  # type: ignore[list-item]
    with pytest.raises(SweepError, match=r"sweep\.axes\.width\.small: a transfer needs widths"):
        transfer_of("other", "validation_loss", [Row({RATE: "0.1", "width": "small"}, 1.0)])  # type: ignore[list-item]
    with pytest.raises(SweepError, match="no width of young has three"):
        transfer_of("young", "validation_loss", rows({"mup": 0.0})[:2])


def test_the_ready_sweep_is_one_of_widths_by_rates() -> None:
    sweep, line = sweep_of(["experiment=mup_transfer"])
    points = points_of(sweep, line)
    assert len(points) == 4 * 2 * 7
    for point in points[::7]:
        model = build_recipe(compose_tree(point.overrides)).model
        assert (model.hidden_size, model.head_width) == (int(point.labels["width"]), 16)
        assert model.parametrization.kind == point.labels["kind"]
        assert model.scales.width == (model.hidden_size / 64 if point.labels["kind"] == "mup" else 1)
        assert model.scales.query == 1


def test_weights_of_another_parametrization_are_refused() -> None:
    plain = build_recipe(compose_tree(["experiment=mup_transfer"]))
    line = ["model.parametrization.kind=mup", "model.parametrization.base_head_size=16"]
    wide = build_recipe(compose_tree(["experiment=mup_transfer", *line, "model.parametrization.base_width=32"]))
    base = build_recipe(compose_tree(["experiment=mup_transfer", *line, "model.parametrization.base_width=64"]))
    check_same_multipliers(base, to_plain(plain), "runs/plain")
    check_same_multipliers(wide, to_plain(wide), "runs/wide")
    with pytest.raises(
        RecipeError, match=r"weights of runs/plain mean something else here.*head by 0\.5 here and by 1 there"
    ):
        check_same_multipliers(wide, to_plain(plain), "runs/plain")


def test_sgd_has_no_rule_for_depth() -> None:
    line = ["model.parametrization.kind=completep", "model.parametrization.base_width=64"]
    line += ["model.parametrization.base_head_size=16", "model.parametrization.base_depth=2"]
    recipe = build_recipe(compose_tree(["experiment=mup_transfer", *line]))
    check_depth(recipe)
    with pytest.raises(RecipeError, match=r"optimizer\.name=sgd: model\.parametrization\.kind=completep"):
        check_depth(replace(recipe, optimizer=OptimizerConfig(name="sgd")))
