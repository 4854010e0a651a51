"""Compiled layers: one graph without a break for all of them, and the gradients of eager ones, the embedding's included.

Layouts over many steps are in the list of test_parity. Code is generated (inductor) in one test here and elsewhere left out
(aot_eager): that takes a C++ compiler 15 s for each graph.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.compiler import reset

from models.decoder import Decoder, DecoderLayer, initialise_blocks
from models.layers import PlainLayers
from models.random import Clock
from parallel.config import ParallelConfig
from tests.helpers.pool import Pools
from tests.parallel.cases import DIALECTS, LENGTH, VOCABULARY, Case
from tests.parallel.gradients import assert_same_gradients, gradients

TOLERANCE = 1e-5  # float32: some hundred additions in another order, and the rounding of weights


def layout(dialect: str, engine: str, tensor: int, pipeline: int, data: int, **options: object) -> Case:
    return Case(dialect, ParallelConfig(engine, tensor, pipeline, data, compile="block", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", ["llama", "gpt", "post", "qwen"])
def test_a_layer_is_one_graph(dialect: str) -> None:
    reset()
    decoder = Decoder(DIALECTS[dialect], PlainLayers(), 2, 3)
    (layer,) = decoder.blocks
    assert isinstance(layer, DecoderLayer)
    told = torch._dynamo.explain(layer._arithmetic)(torch.ones(LENGTH, 2, 32), torch.tensor(0))
    assert (told.graph_count, told.graph_break_count) == (1, 0), told.break_reasons
    names = [str(node.target) for graph in told.graphs for node in graph.graph.nodes]
    assert not any("cos" in name for name in names), "the table of rotations is a constant, not made in every step"


@pytest.mark.parametrize("recompute", ["none", "block", "selective"])
def test_all_layers_and_samples_share_one_compilation(recompute: str) -> None:
    """Dropout masks differ between layers and samples, so what they are a function of must be an input of the graph."""
    reset()
    counter = CompileCounterWithBackend("aot_eager")
    found = []
    for compiled in (False, True):
        clock = Clock(7)
        decoder = Decoder(DIALECTS["qwen"], PlainLayers(clock=clock), recompute=recompute)
        initialise_blocks(iter(decoder.blocks), 7)
        for layer in decoder.blocks:
            if compiled and isinstance(layer, DecoderLayer):
                layer.compile_arithmetic(counter)
        tokens = torch.arange(2 * LENGTH).view(2, LENGTH) % VOCABULARY
        losses = []
        for step in range(2):
            clock.start(10 * step)
            for _ in range(2):
                loss = decoder(tokens).square().mean()
                loss.backward()
                losses.append(loss.detach())
        found.append(losses)
    eager, ours = found
    assert len({float(loss) for loss in eager}) == 4, "each sample has a mask of its own"
    torch.testing.assert_close(ours, eager)
    assert counter.frame_count == 1


LAYOUTS = [
    layout("qwen", "torch", 1, 1, 1, recompute="block"),
    layout("llama", "torch", 1, 1, 2, zero_stage=3),
    layout("gpt", "torch", 1, 2, 1),
    layout("llama", "torch", 2, 1, 1),
    layout("qwen", "torch", 2, 1, 1, sequence_parallel=True),
    layout("llama", "deepspeed", 2, 1, 1, sequence_parallel=True, zero_stage=2),
    layout("gpt", "deepspeed", 1, 2, 1),
]


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_gradients_of_compiled_layers_are_those_of_eager_ones(case: Case, pools: Pools) -> None:
    """torch 2.13 gives the embedding a gradient of zero, and says nothing, where a compiled layer is handed a collective's
    tensor before it has arrived."""
    eager = replace(case, parallel=replace(case.parallel, compile="none"))
    assert_same_gradients(gradients(pools, case), gradients(pools, eager), TOLERANCE)


def test_gradients_of_generated_code_are_those_of_eager_layers(pools: Pools) -> None:
    case = replace(layout("llama", "torch", 1, 1, 1), backend="inductor")
    assert_same_gradients(gradients(pools, case), gradients(pools, case.reference), TOLERANCE)
