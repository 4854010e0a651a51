"""Before the first step: figures of every device and axis; what is wrong is refused with its host, what is slow is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launcher.exits import FAILED
from launcher.failure import judge
from launcher.health import AxisHealth, Health, RankHealth, known_matrix, product_is_right, weight
from tests.launcher.running import Done, Together, Triaxis, minute, records
from tests.launcher.test_errors import fault

WRONG_SUM = """
    import torch.distributed as dist, launcher.health as health
    true = health.weight
    health.weight = lambda place: true(place) + (place == 1)
"""
# one rank believes in another sum of the same numbers: as if the axis had lost one on its way


def run_of(triaxis: Triaxis, corpus: Path, code: int, *more: str, **told: str) -> tuple[Done, Path]:
    recipe = minute(corpus, 2, "parallel.data=2", *more)
    return triaxis.run("train", *recipe, code=code, timeout=300, **told), triaxis.directory / "runs" / "run"


@pytest.fixture(scope="module")
def ran(together: Together, corpus: Path) -> Together:
    together.add("sound", lambda triaxis: run_of(triaxis, corpus, 0))
    together.add("wrong", lambda triaxis: run_of(triaxis, corpus, 1, **fault(triaxis.directory / "f", 1, WRONG_SUM)))
    together.add("off", lambda triaxis: run_of(triaxis, corpus, 0, "life.health=false"))
    return together


def test_every_rank_and_axis_is_told(ran: Together) -> None:
    done, run = ran["sound"]
    told = json.loads((run / "health.json").read_text())
    assert [rank["rank"] for rank in told["ranks"]] == [0, 1]
    assert all(rank["product"] > 1e6 and rank["copy"] > 1e6 and rank["memory_free"] > 0 for rank in told["ranks"])
    assert abs(told["ranks"][1]["skew"]) < 1.0 and told["ranks"][0]["skew"] == 0.0  # one machine has one clock
    (axis,) = told["axes"]
    assert (axis["axis"], axis["size"], axis["wrong"]) == ("data", 2, []) and axis["rate"] > 0
    assert axis["rate"] == pytest.approx(axis["bytes"] / axis["seconds"])  # 2 (n - 1) / n is 1
    assert "health  2 ranks on 1 host" in done.output and "axis data: all-reduce over 2 ranks" in done.output
    assert [record["event"] for record in records(run, "event")].count("health") == 1


def test_a_wrong_sum_ends_the_run_before_its_first_step(ran: Together) -> None:
    done, run = ran["wrong"]
    message = done.output[done.output.index("triaxis: ") :]
    assert "the data axis sums wrongly" in message and "Traceback" not in message and message.count("\n") == 1, message
    assert not records(run, "step") and not (run / "health.json").exists()
    assert judge(run, 2, 1).code == FAILED  # another node may do better


def test_nothing_is_tried_where_the_recipe_says_so(ran: Together) -> None:
    done, run = ran["off"]
    assert "health" not in done.output and not (run / "health.json").exists()


# A rank, and what is made of figures


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_product_of_known_numbers(kind: torch.dtype) -> None:
    a, b = (known_matrix(96, shift, kind, torch.device("cpu")) for shift in (0, 3))
    assert a.unique().numel() == 7
    product = a @ b
    assert product_is_right(a, b, product)
    for wrong in (float("nan"), 2.0 * float(product.abs().sum(1)[40])):
        broken = product.clone()
        broken[40, 7] = wrong
        assert not product_is_right(a, b, broken)
    assert not product_is_right(a, b, a @ b.T.contiguous().roll(1, 0))


def test_sums_of_the_largest_worlds_are_exact() -> None:
    assert 63 * sum(weight(place) for place in range(16_384)) < 2**24


def ranks(count: int) -> list[RankHealth]:
    return [RankHealth(rank, f"n{rank // 2}", "H100", 1 << 36, 1 << 37, 0.0, 7e14, 3e12) for rank in range(count)]


def test_stragglers_are_named_with_their_hosts() -> None:
    found = ranks(6)
    found[4] = replace(found[4], product=4.6e14)
    found[5] = replace(found[5], copy=1e12, skew=-3.0)
    health = Health(tuple(found), (AxisHealth("data", 6, 1 << 26, 1e-3, 1e11),), 1.0)
    told = "\n".join(health.stragglers)
    assert len(health.stragglers) == 3
    assert "rank 4 on n2 (H100) is slow: product at 460 TFLOP/s, the median is 700 TFLOP/s" in told
    assert "rank 5 on n2 (H100) is slow: copy at 1 TB/s" in told and "clock of n2 (rank 5) is -3.0 s" in told
    assert health.table().endswith(told) and "6 ranks on 3 hosts" in health.table()
    assert Health(tuple(ranks(6)), (), 1.0).stragglers == []
