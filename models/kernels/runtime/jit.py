"""Triton functions that run where their tensors lie: compiled on a GPU, interpreted on CPU.

Triton decides that once, when it is imported, for the whole process. Here each launch decides, so that one process may
interpret a kernel, compile it for a GPU that is not there, and run it on one that is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

# Products and sums are rounded one by one, as the interpreter and the references round them: a kernel that must equal its
# reference bit for bit would differ by a fused multiply-add. Memory is what these kernels wait for, not arithmetic.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")

import torch
import triton.language as tl
from triton.language import core as core
from triton.runtime.interpreter import InterpretedFunction, _patch_lang
from triton.runtime.jit import JITFunction

_FOR_COMPILERS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


@cache
def _interpreted(function: Callable) -> InterpretedFunction:
    return InterpretedFunction(function)


def _called(self: JITFunction, *arguments: Any, **keywords: Any) -> Any:
    return _interpreted(self.fn).rewrite()(*arguments, **keywords)


# Triton's own functions (tl.sum, tl.max) are compiled ones unless Triton was told at import to interpret all; a call from
# outside of the compiler is an error to them, so whoever calls one here is interpreted.
JITFunction.__call__ = _called  # type: ignore[method-assign]


def _language() -> tuple[Any, Any]:
    """What an interpreted kernel and all that it calls speak: Triton finds modules to replace among a function's globals."""
    return tl, core


class _Kernel(JITFunction):
    """A Triton function, or one that others call."""

    def __init__(self, function: Callable, interpreted: Callable | None = None) -> None:
        super().__init__(function)
        self._interpreted = InterpretedFunction(interpreted or function)

    def run(self, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        if any(torch.is_tensor(value) and value.is_cuda for value in (*arguments, *keywords.values())):
            return super().run(*arguments, grid=grid, warmup=warmup, **keywords)
        for option in _FOR_COMPILERS:
            keywords.pop(option, None)
        # Triton replaces its language at each call of a function by another, which takes longer than the function and is never
        # undone: a compiler in the same process then fails. Here it is replaced once a launch, and put back.
        replaced = _patch_lang(_language)
        try:
            return self._interpreted.run(*arguments, grid=grid, warmup=warmup, **keywords)
        finally:
            replaced.restore()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """From within an interpreted kernel; a compiled one never gets here."""
        return self._interpreted.rewrite()(*arguments, **keywords)


_Kernel.__name__ = "JITFunction"  # Triton's cache tells functions among constants by this name


def kernel(function: Callable) -> Any:
    """Like `triton.jit`, and launched like it: `function[grid](…)`; with tensors on CPU it is interpreted."""
    return _Kernel(function)


def kernel_interpreted_as(interpreted: Callable) -> Callable[[Callable], Any]:
    """Like `kernel`, for what a GPU does in one instruction and the interpreter does wrong: there `interpreted` stands in,
    which gives the same bits."""
    return lambda function: _Kernel(function, interpreted)
