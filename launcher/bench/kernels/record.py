"""What the bench knows of a kernel: sizes, the passes to be timed, who does them, and what memory or products ask of them.

Each family has a file that makes these; the rest of the bench does not know one kernel from another.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.kernels.catalogue import CPP, CUDA

Call = Callable[[], object]

EAGER, COMPILED, TRITON, CUDA_CPP, HOST_CPP, LIGER = "torch", "torch.compile", "triton", "cuda", "cpp", "liger"
OWN = (TRITON, CUDA_CPP)
_CHOICE = {EAGER: "reference", TRITON: "triton", CUDA_CPP: "cuda", HOST_CPP: "cpp", LIGER: "liger"}


@dataclass(frozen=True)
class Sizes:
    """T tokens, H hidden, F feed-forward, V vocabulary; parameters: of the optimizer."""

    name: str
    tokens: int
    hidden: int
    features: int
    vocabulary: int
    parameters: int


LARGE = Sizes("large", 16384, 4096, 14336, 128256, 500_000_000)
SMALL = Sizes("small", 2048, 1024, 2816, 32768, 10_000_000)
REDUCED = Sizes("reduced", 256, 256, 704, 2048, 1_000_000)


@dataclass(frozen=True)
class Place:
    """Where the bench runs. ways: who can run there at all."""

    device: torch.device
    dtype: torch.dtype
    ways: tuple[str, ...]

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def noise(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers: their distribution moves a GPU's clocks, so no zeros."""
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)


def place_of(device: torch.device) -> Place:
    """bfloat16 with all implementations on a GPU; on CPU float32, where Triton is interpreted and not worth a clock."""
    if device.type == "cpu":
        return Place(device, torch.float32, (EAGER, COMPILED, HOST_CPP))
    liger = (LIGER,) if importlib.util.find_spec("liger_kernel") else ()
    return Place(device, torch.bfloat16, (EAGER, COMPILED, *OWN, *liger))


@dataclass
class Pass:
    """One direction of a kernel, ready to be timed.

    calls: by who does it. moved: bytes that must move, at least; flops: of the products, where those set the time. goal: share
    of the copy rate, or of the product rate, that the issue asks for; None for none. inside: the same within a compiled block
    with a multiplication before and an addition behind, by who does the middle.
    """

    name: str
    calls: dict[str, Call]
    moved: float
    flops: float = 0.0
    goal: float | None = None
    inside: dict[str, Call] = field(default_factory=dict)


Make = Callable[[Sizes, Place], list[Pass]]
Function = Callable[..., Any]


def differentiable(
    kernel: str,
    function: Function,
    make: Callable[[], Sequence[Tensor]],
    place: Place,
    *,
    moved: tuple[float, float],
    goals: tuple[float | None, float | None],
    liger: bool | Function = False,
) -> list[Pass]:
    """Forward and backward of `function(*inputs, kernels=)`. kernel: its name in the catalogue. make: inputs; floating ones get
    gradients. moved, goals: of forward and backward. liger: that package's function of the inputs, or whether kernels=liger
    is it."""
    inputs, ways, blocks = _contenders(kernel, function, make, place, liger)
    return [
        Pass(name, _timed(timed, ways, inputs), moved[at], 0.0, goals[at], _timed(timed, blocks, inputs))
        for at, (name, timed) in enumerate((("forward", _forward), ("backward", _backward)))
    ]


def in_products(
    kernel: str,
    function: Function,
    make: Callable[[], Sequence[Tensor]],
    place: Place,
    *,
    flops: float,
    goal: float,
    liger: bool | Function = False,
) -> list[Pass]:
    """Forward and backward as one pass, whose time is that of products. function: gives a scalar."""
    inputs, ways, blocks = _contenders(kernel, function, make, place, liger)
    return [Pass("both", _timed(_both, ways, inputs), 0.0, flops, goal, _timed(_both, blocks, inputs))]


def _contenders(
    kernel: str, function: Function, make: Callable[[], Sequence[Tensor]], place: Place, liger: bool | Function
) -> tuple[list[Tensor], dict[str, Function], dict[str, Function]]:
    """(inputs, by who does it a function of them, and the same within compiled blocks, where there is more than one)."""
    inputs = [x.requires_grad_(x.is_floating_point()) for x in make()]
    ways: dict[str, Function] = {
        way: partial(function, kernels=_CHOICE[way]) for way in _eager_ways(kernel, place, bool(liger))
    }
    if callable(liger) and LIGER in ways:
        ways[LIGER] = liger
    within = [way for way in ways if way in (EAGER, *OWN)]
    blocks = {way: _compiled(_Block(ways[way])) for way in within} if len(within) > 1 else {}
    return inputs, ways | {COMPILED: _compiled(partial(function, kernels="reference"))}, blocks


def _timed(
    timed: Callable[[Function, Sequence[Tensor]], Call], ways: dict[str, Function], inputs: Sequence[Tensor]
) -> dict[str, Call]:
    return {way: timed(call, inputs) for way, call in ways.items()}


def _eager_ways(kernel: str, place: Place, liger: bool) -> list[str]:
    lacks = {CUDA_CPP: kernel not in CUDA, HOST_CPP: kernel not in CPP, LIGER: not liger, COMPILED: True}
    return [way for way in place.ways if not lacks.get(way, False)]


def eager_ways(kernel: str, place: Place) -> dict[str, str]:
    """By who runs, what to tell `kernels=`, of a kernel that liger has not; all but what torch compiles."""
    return {way: _CHOICE[way] for way in _eager_ways(kernel, place, False)}


def _compiled(function: Function) -> Function:
    return torch.compile(function, fullgraph=True, dynamic=False)


class _Block:
    """A function between neighbours that a compiler may fuse with what it sees through: 0.5 x before, + 1 behind."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(self, first: Tensor, *rest: Tensor) -> Any:
        found = self._function(first * 0.5, *rest)
        return tuple(y + 1 for y in found) if isinstance(found, tuple) else found + 1


def _forward(function: Function, inputs: Sequence[Tensor]) -> Call:
    """With the graph that training needs."""
    return lambda: function(*inputs)


def _backward(function: Function, inputs: Sequence[Tensor]) -> Call:
    """Gradients of all inputs that want one. The graph is made at the first call and kept, as are the upstream gradients."""
    kept: list[tuple] = []

    def call() -> object:
        if not kept:
            found = function(*inputs)
            outputs = found if isinstance(found, tuple) else (found,)
            kept.append((outputs, [torch.randn_like(output) for output in outputs]))
        outputs, upstream = kept[0]
        wanted = [x for x in inputs if x.requires_grad]
        return torch.autograd.grad(outputs, wanted, upstream, retain_graph=True, allow_unused=True)

    return call


def _both(function: Function, inputs: Sequence[Tensor]) -> Call:
    """Forward and gradients, of a function that gives a scalar."""
    return lambda: torch.autograd.grad(function(*inputs), [x for x in inputs if x.requires_grad])
