"""Every layout trains as one process does: one list of layouts, one form of test.

The reference is the `torch` engine in one process with the whole batch as one micro-batch. What a layout reports must be
the same on each of its ranks and, for 20 optimizer steps in float32, the loss within 1e-5 and the gradient norm within
1e-4 of the reference, relative; so must validation loss and logits, half-way and at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from launcher.config import OptimizerConfig
from parallel.config import ParallelConfig
from parallel.schedule import SCHEDULES
from tests.helpers.pool import Pools
from tests.parallel import jobs
from tests.parallel.cases import ADAMW, DIALECTS, OBJECTIVES, SEQUENCES, SGD, Case
from tests.parallel.covering import cover, facets, others_slow

LOSS_TOLERANCE = 1e-5
NORM_TOLERANCE = 1e-4  # of logits too: both show differences of single weights, where a loss averages over them


def case(
    dialect: str,
    optimizer: OptimizerConfig,
    *degrees: int,
    micro_batch: int = 0,
    engine: str = "deepspeed",
    objective: str = "",
    **options: object,
) -> Case:
    """degrees: tensor, pipeline, data. micro_batch: rows; by default two micro-batches a step, or four where they fill a
    pipeline: each costs as many collectives, and the second shows what gradients are summed by."""
    tensor, pipeline, data = degrees
    micro_batch = micro_batch or (2 if pipeline > 1 else max(2, SEQUENCES // data // 2))
    parallel = ParallelConfig(engine=engine, tensor=tensor, pipeline=pipeline, data=data, **options)  # type: ignore[arg-type]
    return Case(dialect, parallel, optimizer=optimizer, micro_batch=micro_batch, objective=objective)


# A covering list: each option is seen with each axis, which a test below checks. The full product is a slow test.
LAYOUTS = [
    case("llama", ADAMW, 1, 1, 1, zero_stage=0),
    case("qwen", SGD, 1, 1, 1, zero_stage=3, recompute="selective"),
    case("post", SGD, 1, 1, 1, engine="torch", recompute="block", zero_stage=1),
    # tensor
    case("llama", ADAMW, 2, 1, 1, zero_stage=0, recompute="selective", micro_batch=4),
    case("gpt", SGD, 2, 1, 1, zero_stage=3, sequence_parallel=True, recompute="selective", micro_batch=4),
    case(
        "post",
        SGD,
        2,
        1,
        1,
        zero_stage=1,
        sequence_parallel=True,
        recompute="block",
        offload_optimizer=True,
        micro_batch=4,
    ),
    case("qwen", ADAMW, 2, 1, 1, zero_stage=2, sequence_parallel=True, micro_batch=8),
    case("post", ADAMW, 4, 1, 1, zero_stage=1, sequence_parallel=True, recompute="selective", micro_batch=8),
    # pipeline
    case("gpt", SGD, 1, 2, 1, zero_stage=0, micro_batch=1),
    case("qwen", ADAMW, 1, 2, 1, zero_stage=1, recompute="block"),
    case("llama", SGD, 1, 2, 1, zero_stage=1, recompute="selective", micro_batch=8),
    case("post", ADAMW, 1, 2, 1, zero_stage=1, offload_optimizer=True),
    case("gpt", ADAMW, 1, 4, 1, zero_stage=1),
    case("head", SGD, 1, 2, 1, zero_stage=1),
    case("head", ADAMW, 1, 2, 2, zero_stage=0),
    # data
    case("post", ADAMW, 1, 1, 2, zero_stage=0, recompute="block"),
    case("llama", SGD, 1, 1, 2, zero_stage=1, recompute="selective", offload_optimizer=True),
    case("qwen", SGD, 1, 1, 2, zero_stage=2, micro_batch=4),
    case("gpt", ADAMW, 1, 1, 2, zero_stage=2, offload_optimizer=True, micro_batch=1),
    case("gpt", ADAMW, 1, 1, 2, zero_stage=3, recompute="selective"),
    case("llama", ADAMW, 1, 1, 2, zero_stage=3, recompute="block", offload_optimizer=True),
    case("post", SGD, 1, 1, 4, zero_stage=3),
    case("post", ADAMW, 1, 1, 2, zero_stage=2, compile="block", recompute="selective"),
    case("gpt", SGD, 1, 2, 1, zero_stage=1, compile="block", recompute="block"),
    case("llama", ADAMW, 2, 1, 1, zero_stage=1, compile="block"),
    # two axes
    case("post", ADAMW, 2, 2, 1, zero_stage=1, sequence_parallel=True, recompute="selective", micro_batch=4),
    case("llama", SGD, 2, 2, 1, zero_stage=0, recompute="block", micro_batch=4),
    case("gpt", SGD, 2, 1, 2, zero_stage=3, sequence_parallel=True, recompute="block"),
    case("qwen", ADAMW, 2, 1, 2, zero_stage=2, offload_optimizer=True),
    case("post", ADAMW, 2, 1, 2, zero_stage=0),
    case("qwen", SGD, 1, 2, 2, zero_stage=1, offload_optimizer=True),
    case("llama", ADAMW, 1, 2, 2, zero_stage=0),
    # three axes
    case("llama", ADAMW, 2, 2, 2, zero_stage=1, sequence_parallel=True, recompute="selective"),
    case("gpt", SGD, 2, 2, 2, zero_stage=0),
    case("qwen", ADAMW, 2, 2, 2, zero_stage=1, sequence_parallel=True, recompute="block", offload_optimizer=True),
    case("post", SGD, 2, 2, 2, zero_stage=1, micro_batch=1),
]

# The same under the torch engine: FSDP2 on every kind of data mesh, and every pipeline schedule at 2 and 4 stages' ranks.
TORCH_LAYOUTS = [
    case("qwen", SGD, 1, 1, 1, engine="torch", compile="block"),
    case("llama", ADAMW, 1, 1, 2, engine="torch", zero_stage=0),
    case("llama", SGD, 1, 1, 2, engine="torch", zero_stage=0, compile="block", recompute="selective"),
    case("post", ADAMW, 1, 1, 2, engine="torch", zero_stage=3, compile="block", recompute="block"),
    case("gpt", SGD, 2, 1, 1, engine="torch", compile="block"),
    case("qwen", ADAMW, 1, 2, 1, engine="torch", schedule="interleaved_1f1b", virtual_stages=2, compile="block"),
    case("gpt", SGD, 1, 1, 2, engine="torch", zero_stage=1, micro_batch=1),
    case("qwen", ADAMW, 1, 1, 2, engine="torch", zero_stage=2, recompute="selective"),
    case("post", SGD, 1, 1, 2, engine="torch", zero_stage=3, recompute="block"),
    case("gpt", ADAMW, 1, 1, 2, engine="torch", zero_stage=3, offload_optimizer=True),
    case("qwen", SGD, 1, 1, 4, engine="torch", zero_stage=3, data_replicas=2),
    case("llama", ADAMW, 1, 1, 4, engine="torch", zero_stage=1, data_replicas=2, recompute="block", micro_batch=1),
    case("post", ADAMW, 2, 1, 1, engine="torch", zero_stage=0, sequence_parallel=True, recompute="selective"),
    case("gpt", SGD, 2, 1, 2, engine="torch", zero_stage=3, sequence_parallel=True, recompute="block"),
    case("qwen", ADAMW, 2, 1, 2, engine="torch", zero_stage=2, offload_optimizer=True),
    case("gpt", SGD, 4, 1, 1, engine="torch", zero_stage=3),
    *(
        case(dialect, optimizer, 1, pipeline, 1, engine="torch", micro_batch=1, **options)  # type: ignore[arg-type]
        for dialect, optimizer, pipeline, options in (
            ("gpt", SGD, 2, {"schedule": "gpipe"}),
            ("qwen", ADAMW, 4, {"schedule": "gpipe", "zero_stage": 3}),
            ("post", SGD, 2, {"schedule": "1f1b", "zero_stage": 2, "recompute": "block"}),
            ("gpt", ADAMW, 4, {"schedule": "1f1b"}),
            ("qwen", SGD, 2, {"schedule": "interleaved_1f1b", "virtual_stages": 2, "zero_stage": 3}),
            ("deep", ADAMW, 4, {"schedule": "interleaved_1f1b", "virtual_stages": 2}),
            ("gpt", ADAMW, 2, {"schedule": "interleaved_zero_bubble", "virtual_stages": 2, "zero_stage": 2}),
            ("deep", SGD, 4, {"schedule": "interleaved_zero_bubble", "virtual_stages": 2, "recompute": "block"}),
            ("post", ADAMW, 2, {"schedule": "zbv", "recompute": "selective"}),
            ("deep", SGD, 4, {"schedule": "zbv"}),
            ("gpt", SGD, 2, {"schedule": "dualpipev"}),
            ("deep", ADAMW, 4, {"schedule": "dualpipev", "zero_stage": 2}),
        )
    ),
    case("head", SGD, 1, 2, 2, engine="torch", zero_stage=3),
    case("llama", ADAMW, 2, 2, 1, engine="torch", schedule="zbv", sequence_parallel=True, micro_batch=1),
    case("gpt", SGD, 1, 2, 2, engine="torch", schedule="zbv", zero_stage=2, micro_batch=1),
    case("qwen", ADAMW, 1, 2, 2, engine="torch", schedule="interleaved_1f1b", virtual_stages=2, zero_stage=3),
    # three axes
    case("gpt", ADAMW, 2, 2, 2, engine="torch", zero_stage=3, sequence_parallel=True, recompute="block"),
    case("llama", SGD, 2, 2, 2, engine="torch", schedule="dualpipev", zero_stage=2, micro_batch=1),
    case("qwen", SGD, 2, 2, 2, engine="torch", schedule="zbv", zero_stage=0, sequence_parallel=True, micro_batch=1),
    case(
        "post",
        ADAMW,
        2,
        2,
        2,
        engine="torch",
        schedule="interleaved_zero_bubble",
        virtual_stages=2,
        zero_stage=2,
        micro_batch=1,
    ),
    case("llama", SGD, 2, 2, 2, engine="torch", zero_stage=3, sequence_parallel=True, compile="block"),
    case("gpt", SGD, 1, 2, 4, engine="torch", schedule="gpipe", zero_stage=3, data_replicas=2, micro_batch=1),
]

# Experts, replicated and over the expert axis.
EXPERT_LAYOUTS = [
    case("experts", ADAMW, 1, 1, 1, zero_stage=1, recompute="block"),
    case("experts", SGD, 1, 1, 2, zero_stage=0, expert=2),
    case("capacity", ADAMW, 1, 1, 2, zero_stage=1, expert=2),
    case("switch", SGD, 1, 1, 2, zero_stage=2, expert=2, recompute="block"),
    case("capacity", SGD, 1, 1, 2, zero_stage=3),
    case("experts", ADAMW, 1, 1, 4, zero_stage=2, expert=2),
    case("switch", ADAMW, 1, 1, 4, zero_stage=1, expert=4, offload_optimizer=True, micro_batch=1),
    case("experts", SGD, 2, 1, 2, zero_stage=1, expert=2, sequence_parallel=True),
    case("capacity", ADAMW, 2, 1, 2, zero_stage=0, expert=2),
    case("experts", ADAMW, 1, 2, 2, zero_stage=1, expert=2, micro_batch=1),
    case("experts", SGD, 2, 2, 2, zero_stage=0, expert=2),
    case("switch", ADAMW, 2, 2, 2, zero_stage=1, expert=2, sequence_parallel=True, recompute="block"),
    case("experts", ADAMW, 1, 1, 1, engine="torch", recompute="block", zero_stage=1),
    case("experts", ADAMW, 1, 1, 2, engine="torch", zero_stage=3),
    case("experts", SGD, 1, 1, 2, engine="torch", expert=2, zero_stage=0, recompute="block"),
    case("capacity", ADAMW, 1, 1, 2, engine="torch", expert=2, zero_stage=2),
    case("switch", ADAMW, 1, 1, 2, engine="torch", expert=2, zero_stage=3),
    case("capacity", SGD, 1, 1, 4, engine="torch", expert=4, zero_stage=3, micro_batch=1),
    case("experts", ADAMW, 1, 1, 4, engine="torch", expert=2, zero_stage=3, recompute="selective"),
    case("experts", SGD, 1, 1, 4, engine="torch", expert=2, zero_stage=1, data_replicas=2),
    case("capacity", ADAMW, 2, 1, 1, engine="torch"),
    case("experts", SGD, 2, 1, 1, engine="torch", sequence_parallel=True, recompute="block"),
    case("switch", SGD, 2, 1, 2, engine="torch", expert=2, sequence_parallel=True, zero_stage=3),
    case("experts", ADAMW, 2, 1, 2, engine="torch", expert=2, zero_stage=2, offload_optimizer=True),
    case("experts", SGD, 1, 2, 2, engine="torch", expert=2, zero_stage=3),
    case("switch", ADAMW, 1, 2, 2, engine="torch", expert=2, schedule="zbv", zero_stage=2, micro_batch=1),
    # three axes
    case("experts", ADAMW, 2, 2, 2, engine="torch", expert=2, zero_stage=1),
    case("capacity", SGD, 1, 4, 1, engine="torch", schedule="gpipe"),  # the first of its stages has no expert
    case("capacity", SGD, 2, 2, 2, engine="torch", expert=2, schedule="gpipe", zero_stage=3, sequence_parallel=True),
    case("experts", SGD, 1, 1, 4, engine="torch", expert=4, zero_stage=2),
    case("biased", ADAMW, 1, 1, 2, engine="torch", expert=2, zero_stage=3),
    case("biased", SGD, 1, 1, 4, zero_stage=1, expert=4),
    case("tight", SGD, 1, 1, 2, zero_stage=0, expert=2, recompute="selective"),
    case("tight", ADAMW, 1, 1, 4, engine="torch", expert=4, zero_stage=1),
    # over the context axis, or over both
    case("experts", SGD, 1, 1, 1, context=2, expert=2, zero_stage=1),
    case("capacity", ADAMW, 1, 1, 1, engine="torch", context=2, expert=2, context_method="ulysses", zero_stage=3),
    case("switch", SGD, 1, 1, 2, engine="torch", context=2, expert=4, zero_stage=2),
    case("experts", ADAMW, 2, 1, 2, context=2, expert=2, zero_stage=2, sequence_parallel=True),
    case("capacity", SGD, 2, 1, 2, engine="torch", context=2, expert=4, zero_stage=3, sequence_parallel=True),
    case("switch", ADAMW, 1, 2, 2, engine="torch", context=2, expert=2, context_method="ulysses", zero_stage=1),
    case("experts", SGD, 2, 2, 1, context=2, expert=2, zero_stage=1, micro_batch=1),
]

# The context axis: every mask by both methods under both engines at degree 2 or 4, and with each other axis.
CONTEXT_LAYOUTS = [
    case("gpt", SGD, 1, 1, 1, context=2, zero_stage=0),
    case("qwen", ADAMW, 1, 1, 1, context=4, context_method="ulysses", zero_stage=3, recompute="block"),
    case("window", SGD, 1, 1, 1, context=4, zero_stage=2),
    case("window", SGD, 1, 1, 1, context=2, context_method="ulysses", zero_stage=1, recompute="selective"),
    case("documents", ADAMW, 1, 1, 1, context=2, zero_stage=3, recompute="selective"),
    case("documents", SGD, 1, 1, 1, context=4, context_method="ulysses", zero_stage=1),
    case("llama", SGD, 1, 1, 1, engine="torch", context=4, zero_stage=3),
    case("post", SGD, 1, 1, 1, engine="torch", context=2, context_method="ulysses", zero_stage=0),
    case("window", SGD, 1, 1, 1, engine="torch", context=2, zero_stage=3, recompute="block"),
    case("window", ADAMW, 1, 1, 1, engine="torch", context=4, context_method="ulysses", zero_stage=1),
    case("documents", SGD, 1, 1, 1, engine="torch", context=4, zero_stage=2, offload_optimizer=True),
    case("documents", SGD, 1, 1, 1, engine="torch", context=2, context_method="ulysses", zero_stage=0),
    # two axes
    case("parted", SGD, 2, 1, 1, context=2, zero_stage=1, sequence_parallel=True, recompute="selective"),
    case("qwen", SGD, 2, 1, 1, engine="torch", context=2, context_method="ulysses", zero_stage=3),
    case("parted", SGD, 1, 2, 1, context=2, context_method="ulysses", zero_stage=0),
    case("documents", SGD, 1, 2, 1, engine="torch", context=2, schedule="zbv", zero_stage=2, micro_batch=1),
    case("post", SGD, 1, 1, 2, context=2, zero_stage=2),
    case("parted", SGD, 1, 1, 2, engine="torch", context=2, context_method="ulysses", zero_stage=3, data_replicas=2),
    # three axes
    case("parted", SGD, 2, 2, 1, context=2, zero_stage=1, sequence_parallel=True),
    case("window", SGD, 2, 1, 2, engine="torch", context=2, zero_stage=3, sequence_parallel=True, recompute="block"),
    case("documents", SGD, 1, 2, 2, engine="torch", context=2, context_method="ulysses", zero_stage=1, micro_batch=1),
    case("qwen", ADAMW, 2, 2, 1, engine="torch", context=2, schedule="dualpipev", zero_stage=2, micro_batch=1),
]

# Prefixes, documents that batches tell, and positions that begin anew with each, on every axis under both engines.
PREFIX_LAYOUTS = [
    case("prefix", SGD, 1, 1, 1, zero_stage=1, recompute="block"),
    case("marked", ADAMW, 1, 1, 2, zero_stage=2, recompute="selective"),
    case("prefix", SGD, 2, 1, 1, engine="torch", sequence_parallel=True),
    case("marked", SGD, 2, 1, 1, zero_stage=0, sequence_parallel=True),
    case("marked", SGD, 1, 2, 1, zero_stage=1),
    case("prefix", ADAMW, 1, 2, 1, engine="torch", zero_stage=2, schedule="zbv", micro_batch=1),
    case("prefix", SGD, 1, 1, 1, context=2, zero_stage=1),
    case("marked", SGD, 1, 1, 1, engine="torch", context=2, zero_stage=3),
    case("prefix", SGD, 1, 1, 1, engine="torch", context=2, context_method="ulysses", zero_stage=0),
    case("marked", ADAMW, 1, 1, 1, context=4, zero_stage=2),
    case("prefix", SGD, 1, 1, 1, engine="torch", context=4, zero_stage=3, recompute="block"),
    case("marked", SGD, 1, 1, 1, context=2, context_method="ulysses", zero_stage=3),
    case("prefix", SGD, 2, 2, 2, engine="torch", zero_stage=2, sequence_parallel=True),
    case("marked", SGD, 2, 2, 2, zero_stage=1, sequence_parallel=True, recompute="block"),
    case("prefix", SGD, 2, 2, 1, context=2, zero_stage=1, sequence_parallel=True),
    case("marked", SGD, 1, 2, 2, engine="torch", context=2, zero_stage=3, context_method="ulysses", micro_batch=1),
]

# Every objective on three axes and at some smaller layout, under both engines.
OBJECTIVE_LAYOUTS = [
    case("llama", SGD, 2, 2, 2, engine="torch", zero_stage=2, sequence_parallel=True, objective="prefix_lm"),
    case("gpt", SGD, 1, 2, 1, zero_stage=1, objective="prefix_lm"),
    case("gpt", SGD, 2, 2, 2, zero_stage=1, objective="masked_lm"),
    case("llama", SGD, 1, 1, 1, engine="torch", context=2, zero_stage=3, objective="masked_lm"),
    case("llama", ADAMW, 2, 2, 2, engine="torch", zero_stage=3, objective="span_corruption"),
    case("qwen", SGD, 1, 1, 1, context=2, zero_stage=1, objective="span_corruption"),
    case("qwen", SGD, 2, 2, 2, zero_stage=1, sequence_parallel=True, objective="ul2"),
    case("llama", SGD, 2, 1, 1, engine="torch", objective="ul2"),
    case("llama", SGD, 2, 2, 2, zero_stage=0, objective="codegen2"),
    case("gpt", SGD, 1, 1, 2, engine="torch", zero_stage=3, objective="codegen2"),
    case("llama", SGD, 2, 2, 2, engine="torch", zero_stage=2, micro_batch=1, objective="fill_in_the_middle"),
    case("gpt", SGD, 1, 1, 1, context=2, context_method="ulysses", zero_stage=1, objective="fill_in_the_middle"),
    case("t5", SGD, 2, 2, 2, engine="torch", zero_stage=2, objective="encoder_decoder"),
    case("first", SGD, 1, 2, 1, zero_stage=1, objective="encoder_decoder"),
    case("llama", SGD, 2, 2, 2, engine="torch", zero_stage=1, micro_batch=2, objective="reweighted"),
    case("gpt", SGD, 1, 1, 1, context=2, zero_stage=1, micro_batch=4, objective="reweighted"),
    case("llama", ADAMW, 1, 2, 2, zero_stage=1, objective="reweighted"),
    case("gpt", SGD, 2, 2, 2, engine="torch", zero_stage=1, objective="masked_and_causal"),
    case("llama", SGD, 1, 1, 2, zero_stage=2, objective="masked_and_causal"),
]

EVERY_LAYOUT = LAYOUTS + TORCH_LAYOUTS + EXPERT_LAYOUTS + CONTEXT_LAYOUTS + PREFIX_LAYOUTS + OBJECTIVE_LAYOUTS

QUICK = cover(EVERY_LAYOUT, facets, lambda layout: 8 + layout.world_size)
"""What `make test` runs of them; `make test-all` and `make layouts` run all."""

DEGREES = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2)]
DENSE = [name for name, model in DIALECTS.items() if not model.moe.experts]
PRODUCT = [
    case(dialect, optimizer, *degrees, zero_stage=zero, sequence_parallel=cut, recompute=recompute)
    for degrees in DEGREES
    for zero in ((0, 1) if degrees[1] > 1 else (0, 1, 2, 3))
    for cut in ((False, True) if degrees[0] > 1 else (False,))
    for recompute in ("none", "block", "selective")
    for dialect in DENSE
    for optimizer in (ADAMW, SGD)
]

TORCH_PRODUCT = [
    case(dialect, SGD, *degrees, engine="torch", zero_stage=zero, sequence_parallel=cut, micro_batch=1, **options)  # type: ignore[arg-type]
    for degrees in DEGREES[1:]
    for options in (
        [{"schedule": name, "virtual_stages": 1 if found.stages else 2} for name, found in SCHEDULES.items()]
        if degrees[1] > 1
        else [{}]
    )
    for zero in (0, 2, 3)
    if zero < 3 or degrees[1] == 1 or not SCHEDULES[str(options["schedule"])].splits_backward
    for cut in ((False, True) if degrees[0] > 1 else (False,))
    for dialect in ("llama", "gpt", "post", "qwen")
]

CONTEXT_PRODUCT = [
    case(
        dialect,
        SGD,
        *degrees,
        engine=engine,
        context=context,
        context_method=method,
        zero_stage=zero,
        sequence_parallel=cut,
        micro_batch=1 if degrees[1] > 1 else 2,
    )
    for engine in ("deepspeed", "torch")
    for context in (2, 4)
    for method in ("ring", "ulysses")
    for degrees in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2))
    if context * math.prod(degrees) <= 8 and (method == "ring" or context * degrees[0] <= 4)
    for zero in ((0, 1) if degrees[1] > 1 else (0, 3))
    for cut in ((False, True) if degrees[0] > 1 else (False,))
    for dialect in ("qwen", "window", "parted")
]

Reference = Callable[[Case], jobs.Curve]


@pytest.fixture(scope="module")
def reference(pools: Pools) -> Reference:
    """The curve of one process, each computed once."""
    known: dict[tuple[str, str, str, int], jobs.Curve] = {}

    def of(case: Case) -> jobs.Curve:
        # what routers ask for, and drop, is a matter of a micro-batch: there the reference has the same ones
        rows = case.micro_batch if case.by_micro_batch else SEQUENCES
        key = (case.dialect, case.objective, case.optimizer.name, rows)
        if key not in known:
            known[key] = pools.run(1, jobs.train, case=replace(case.reference, micro_batch=rows))[0]
        return known[key]

    return of


def assert_matches_single_process(case: Case, pools: Pools, reference: Reference) -> None:
    """Train at a layout and in one process; compare all that the engine reports, on every rank."""
    expected = reference(case)
    curves = pools.run(case.world_size, jobs.train, case=case)
    for rank, curve in enumerate(curves):
        assert curve.losses == curves[0].losses, f"rank {rank} reports another loss than rank 0"
        assert curve.norms == curves[0].norms, f"rank {rank} reports another gradient norm than rank 0"
        assert curve.validation == curves[0].validation, f"rank {rank} reports another validation loss than rank 0"
        assert all(map(torch.equal, curve.logits, curves[0].logits)), f"rank {rank} has other logits than rank 0"
    found = curves[0]
    assert len(found.losses) == len(expected.losses) == 20
    assert found.losses == pytest.approx(expected.losses, rel=LOSS_TOLERANCE, abs=0)
    assert found.norms == pytest.approx(expected.norms, rel=NORM_TOLERANCE, abs=0)
    assert found.validation == pytest.approx(expected.validation, rel=LOSS_TOLERANCE, abs=0)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= NORM_TOLERANCE * float(theirs.abs().max())
    assert not any(found.skipped)
    assert_routes_alike(curves, expected)


def assert_routes_alike(curves: list[jobs.Curve], expected: jobs.Curve) -> None:
    """The same layers report the same routing; rounding may send one token in a hundred elsewhere."""
    for rank, curve in enumerate(curves):
        assert curve.routing == curves[0].routing, f"rank {rank} reports another routing than rank 0"
    for ours, theirs in zip(curves[0].routing, expected.routing, strict=True):
        assert [layer.layer for layer in ours] == [layer.layer for layer in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert sum(one.load) == pytest.approx(1.0)
            assert one.load == pytest.approx(other.load, abs=0.02)
            assert one.dropped == pytest.approx(other.dropped, abs=0.1)
            for figure in ("entropy", "z", "balance"):
                assert getattr(one, figure) == pytest.approx(getattr(other, figure), rel=1e-2), figure


@pytest.mark.parametrize("layout", others_slow(EVERY_LAYOUT, QUICK), ids=str)
def test_matches_single_process(layout: Case, pools: Pools, reference: Reference) -> None:
    assert_matches_single_process(layout, pools, reference)


@pytest.mark.slow
@pytest.mark.parametrize("layout", PRODUCT + TORCH_PRODUCT + CONTEXT_PRODUCT, ids=str)
def test_product_matches_single_process(layout: Case, pools: Pools, reference: Reference) -> None:
    assert_matches_single_process(layout, pools, reference)


def test_the_reference_learns_and_its_steps_differ(reference: Reference) -> None:
    """Otherwise agreement would say little: losses fall, the norm is clipped in some steps, each step has its loss."""
    for dialect in DIALECTS:
        for optimizer in (ADAMW, SGD):
            curve = reference(Case(dialect, optimizer=optimizer))
            assert curve.validation[1] < curve.validation[0] < curve.losses[0]
            assert max(curve.norms) > optimizer.clip_norm
            assert len(set(curve.losses)) == 20


AXES = {
    "tensor": lambda c: c.parallel.tensor > 1,
    "pipeline": lambda c: c.parallel.pipeline > 1,
    "data": lambda c: c.parallel.data > 1,
    "all three": lambda c: c.world_size == 8,
}
OPTIONS = {
    "recompute=none": lambda c: c.parallel.recompute == "none",
    "recompute=block": lambda c: c.parallel.recompute == "block",
    "recompute=selective": lambda c: c.parallel.recompute == "selective",
    "zero 0": lambda c: c.parallel.zero_stage == 0,
    "zero 1": lambda c: c.parallel.zero_stage == 1,
    "offload": lambda c: c.parallel.offload_optimizer,
    "tied": lambda c: c.model.tied_embeddings,
    "untied": lambda c: not c.model.tied_embeddings,
    "grouped-query": lambda c: c.model.kv_heads > 0,
    "learned positions": lambda c: c.model.positions == "learned",
    "rotary": lambda c: c.model.positions == "rotary",
    "biases": lambda c: c.model.bias,
    "post-norm": lambda c: c.model.norm_position == "post",
    "query-key norm": lambda c: c.model.qk_norm,
    "dropout": lambda c: c.model.dropout > 0,
    "attention dropout": lambda c: c.model.attention_dropout > 0,
    "dropout and recompute": lambda c: c.model.dropout > 0 and c.parallel.recompute != "none",
    "adamw": lambda c: c.optimizer.name == "adamw",
    "sgd": lambda c: c.optimizer.name == "sgd",
}
SEQUENCE_PARALLEL = {
    "dropout": lambda c: c.model.dropout > 0,
    "query-key norm": lambda c: c.model.qk_norm,
    "learned positions": lambda c: c.model.positions == "learned",
    "biases": lambda c: c.model.bias,
    "block": lambda c: c.parallel.recompute == "block",
    "selective": lambda c: c.parallel.recompute == "selective",
    "pipeline": lambda c: c.parallel.pipeline > 1,
    "data": lambda c: c.parallel.data > 1,
}


def test_the_torch_list_has_every_schedule_and_data_mesh() -> None:
    for schedule in SCHEDULES:
        for degree in (2, 4):
            assert any(c.parallel.schedule == schedule and c.parallel.pipeline == degree for c in TORCH_LAYOUTS), (
                schedule
            )
    for zero in range(4):
        for axis in ("data", "pipeline"):
            assert any(AXES[axis](c) and c.parallel.zero_stage == zero for c in TORCH_LAYOUTS), (axis, zero)
    assert sum(AXES["all three"](c) for c in TORCH_LAYOUTS) >= 4


MASKS = {
    "causal": lambda c: not c.model.attention_window and not c.model.document_mask,
    "window": lambda c: c.model.attention_window > 0,
    "documents": lambda c: c.model.document_mask,
}


def test_the_context_list_has_every_mask_by_every_method_under_every_engine() -> None:
    for mask, has in MASKS.items():
        seen = {(c.parallel.context_method, c.parallel.engine) for c in CONTEXT_LAYOUTS if has(c)}
        assert len(seen) == 4, mask
        for part in ("context_method", "engine"):
            degrees = {(getattr(c.parallel, part), c.parallel.context) for c in CONTEXT_LAYOUTS if has(c)}
            assert len(degrees) == 4, (mask, part)
    for axis in ("tensor", "pipeline", "data"):
        assert {c.parallel.context_method for c in CONTEXT_LAYOUTS if AXES[axis](c)} == {"ring", "ulysses"}, axis
        assert {c.parallel.engine for c in CONTEXT_LAYOUTS if AXES[axis](c)} == {"deepspeed", "torch"}, axis


def test_every_objective_is_trained_on_three_axes_under_both_engines() -> None:
    for objective in OBJECTIVES:
        seen = [c for c in OBJECTIVE_LAYOUTS if c.objective == objective]
        assert any(AXES["all three"](c) for c in seen), objective
        assert {c.parallel.engine for c in seen} == {"deepspeed", "torch"}, objective


def test_the_quick_ones_show_together_what_all_show() -> None:
    assert len(QUICK) <= len(EVERY_LAYOUT) / 2
    assert set().union(*map(facets, QUICK)) == set().union(*map(facets, EVERY_LAYOUT))


def test_the_list_of_experts_has_every_way_to_balance_at_both_degrees() -> None:
    seen = {
        (c.parallel.expert, c.model.moe.capacity > 0, c.model.moe.bias_rate > 0, c.model.moe.shared_experts > 0)
        for c in EXPERT_LAYOUTS
    }
    for degree in (2, 4):
        for capacity in (False, True):
            for biases in (False, True):
                assert (degree, capacity, biases, True) in seen, (degree, capacity, biases)
    for engine in ("deepspeed", "torch"):
        for axis, lies_on in AXES.items():
            assert any(c.parallel.engine == engine and c.parallel.expert > 1 and lies_on(c) for c in EXPERT_LAYOUTS), (
                axis
            )
    mixes = [
        c
        for c in EVERY_LAYOUT
        if c.world_size == 8
        and sum(getattr(c.parallel, axis) > 1 for axis in ("tensor", "pipeline", "data", "context", "expert")) >= 3
    ]
    assert len(mixes) >= 12


def test_the_list_covers_each_option_with_each_axis() -> None:
    for axis, lies_on in AXES.items():
        for option, has in OPTIONS.items():
            assert any(lies_on(c) and has(c) for c in LAYOUTS), f"no layout with {axis} has {option}"
    for option, has in SEQUENCE_PARALLEL.items():
        assert any(c.parallel.sequence_parallel and has(c) for c in LAYOUTS), f"not with sequence parallelism: {option}"
    for degrees in DEGREES:
        assert any((c.parallel.tensor, c.parallel.pipeline, c.parallel.data) == degrees for c in LAYOUTS), degrees
    for zero in (2, 3):
        for axis in ("tensor", "data"):
            assert any(AXES[axis](c) and c.parallel.zero_stage == zero for c in LAYOUTS), (axis, zero)
