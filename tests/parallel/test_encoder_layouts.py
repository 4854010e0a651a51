"""Encoder-decoders train at every layout as in one process: the form of test_parity, with packed pairs and padding."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from models.config import ModelConfig
from parallel.check import check_model
from parallel.config import ParallelConfig, ParallelError
from parallel.schedule import SCHEDULES
from parallel.stages import stage_bounds
from tests.helpers.pool import Pools
from tests.parallel import shape_jobs, state_jobs
from tests.parallel.cases import ADAMW, SGD, Case
from tests.parallel.test_parity import (
    LOSS_TOLERANCE,
    Reference,
    assert_matches_single_process,
    case,
    reference,  # noqa: F401 (a fixture)
)

LAYOUTS = [
    case("t5", ADAMW, 2, 1, 1, zero_stage=1, sequence_parallel=True, recompute="selective"),
    case("first", SGD, 1, 2, 1, zero_stage=1),
    case("t5", SGD, 1, 1, 2, zero_stage=3, recompute="block"),
    case("t5", SGD, 1, 2, 1, engine="torch", zero_stage=2),
    case("first", ADAMW, 2, 2, 2, engine="torch", zero_stage=3, sequence_parallel=True),
]
CAMPAIGN = [
    case("t5", SGD, 1, 1, 1, engine="torch", recompute="block"),
    case("first", ADAMW, 1, 1, 2, engine="torch", zero_stage=3),
    case("t5", SGD, 2, 2, 2, zero_stage=1, sequence_parallel=True),
    case("first", SGD, 2, 1, 1, zero_stage=0),
    case("t5", ADAMW, 1, 1, 2, zero_stage=2, offload_optimizer=True),
    case("first", ADAMW, 1, 4, 1, zero_stage=0, recompute="selective"),
    case("t5", ADAMW, 1, 4, 1, zero_stage=1),
    case("t5", SGD, 2, 1, 2, zero_stage=3, sequence_parallel=True, recompute="block"),
    case("first", SGD, 1, 2, 2, zero_stage=0),
    case("t5", ADAMW, 2, 1, 1, engine="torch", sequence_parallel=True),
    case("first", SGD, 1, 1, 4, engine="torch", zero_stage=3, data_replicas=2),
    case("t5", SGD, 2, 1, 2, engine="torch", zero_stage=0, recompute="selective"),
    *(
        case(
            dialect, SGD, 1, 2, 1, engine="torch", micro_batch=1, schedule=name, virtual_stages=1 if found.stages else 2
        )  # type: ignore[arg-type]
        for name, found in SCHEDULES.items()
        for dialect in ("t5", "first")
    ),
    case("t5", ADAMW, 2, 2, 2, engine="torch", schedule="zbv", zero_stage=2, sequence_parallel=True, micro_batch=1),
]


@pytest.mark.parametrize("layout", LAYOUTS + [pytest.param(one, marks=pytest.mark.slow) for one in CAMPAIGN], ids=str)
def test_an_encoder_decoder_matches_one_process(layout: Case, pools: Pools, reference: Reference) -> None:  # noqa: F811
    assert_matches_single_process(layout, pools, reference)


# Rows change from step to step, and so does what the decoder has of them; the encoder's part stays.
SHAPES = [(8, 16), (4, 32), (8, 16), (16, 16), (4, 24), (8, 24)]


@pytest.mark.parametrize(
    "layout",
    [
        case("t5", SGD, 1, 2, 1, micro_batch=1),
        case("first", SGD, 1, 2, 1, engine="torch", schedule="gpipe", micro_batch=1),
    ],
    ids=str,
)
def test_shapes_may_change(layout: Case, pools: Pools) -> None:
    expected = pools.run(1, shape_jobs.train_shapes, case=replace(layout.reference, micro_batch=2), shapes=SHAPES)[0]
    for curve in pools.run(2, shape_jobs.train_shapes, case=layout, shapes=SHAPES):
        assert curve.losses == pytest.approx(expected.losses, rel=LOSS_TOLERANCE, abs=0)
        assert curve.validation == pytest.approx(expected.validation, rel=LOSS_TOLERANCE, abs=0)


@pytest.mark.parametrize(("first", "then"), [((1, 2, 1), (2, 1, 1)), ((2, 1, 1), (1, 1, 2))])
def test_a_checkpoint_loads_at_another_layout(
    first: tuple[int, ...], then: tuple[int, ...], pools: Pools, tmp_path: object
) -> None:
    """Initial weights and what three steps made of them are found by names, whole, at another layout under another engine."""
    before = case("t5", ADAMW, *first, zero_stage=1)
    after = case("t5", ADAMW, *then, engine="torch", zero_stage=3)
    saved = pools.run(before.world_size, state_jobs.train_and_save, case=before, directory=tmp_path, steps=3, further=2)
    found = pools.run(after.world_size, state_jobs.load_and_train, case=after, directory=tmp_path, steps=3, further=2)
    ours = state_jobs.assemble([rank.parts for rank in found])
    theirs = state_jobs.assemble([rank.parts for rank in saved])
    assert ours.keys() == theirs.keys()
    assert {name.split(".")[0] for name in ours if not name.startswith("optimizer")} == {
        "embedding",
        "encoder",
        "encoder_norm",
        "layers",
        "final_norm",
    }
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert found[0].losses == pytest.approx(saved[0].losses, rel=LOSS_TOLERANCE, abs=0)


MODEL = ModelConfig(
    vocab_size=1000,
    hidden_size=64,
    layers=4,
    encoder_layers=4,
    encoder_length=66,
    heads=4,
    ffn_size=128,
    max_sequence=256,
)


@pytest.mark.parametrize(
    ("options", "length", "words"),
    [
        ({}, 66, ["train.sequence_length=66", "no tokens to the decoder", "encoder_length=66"]),
        ({"context": 2}, 128, ["parallel.context=2", "encoder_layers=4", "context=1"]),
        ({"tensor": 4, "sequence_parallel": True}, 128, ["encoder_length=66", "62 of the decoder", "multiples of 4"]),
        ({"compile": "block", "engine": "torch"}, 128, ["compile=block", "encoder_layers=4", "compile=none"]),
        ({"pipeline": 9}, 128, ["parallel.pipeline=9", "model.layers=4 and model.encoder_layers=4", "fewer stages"]),
    ],
)
def test_layouts_that_an_encoder_decoder_cannot_have_are_refused(options: dict, length: int, words: list[str]) -> None:
    with pytest.raises(ParallelError) as refusal:
        check_model(ParallelConfig(**options), MODEL, length)
    for word in words:
        assert word in str(refusal.value)


def test_stages_share_out_both_stacks() -> None:
    check_model(ParallelConfig(pipeline=8), MODEL, 130)
    bounds = stage_bounds(MODEL, 4, 130)
    assert bounds[0] == 0 and bounds[-1] == 2 + 4 + 1 + 4 + 2
    assert all(1 <= stop - start <= 5 for start, stop in itertools.pairwise(bounds))
