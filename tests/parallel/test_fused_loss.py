"""A head that gives losses, and further terms of the loss, train at every layout as one process with logits does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from models.loss import LossConfig
from parallel.config import ParallelConfig, PrecisionConfig
from tests.helpers.pool import Pools
from tests.parallel import jobs
from tests.parallel.cases import ADAMW, SEQUENCES, SGD, Case
from tests.parallel.test_parity import LOSS_TOLERANCE, NORM_TOLERANCE, case

PLAIN = LossConfig()
FUSED = LossConfig(fused=True)
TERMS = LossConfig(z_loss=0.01, label_smoothing=0.1)
ALL = replace(TERMS, fused=True)
STEPS = 6


def with_loss(loss: LossConfig, *arguments: object, **options: object) -> Case:
    return replace(case(*arguments, **options), loss=loss)  # type: ignore[arg-type]


QUICK = [
    with_loss(FUSED, "llama", SGD, 1, 1, 1, engine="torch"),
    with_loss(ALL, "gpt", ADAMW, 1, 1, 1, zero_stage=3),
    with_loss(ALL, "gpt", SGD, 2, 1, 1, engine="torch", sequence_parallel=True, zero_stage=3),
    with_loss(ALL, "head", ADAMW, 1, 2, 1, zero_stage=1),
    with_loss(FUSED, "gpt", SGD, 1, 2, 1, engine="torch", schedule="zbv", zero_stage=2, micro_batch=1),
    with_loss(ALL, "llama", SGD, 1, 1, 2, zero_stage=3),
    with_loss(ALL, "qwen", SGD, 1, 1, 1, context=2, zero_stage=1),
    with_loss(ALL, "t5", SGD, 1, 2, 1, zero_stage=0, objective="encoder_decoder"),
    with_loss(FUSED, "gpt", SGD, 1, 1, 2, engine="torch", zero_stage=1, objective="reweighted"),
]
SLOW = [
    # tied, and with logits made again in backward, of parameters that are gathered anew for it
    with_loss(ALL, "gpt", SGD, 1, 1, 2, zero_stage=3),
    with_loss(ALL, "gpt", SGD, 1, 1, 2, zero_stage=3, objective="reweighted"),
    with_loss(ALL, "llama", SGD, 1, 1, 2, zero_stage=3, objective="reweighted"),
    with_loss(ALL, "llama", SGD, 1, 1, 2, engine="torch", zero_stage=3, objective="reweighted"),
    with_loss(FUSED, "post", SGD, 1, 1, 2, engine="torch", zero_stage=3),
    with_loss(TERMS, "llama", SGD, 2, 1, 1, zero_stage=1),
    with_loss(ALL, "llama", SGD, 1, 2, 1, engine="torch", schedule="gpipe"),
    with_loss(FUSED, "qwen", SGD, 2, 1, 1, zero_stage=0, sequence_parallel=True, compile="block"),
    with_loss(ALL, "llama", ADAMW, 2, 2, 2, zero_stage=1, sequence_parallel=True, recompute="selective"),
    with_loss(ALL, "gpt", SGD, 2, 2, 2, zero_stage=0),
    with_loss(ALL, "gpt", ADAMW, 2, 2, 2, engine="torch", zero_stage=3, sequence_parallel=True, recompute="block"),
    with_loss(FUSED, "qwen", SGD, 2, 2, 2, engine="torch", schedule="zbv", zero_stage=0, micro_batch=1),
    with_loss(ALL, "llama", SGD, 2, 2, 2, engine="torch", schedule="dualpipev", zero_stage=2, micro_batch=1),
    with_loss(FUSED, "parted", SGD, 2, 2, 1, context=2, zero_stage=1, sequence_parallel=True),
    with_loss(TERMS, "window", SGD, 2, 1, 2, engine="torch", context=2, zero_stage=3, sequence_parallel=True),
    with_loss(ALL, "experts", ADAMW, 2, 2, 2, zero_stage=1, expert=2),
    with_loss(ALL, "head", SGD, 1, 2, 2, engine="torch", zero_stage=3),
]

Reference = Callable[[Case], jobs.Curve]


@pytest.fixture(scope="module")
def reference(pools: Pools) -> Reference:
    """The curve of one process whose head gives logits, each computed once."""
    known: dict[Case, jobs.Curve] = {}

    def of(case: Case) -> jobs.Curve:
        rows = case.micro_batch if case.by_micro_batch else SEQUENCES
        loss = replace(case.loss, fused=False)
        plain = replace(case.reference, micro_batch=rows, loss=loss)
        if plain not in known:
            known[plain] = pools.run(1, jobs.train, case=plain, steps=STEPS)[0]
        return known[plain]

    return of


@pytest.mark.parametrize("layout", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)], ids=str)
def test_a_layout_is_one_process_with_logits(layout: Case, pools: Pools, reference: Reference) -> None:
    expected = reference(layout)
    curves = pools.run(layout.world_size, jobs.train, case=layout, steps=STEPS)
    found = curves[0]
    for curve in curves:
        assert curve.losses == found.losses and curve.norms == found.norms and curve.validation == found.validation
    assert found.losses == pytest.approx(expected.losses, rel=LOSS_TOLERANCE, abs=0)
    assert found.norms == pytest.approx(expected.norms, rel=NORM_TOLERANCE, abs=0)
    assert found.validation == pytest.approx(expected.validation, rel=LOSS_TOLERANCE, abs=0)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert float((ours - theirs).abs().max()) <= NORM_TOLERANCE * float(theirs.abs().max())
    assert not any(found.skipped)


def test_terms_are_part_of_training_and_not_of_validation(reference: Reference) -> None:
    plain, terms = (reference(replace(Case("llama", optimizer=SGD), loss=loss)) for loss in (PLAIN, TERMS))
    first, other = plain.losses[0], terms.losses[0]
    assert (
        other > first * 1.01
    )  # the same weights; z-loss adds, and so does smoothing where targets are likelier than others
    assert terms.validation[0] == pytest.approx(plain.validation[0], rel=0.1)
    assert terms.validation[-1] < terms.losses[-1]


@pytest.mark.parametrize(
    "layout",
    [
        Case("gpt", ParallelConfig(data=2), PrecisionConfig("bf16"), SGD, loss=ALL),
        Case("llama", ParallelConfig(engine="torch", tensor=2), PrecisionConfig("fp16", 8), SGD, loss=ALL),
    ],
    ids=str,
)
def test_low_precision_is_that_of_a_head_with_logits(layout: Case, pools: Pools, reference: Reference) -> None:
    found, other = (
        pools.run(2, jobs.train, case=replace(layout, loss=loss), steps=STEPS)[0].losses for loss in (ALL, TERMS)
    )
    assert found == pytest.approx(other, rel=5e-3)
    assert found == pytest.approx(reference(replace(layout, precision=PrecisionConfig("fp32"))).losses, rel=2e-2)
