"""State at any layout: initial weights, what is saved, and what another layout makes of it, all bitwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.config import count_parameters
from parallel.config import ParallelConfig, PrecisionConfig
from tests.helpers.pool import Pools
from tests.parallel import state_jobs
from tests.parallel.cases import ADAMW, SGD, Case
from tests.parallel.covering import cover, others_slow, plain_facets
from tests.parallel.state_jobs import Resumed, assemble

BF16 = PrecisionConfig("bf16")


def case(dialect: str, tensor: int, pipeline: int, data: int, **options: object) -> Case:
    optimizer, micro_batch = options.pop("optimizer", ADAMW), options.pop("micro_batch", 2)
    precision = options.pop("precision", PrecisionConfig("fp32"))
    engine = str(options.pop("engine", "deepspeed"))
    parallel = ParallelConfig(engine, tensor, pipeline, data, **options)  # type: ignore[arg-type]
    return Case(dialect, parallel, precision, optimizer, micro_batch)  # type: ignore[arg-type]


def price(layout: Case) -> int:
    """What a layout takes, in units of one process of it."""
    return 2 + layout.world_size


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    memory = ("router.bias", "router.frequency")  # what routers remember is no parameter
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("optimizer.") and not name.endswith(memory)
    }


INITIAL = [
    case("llama", 1, 1, 1, zero_stage=3),
    case("gpt", 2, 1, 1, zero_stage=0),
    case("qwen", 2, 1, 1, zero_stage=1, sequence_parallel=True),
    case("post", 4, 1, 1, zero_stage=0),
    case("gpt", 1, 2, 1, zero_stage=0),
    case("qwen", 1, 4, 1, zero_stage=1),
    case("post", 1, 1, 2, zero_stage=0),
    case("llama", 1, 1, 2, zero_stage=1),
    case("gpt", 1, 1, 2, zero_stage=2),
    case("qwen", 1, 1, 2, zero_stage=3),
    case("post", 1, 1, 4, zero_stage=3, offload_optimizer=True),
    case("gpt", 2, 1, 2, zero_stage=3),
    case("llama", 2, 2, 2, zero_stage=1),
    case("gpt", 2, 2, 2, zero_stage=0),
    case("llama", 1, 1, 2, zero_stage=3, precision=BF16),
    case("gpt", 2, 2, 2, zero_stage=1, precision=BF16),
    case("window", 1, 1, 1, context=2, zero_stage=3),
    case("experts", 1, 1, 2, expert=2, zero_stage=0),
    case("capacity", 1, 1, 2, expert=2, zero_stage=2, precision=BF16),
    case("switch", 1, 2, 2, expert=2, zero_stage=1),
    case("experts", 2, 1, 2, engine="torch", expert=2, zero_stage=3),
    case("capacity", 1, 1, 4, engine="torch", expert=2, zero_stage=1, data_replicas=2, precision=BF16),
    case("gpt", 2, 1, 1, engine="torch", context=2, zero_stage=2),
    case("llama", 1, 1, 2, engine="torch", zero_stage=0),
    case("qwen", 1, 1, 4, engine="torch", zero_stage=3, data_replicas=2),
    case("post", 2, 1, 2, engine="torch", zero_stage=2, offload_optimizer=True),
    case("gpt", 1, 2, 1, engine="torch", schedule="zbv"),
    case("gpt", 2, 2, 2, engine="torch", schedule="interleaved_1f1b", virtual_stages=2, zero_stage=3, precision=BF16),
]


@pytest.mark.parametrize("layout", INITIAL, ids=str)
def test_initial_weights_are_those_of_one_process_bitwise(layout: Case, pools: Pools) -> None:
    """And what all ranks would save covers every logical tensor exactly once, which `assemble` checks."""
    found = assemble(pools.run(layout.world_size, state_jobs.saved_pieces, case=layout, steps=0))
    expected = assemble(pools.run(1, state_jobs.saved_pieces, case=layout.reference, steps=0))
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    assert sum(tensor.numel() for tensor in weights(found).values()) == count_parameters(layout.model)
    for name, tensor in expected.items():
        assert tensor.dtype == torch.float32
        assert same_bits(found[name], tensor), name
        assert name.startswith("optimizer.") == (not tensor.any()) or tensor.dim() == 1, f"{name} is all zero"


def test_initial_weights_depend_on_the_seed_and_the_name(pools: Pools) -> None:
    one = case("llama", 1, 1, 1).reference
    first, second = (
        weights(assemble(pools.run(1, state_jobs.saved_pieces, case=replace(one, seed=seed), steps=0)))
        for seed in (1, 2)
    )
    drawn = {name: tensor for name, tensor in first.items() if tensor.dim() > 1}
    assert all(not torch.equal(tensor, second[name]) for name, tensor in drawn.items())
    assert len({tensor.sum().item() for tensor in drawn.values()}) == len(drawn), "two tensors have the same numbers"


@pytest.mark.parametrize(
    ("layout", "limit"),
    [
        # a share of a matrix on the tensor axis
        (case("llama", 2, 1, 1), 0.5),
        (case("gpt", 4, 1, 1), 0.25),
        # ZeRO 3 makes one whole layer at a time and cuts it at once
        (case("llama", 1, 1, 4, zero_stage=3), 1.0),
        (case("llama", 2, 1, 2, zero_stage=3), 0.5),
        (case("llama", 1, 1, 4, zero_stage=3, engine="torch"), 0.25),
        (case("llama", 2, 1, 2, zero_stage=3, engine="torch"), 0.25),
    ],
    ids=str,
)
def test_no_rank_ever_holds_the_whole_model(layout: Case, limit: float, pools: Pools) -> None:
    """While the model is built and its weights are written: the largest tensor made, in units of the largest matrix, and
    the parameters held at the end, in units of the model."""
    wide = replace(layout, wide=True)
    share = wide.parallel.tensor * (wide.parallel.data if wide.parallel.zero_stage == 3 else 1)
    largest = wide.model.padded_vocab * wide.model.hidden_size
    for made, held in pools.run(layout.world_size, state_jobs.allocations, case=wide):
        assert made <= limit * largest
        assert held <= 1.05 * count_parameters(wide.model) / share


SAME = [
    case("post", 1, 1, 1, zero_stage=1).reference,
    replace(case("post", 1, 1, 1, zero_stage=1).reference, precision=BF16),
    replace(case("gpt", 1, 1, 1).reference, precision=PrecisionConfig("fp16", initial_loss_scale_power=24)),
    case("gpt", 1, 1, 2, zero_stage=0),
    case("qwen", 1, 1, 2, zero_stage=1, optimizer=SGD),
    case("post", 1, 1, 2, zero_stage=2, offload_optimizer=True),
    case("llama", 1, 1, 2, zero_stage=3),
    case("gpt", 1, 1, 2, zero_stage=3, precision=BF16),
    case("gpt", 2, 1, 1, zero_stage=1, precision=BF16),
    case("gpt", 1, 2, 1, zero_stage=0),
    case("llama", 1, 2, 1, zero_stage=1, precision=BF16),
    case("qwen", 2, 2, 2, zero_stage=1, sequence_parallel=True),
    case("gpt", 1, 1, 2, zero_stage=0, engine="torch"),
    case("llama", 1, 1, 2, zero_stage=3, engine="torch", precision=BF16, offload_optimizer=True),
    case("post", 1, 1, 4, zero_stage=2, engine="torch", data_replicas=2),
    case("gpt", 1, 1, 2, zero_stage=3, engine="torch", precision=PrecisionConfig("fp16", initial_loss_scale_power=24)),
    case("gpt", 1, 2, 2, zero_stage=2, engine="torch", schedule="dualpipev", optimizer=SGD, micro_batch=1),
    case("parted", 1, 1, 1, zero_stage=1, context=2),
    case("parted", 1, 2, 1, zero_stage=2, engine="torch", context=2, context_method="ulysses", optimizer=SGD),
]


@pytest.mark.parametrize("layout", others_slow(SAME, cover(SAME, plain_facets, price)), ids=str)
def test_the_same_layout_goes_on_bitwise(layout: Case, pools: Pools, tmp_path: Path) -> None:
    straight, resumed = _save_and_load(layout, layout, pools, tmp_path)
    for one, other in zip(straight, resumed, strict=True):
        assert one.loaded == other.loaded, "all state bits of this rank, the model's weights included"
        # as text, since a norm that overflowed is not equal to itself
        assert repr((one.losses, one.norms, one.skipped)) == repr((other.losses, other.norms, other.skipped))
        assert one.state == other.state


OTHERS = [
    (case("llama", 1, 1, 1).reference, case("llama", 2, 2, 2, zero_stage=1)),
    (case("gpt", 2, 2, 2, zero_stage=1, sequence_parallel=True), case("gpt", 1, 1, 1).reference),
    (case("gpt", 1, 1, 2, zero_stage=3), case("gpt", 2, 1, 1, zero_stage=1)),
    (case("qwen", 1, 2, 1, zero_stage=1), case("qwen", 1, 1, 2, zero_stage=2)),
    (case("post", 1, 1, 4, zero_stage=3, offload_optimizer=True), case("post", 1, 2, 2, zero_stage=0)),
    (case("gpt", 2, 2, 2, zero_stage=0), case("gpt", 1, 1, 4, zero_stage=3)),
    (case("llama", 2, 1, 2, zero_stage=2), case("llama", 1, 4, 1, zero_stage=1)),
    (case("post", 4, 1, 1, zero_stage=0, optimizer=SGD), case("post", 1, 1, 2, zero_stage=1, optimizer=SGD)),
    (case("gpt", 1, 1, 2, zero_stage=3, precision=BF16), case("gpt", 1, 2, 2, zero_stage=1, precision=BF16)),
    (case("llama", 1, 1, 1, precision=BF16).reference, case("llama", 1, 1, 2, zero_stage=2, precision=BF16)),
    (case("post", 2, 2, 2, zero_stage=1, precision=BF16), case("post", 2, 1, 1, zero_stage=3, precision=BF16)),
    # from engine to engine
    (case("gpt", 1, 1, 2, zero_stage=3), case("gpt", 1, 2, 2, engine="torch", zero_stage=3)),
    (case("qwen", 2, 1, 2, engine="torch", zero_stage=3), case("qwen", 1, 2, 2, zero_stage=1)),
    (case("post", 1, 2, 1, engine="torch", schedule="zbv"), case("post", 1, 1, 4, engine="torch", data_replicas=2)),
    (
        case("gpt", 2, 2, 2, engine="torch", schedule="interleaved_1f1b", virtual_stages=2, sequence_parallel=True),
        case("gpt", 1, 1, 1).reference,
    ),
    # from context to context
    (case("documents", 1, 1, 1, zero_stage=3, context=2), case("documents", 2, 1, 2, zero_stage=1)),
    (
        case("window", 1, 1, 2, engine="torch", zero_stage=3),
        case("window", 2, 1, 1, engine="torch", zero_stage=0, context=2, context_method="ulysses"),
    ),
    (case("parted", 1, 2, 1, zero_stage=1, context=2), case("parted", 1, 1, 1).reference),
]


def pair_facets(pair: tuple[Case, Case]) -> set[tuple[str, ...]]:
    """What each side of a pair shows, and from which engine to which it goes."""
    saved, loaded = pair
    sides = {(side, *facet) for side, one in (("saved", saved), ("loaded", loaded)) for facet in plain_facets(one)}
    return sides | {(saved.parallel.engine, loaded.parallel.engine)}


QUICK = cover(OTHERS, pair_facets, lambda pair: price(pair[0]) + price(pair[1]))


@pytest.mark.parametrize(("saved", "loaded"), others_slow(OTHERS, QUICK), ids=str)
def test_another_layout_loads_the_same_bits_and_goes_on(
    saved: Case, loaded: Case, pools: Pools, tmp_path: Path
) -> None:
    straight, resumed = _save_and_load(saved, loaded, pools, tmp_path)
    before, after = assemble([rank.parts for rank in straight]), assemble([rank.parts for rank in resumed])
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert same_bits(after[name], tensor), name
    tolerance = 1e-5 if saved.precision.name == "fp32" else 2.0**-8  # bf16 rounds otherwise where products are cut
    for rank in resumed:
        assert rank.losses == pytest.approx(straight[0].losses, rel=tolerance, abs=0)
        assert rank.state["applied_steps"] == straight[0].state["applied_steps"]


def _save_and_load(saved: Case, loaded: Case, pools: Pools, directory: Path) -> tuple[list[Resumed], list[Resumed]]:
    """(curves that went straight on after saving at one layout, curves of another layout that loaded)."""
    plan = {"directory": directory, "steps": 4, "further": 5}
    straight = pools.run(saved.world_size, state_jobs.train_and_save, case=saved, **plan)
    resumed = pools.run(loaded.world_size, state_jobs.load_and_train, case=loaded, **plan)
    return straight, resumed
