"""What a rank really allocates in a training step, storage by storage: what a plan's bytes are held to.

Every operator of a step passes through a dispatch mode, which notes each storage when it appears and when it is let go. So
views of one storage count once, and whatever keeps a tensor is found out: autograd, a checkpoint's closure, a schedule.
Whenever backward is about to begin, what has appeared in the step, is alive, and is neither a gradient nor a parameter that
was gathered, is activations."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parallel.engines.base import Batch, Engine
from parallel.engines.fsdp import FsdpEngine
from parallel.engines.pipeline import groups_of
from parallel.engines.torch import TorchEngine

GRADIENTS_OF_DEEPSPEED = (
    "fp32_groups_gradients_flat",
    "averaged_gradients",
    "all_grad_tensors",
    "grads_in_partition",
    "grad_partitions_flat_buffer",
)
"""Where its optimizers keep them (BF16, ZeRO 1 and 2, ZeRO 3), beside the parameters' own."""
LETS_GO = ("_release_ipg_buffers", "free_grad_in_param_list")
"""Methods of its ZeRO 1 and 2 that let gradients go: until then sums stand beside what is added to them, and the copy that
is stepped beside what it was made of."""


@dataclass(frozen=True)
class Counted:
    """Bytes of one rank. activations: at their most, of all micro-batches in flight. peak: most at once of what a step
    makes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


@dataclass(frozen=True)
class Entry:
    """A storage. origin: the operator that made it; shape, dtype: of the tensor that it was first seen in."""

    size: int
    origin: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Ledger:
    """Storages that have appeared since it was begun and are alive. known: those that were there before."""

    known: set[int] = field(default_factory=set)
    alive: dict[int, Entry] = field(default_factory=dict)
    now: int = 0
    peak: int = 0

    def begin(self, tensors: Iterable[Tensor]) -> None:
        """These are there already."""
        for tensor in tensors:
            for storage in _storages(tensor):
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    weakref.finalize(storage, self.known.discard, storage._cdata)

    def see(self, tensor: Tensor, origin: str) -> None:
        """Note the storage of a tensor, unless it is known."""
        for storage in _storages(tensor):
            key = storage._cdata
            if key in self.alive or key in self.known:
                continue
            self.alive[key] = Entry(storage.nbytes(), origin, tuple(tensor.shape), tensor.dtype)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        entry = self.alive.pop(key, None)
        self.now -= entry.size if entry else 0


class Watcher(TorchDispatchMode):
    """Tells a ledger of what every operator gives."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._ledger.see(leaf, str(func))
        return found


def count(engine: Engine, batch: Batch) -> tuple[Counted, list[Entry]]:
    """Bytes of a training step, whose engine has made one before, and what its activations are where there are most."""
    ledger = Ledger()
    ledger.begin(_tensors_alive())
    most: list[Entry] = []
    gradients: dict[int, int] = {}

    def note_gradients() -> None:
        nonlocal gradients
        passing = storages(on_their_way(engine))
        found = {key: size for key, size in storages(gradients_of(engine)).items() if key not in passing}
        gradients = max(gradients, found, key=_size)

    def note() -> None:
        nonlocal most
        note_gradients()
        apart = {*storages(gradients_of(engine)), *storages(gathered_in(engine))}
        kept = [entry for key, entry in list(ledger.alive.items()) if key not in apart]
        most = max(most, kept, key=lambda entries: sum(entry.size for entry in entries))

    hook = basic_optimizer(engine).register_step_pre_hook(lambda *_: note_gradients())
    with around_backward(note, note_gradients), before_letting_go(engine, note_gradients), Watcher(ledger):
        engine.step(batch, 1e-4)
    hook.remove()
    weights = storages(weights_of(engine))
    optimizer = {key: size for key, size in storages(optimizer_of(engine)).items() if key not in weights}
    kept = sum(entry.size for entry in most)
    return Counted(_size(weights), _size(gradients), _size(optimizer), kept, ledger.peak), most


def _size(found: dict[int, int]) -> int:
    return sum(found.values())


def storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Key -> bytes of the storages of some tensors, each once."""
    return {one._cdata: one.nbytes() for tensor in tensors if tensor is not None for one in _storages(tensor)}


def _storages(tensor: Tensor) -> list[Any]:
    tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    if tensor.device.type == "meta":
        return []
    return [tensor.untyped_storage()]


def _tensors_alive() -> list[Tensor]:
    gc.collect()
    with warnings.catch_warnings():  # some module warns of being looked at
        warnings.simplefilter("ignore")
        return [found for found in gc.get_objects() if isinstance(found, Tensor)]


@contextmanager
def around_backward(before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """Call these whenever backward is about to begin and when it has ended, whoever begins it."""
    kept = torch.autograd.backward, torch.autograd.grad

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def begin(*arguments: Any, **keywords: Any) -> Any:
            before()
            found = function(*arguments, **keywords)
            after()
            return found

        return begin

    torch.autograd.backward, torch.autograd.grad = (noted(function) for function in kept)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.autograd.backward, torch.autograd.grad = kept  # type: ignore[assignment]


@contextmanager
def before_letting_go(engine: Any, note: Callable[[], None]) -> Iterator[None]:
    """Call `note` whenever DeepSpeed is about to let gradients go."""
    wrapped = getattr(getattr(engine, "engine", None), "optimizer", None)  # of a DeepSpeed engine
    methods = {name: getattr(wrapped, name) for name in LETS_GO if hasattr(wrapped, name)}

    def noted(method: Callable[..., Any]) -> Callable[..., Any]:
        def begin(*arguments: Any) -> Any:
            note()
            return method(*arguments)

        return begin

    for name, method in methods.items():
        setattr(wrapped, name, noted(method))
    try:
        yield
    finally:
        for name in methods:
            delattr(wrapped, name)


# Where the engines keep their state ------------------------------------------------------------------------------------


def basic_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer of torch that an engine steps."""
    return engine.optimizer if isinstance(engine, TorchEngine | FsdpEngine) else engine.engine.basic_optimizer


def weights_of(engine: Any) -> list[Tensor]:
    """Parameters as they are kept from step to step."""
    if isinstance(engine, FsdpEngine):
        return [shard.sharded for shard in engine.shards]
    found = [parameter for _, parameter in engine.parameters]
    return [getattr(parameter, "ds_tensor", parameter) for parameter in found]


def optimizer_of(engine: Any) -> list[Tensor]:
    """Moments, counts of steps, and what the optimizer steps."""
    inner = basic_optimizer(engine)
    found = [value for state in inner.state.values() for value in state.values() if isinstance(value, Tensor)]
    found += [parameter for group in inner.param_groups for parameter in group["params"]]
    if isinstance(engine, TorchEngine | FsdpEngine):
        return found
    return found + list(getattr(engine.engine.optimizer, "fp32_partitioned_groups_flat", []))


def gradients_of(engine: Any) -> list[Tensor | None]:
    """Gradients as they are now, of a micro-batch and summed up."""
    if isinstance(engine, TorchEngine):
        return [one.grad for pair in zip(engine.masters.values(), _parameters(engine), strict=True) for one in pair]
    if isinstance(engine, FsdpEngine):
        found = [one.grad for shard in engine.shards for one in (shard.sharded, shard.master)]
        for parameter in _units(engine):
            found.append(parameter.unsharded_accumulated_grad)
            found.append(parameter._unsharded_param.grad if hasattr(parameter, "_unsharded_param") else None)
        return found
    found = [
        value for parameter in _parameters(engine) for value in (parameter.grad, getattr(parameter, "grad_accum", None))
    ]
    found += [parameter.grad for group in basic_optimizer(engine).param_groups for parameter in group["params"]]
    wrapped = engine.engine.optimizer
    for name in GRADIENTS_OF_DEEPSPEED:
        found += _leaves(getattr(wrapped, name, None))
    return found


def gathered_in(engine: Any) -> list[Tensor | None]:
    """Whole copies of sharded parameters, as they are now."""
    if isinstance(engine, TorchEngine):
        return []
    if isinstance(engine, FsdpEngine):
        found: list[Tensor | None] = []
        for parameter in _units(engine):
            found.append(getattr(parameter, "_unsharded_param", None))
            found += getattr(parameter, "all_gather_outputs", [])
        return found
    return [*_buckets(engine), *(parameter.data for parameter in _parameters(engine))]


def on_their_way(engine: Any) -> list[Tensor | None]:
    """Gradients that will be added to sums or are reduced, which a plan has among its buffers: what a micro-batch gives beside
    sums in float32, and what lies in DeepSpeed's buckets."""
    if isinstance(engine, TorchEngine):
        return []
    if isinstance(engine, FsdpEngine):
        summed = [one for one in _units(engine) if one.unsharded_accumulated_grad is not None]
        return [one._unsharded_param.grad for one in summed if hasattr(one, "_unsharded_param")]
    return list(_buckets(engine))


def _buckets(engine: Any) -> list[Tensor]:
    """Memory in which DeepSpeed reduces gradients: parameters' own lie in it for a while."""
    buckets = getattr(engine.engine.optimizer, "ipg_buckets", {})
    return [leaf for bucket in buckets.values() for leaf in _leaves(bucket.buffer)]


def _leaves(tree: Any) -> list[Tensor]:
    """Tensors in lists and dictionaries of any class."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [leaf for part in parts for leaf in _leaves(part)]


def _parameters(engine: Any) -> list[Tensor]:
    return [parameter for _, parameter in engine.parameters]


def _units(engine: FsdpEngine) -> list[Any]:
    return [
        parameter
        for module in engine.modules.values()
        for group in groups_of(module)
        for parameter in group.fsdp_params
    ]
