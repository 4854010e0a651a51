"""RMSNorm is one case of `models.kernels.row_norm.triton`."""

from __future__ import annotations

from collections.abc import Iterator

from models.kernels.row_norm.triton import norm_compilations
from models.kernels.runtime.compiling import Compilation


def compilations() -> Iterator[Compilation]:
    """What is compiled where no GPU is at hand."""
    return norm_compilations(centred=False)
