"""A stand-in for torch.cuda on a machine without one, so that megatron-core's GPTModel can be an oracle on CPU.

For tests only: it makes code that asks for `device="cuda"` work on CPU tensors, and promises nothing about speed,
streams or random states. What it replaces is put back on leaving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import megatron.core.tensor_parallel.random as megatron_random
import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


class CudaMeansCpu(TorchFunctionMode):
    """Maps `device="cuda"` in any torch call, and `tensor.cuda()`, to the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        args = tuple(_on_cpu(value) for value in args)
        kwargs = {name: _on_cpu(value) if name == "device" else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _on_cpu(value: Any) -> Any:
    named = isinstance(value, str) and value.split(":")[0] == "cuda"
    return _CPU if named or (isinstance(value, torch.device) and value.type == "cuda") else value


@contextmanager
def cuda_stand_in() -> Iterator[None]:
    """Within it, code written for CUDA finds a device: the CPU."""
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (torch.cuda, "current_device", lambda: _CPU),
        (torch.cuda, "get_rng_state", lambda *_, **__: torch.get_rng_state()),
        (torch.cuda, "set_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),
        (torch.cuda, "manual_seed", torch.manual_seed),
        (megatron_random, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state()),
        (megatron_random, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),
    ]
    with ExitStack() as stack:
        for place, name, substitute in replaced:
            stack.enter_context(patch.object(place, name, substitute))
        stack.enter_context(CudaMeansCpu())
        yield
