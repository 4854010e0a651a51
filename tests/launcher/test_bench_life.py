"""`triaxis bench launch` and `bench goodput`: their figures add up, and what failures cost is by the formula that is cited."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from launcher.bench import goodput, launch
from tests.launcher.running import minute


def printed(show: object, figures: dict) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(figures, console)  # type: ignore[operator]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_interval_that_loses_least_is_youngs() -> None:
    save, apart = 0.05, 30.0
    best = goodput.optimum(save, apart)
    assert best == pytest.approx((2 * save * apart) ** 0.5)
    shares = {share: goodput.lost_share(share * best, save, apart, 0.0) for share in (0.5, 0.9, 1.0, 1.1, 2.0)}
    assert min(shares, key=lambda share: shares[share]) == 1.0
    assert shares[1.0] == pytest.approx((2 * save / apart) ** 0.5)  # Young's first order
    assert goodput.lost_share(best, save, apart, 10.0) == pytest.approx((10.0 + 30.0 * shares[1.0]) / 40.0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_goodput_of_a_run_that_loses_ranks(corpus: Path) -> None:
    figures = goodput.run(minute(corpus, 400), every=2.0, steps=400, ranks=2)
    assert figures["failures"] >= 1 and figures["same_losses"]
    assert 0 < sum(figures["lost"].values()) < 1
    assert figures["useful_seconds"] < figures["wall_seconds"] and figures["restart_seconds"] > 0
    text = printed(goodput.show, figures)
    assert "bitwise" in text and "optimum, saves every" in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_launch_tells_every_part_and_a_bare_start(corpus: Path) -> None:
    figures = launch.run(minute(corpus, 4), ranks=2, rounds=1)
    parts = list(figures["parts"])
    for part in (
        "interpreter and imports",
        "compose",
        "start of ranks",
        "rendezvous and groups",
        "health",
        "first step",
    ):
        assert part in parts
    assert parts[0] == "interpreter and imports" and parts[-1] == "first step"
    assert sum(figures["parts"].values()) == pytest.approx(figures["seconds"])
    assert figures["bare_seconds"] > 0 and figures["ratio"] == figures["seconds"] / figures["bare_seconds"]
    assert "bare torchrun" in printed(launch.show, figures)
