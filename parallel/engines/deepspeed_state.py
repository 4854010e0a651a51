"""DeepSpeed's state, found where each ZeRO stage keeps it: which elements of a parameter this rank owns, as live views.

Relied on (and listed by the contract test): `_hp_mapping` of ZeRO 1 and 2 and of the bf16 optimizer, `grad_position`,
`fp32_partitioned_groups_flat` and `persistent_parameters` of ZeRO 3, `update_lp_params`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.engines.base import ensure_state, moments


@dataclass(frozen=True)
class Held:
    """A flat range of a local parameter: float32 master weights and moments, 1-D views that begin at `start`."""

    start: int
    master: Tensor
    moments: dict[str, Tensor]


def ensure_moments(engine: Any, zero_stage: int) -> None:
    """Create the optimizer's moments before the first step, so that they can be saved, loaded and linked."""
    optimizer = engine.basic_optimizer
    if zero_stage < 3:
        ensure_state(optimizer)
        return
    inner, groups = optimizer, engine.optimizer
    for index, flat in enumerate(groups.fp32_partitioned_groups_flat):
        if inner.state[flat]:
            continue
        group = inner.param_groups[groups.sub_group_to_group_id[index]]
        kept = group["params"]
        group["params"] = [flat]
        ensure_state(inner)
        group["params"] = kept


def held_ranges(engine: Any, parameter: nn.Parameter, zero_stage: int) -> Iterator[Held]:
    """The ranges of a parameter whose master weights this rank keeps: all at ZeRO 0, at most one above."""
    if zero_stage == 0:
        state = moments(engine.basic_optimizer, parameter)
        yield Held(0, parameter.detach().view(-1), {key: value.view(-1) for key, value in state.items()})
    elif zero_stage < 3:
        yield from _mapped_range(engine, parameter)
    else:
        yield from _partitioned_range(engine, parameter)


def _mapped_range(engine: Any, parameter: nn.Parameter) -> Iterator[Held]:
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:  # another data rank's partition holds all of it
        return
    flat = engine.basic_optimizer.param_groups[mapping.param_group_index]["params"][0]
    address = mapping.hp_fragment_address
    window = slice(address.start, address.start + address.numel)
    state = {key: value[window] for key, value in moments(engine.basic_optimizer, flat).items()}
    yield Held(mapping.lp_fragment_address.start, mapping.hp_fragment.detach(), state)


def _partitioned_range(engine: Any, parameter: nn.Parameter) -> Iterator[Held]:
    optimizer = engine.optimizer
    group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = parameter.ds_tensor.ds_numel * torch.distributed.get_rank(optimizer.dp_process_group)
    count = min(count, parameter.ds_numel - start)  # the last rank's share is padded
    if count <= 0:
        return
    flat = optimizer.fp32_partitioned_groups_flat[group]
    window = slice(offset, offset + count)
    state = {key: value[window] for key, value in moments(engine.basic_optimizer, flat).items()}
    yield Held(start, flat.detach()[window], state)


@torch.no_grad()
def refresh_model(engine: Any, zero_stage: int) -> None:
    """After master weights were written: give the model their rounded values on every rank."""
    if zero_stage == 0:
        return
    optimizer = engine.optimizer
    if zero_stage < 3:
        optimizer.update_lp_params()
        return
    for index in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    if optimizer.persistent_parameters:
        first = optimizer.persistent_parameters[0]
        first.partition(optimizer.persistent_parameters)
        first.all_gather(optimizer.persistent_parameters)
