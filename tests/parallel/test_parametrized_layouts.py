"""Parameters with learning rates of their own train at every layout as in one process, and a resumed run keeps the rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.optim.build import optimizer_factory
from models.decoder import Decoder, named_parameters
from models.layers import PlainLayers
from models.parametrization import ParametrizationConfig
from tests.helpers.pool import Pools
from tests.parallel import state_jobs
from tests.parallel.cases import ADAMW, PARAMETRIZED, SGD, Case
from tests.parallel.test_parity import (
    Reference,
    assert_matches_single_process,
    case,
    reference,  # noqa: F401 (a fixture)
)

ADAM = replace(ADAMW, epsilon=1e-5)  # so large that it counts which parameter has which
LAYOUTS = [
    # stages without an embedding, which DeepSpeed must not wait for
    case("completep", ADAM, 1, 4, 1, zero_stage=1),
    case("completep", ADAM, 2, 2, 1, zero_stage=1, sequence_parallel=True),
    case("completep", ADAM, 1, 1, 2, zero_stage=3),
    case("completep", ADAM, 1, 2, 1, engine="torch", zero_stage=2, schedule="zbv", micro_batch=1),
    case("mup", ADAM, 1, 1, 2, zero_stage=2),
    case("mup", SGD, 2, 1, 1, engine="torch"),
    pytest.param(case("completep", ADAM, 2, 2, 2, zero_stage=1, sequence_parallel=True), marks=pytest.mark.slow),
    pytest.param(case("completep", ADAM, 2, 2, 2, engine="torch", zero_stage=2), marks=pytest.mark.slow),
    pytest.param(case("mup", SGD, 1, 2, 1, zero_stage=0), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_groups_with_rates_match_one_process(layout: Case, pools: Pools, reference: Reference) -> None:  # noqa: F811
    assert_matches_single_process(layout, pools, reference)


def test_rates_matter_to_what_is_trained(reference: Reference) -> None:  # noqa: F811
    """Otherwise agreement would say little: the same model whose optimizer knows no parametrization ends elsewhere."""
    ours = reference(case("completep", ADAM, 1, 1, 1))
    assert ours.validation[1] < ours.validation[0] < ours.losses[0]
    named = list(named_parameters(iter(Decoder(PARAMETRIZED["completep"], PlainLayers()).blocks)))
    groups = optimizer_factory(ADAM, model=PARAMETRIZED["completep"])(named).param_groups
    assert {round(group["rate_scale"], 6) for group in groups} == {1.0, round(2**-0.25, 6), round(2**-0.25 / 4, 6)}
    assert len({group["eps"] for group in groups}) == 2
    assert {group["weight_decay"] for group in groups} == {0.0, ADAM.weight_decay, 4 * ADAM.weight_decay}


@pytest.mark.parametrize("loads", [case("completep", ADAM, 1, 2, 1, zero_stage=1)], ids=str)
def test_another_layout_goes_on_with_the_same_rates(loads: Case, pools: Pools, tmp_path: Path) -> None:
    saves = case("completep", ADAM, 1, 1, 2, engine="torch", zero_stage=3)
    ours = pools.run(saves.world_size, state_jobs.train_and_save, case=saves, directory=tmp_path, steps=4, further=5)
    theirs = pools.run(loads.world_size, state_jobs.load_and_train, case=loads, directory=tmp_path, steps=4, further=5)
    assert theirs[0].losses == pytest.approx(ours[0].losses, rel=1e-5)


def test_a_standard_model_has_the_groups_it_had() -> None:
    plain = replace(PARAMETRIZED["completep"], parametrization=ParametrizationConfig())
    named = list(named_parameters(iter(Decoder(plain, PlainLayers()).blocks)))
    for model in (plain, None):
        groups = optimizer_factory(ADAM, model=model)(named).param_groups
        assert [group["weight_decay"] for group in groups] == [ADAM.weight_decay, 0.0]
        assert all("rate_scale" not in group and group["eps"] == ADAM.epsilon for group in groups)
        assert [p.dim() > 1 for group in groups for p in group["params"]] == sorted(
            (p.dim() > 1 for _, p in named), reverse=True
        )
