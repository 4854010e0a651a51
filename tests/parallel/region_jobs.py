"""What ranks do in the tests of the regions where the tensor axis cuts a layer."""

from __future__ import annotations

from torch import Tensor

from parallel.config import ParallelConfig
from parallel.mesh import Mesh
from parallel.regions import KeepShare
from tests.parallel.jobs import CPU


def kept_share(whole: Tensor, upstream: Tensor) -> tuple[Tensor, int, Tensor]:
    """This rank's share of the rows, bytes of the memory it lies in, and the gradient of all rows where every rank's share has
    its rows of `upstream`."""
    mesh = Mesh(ParallelConfig(tensor=2), CPU)
    x = whole.requires_grad_()
    share = KeepShare.apply(x * 1, mesh.tensor_group)
    share.backward(upstream.chunk(2)[mesh.place.tensor])
    mesh.close()
    assert x.grad is not None
    return share.detach().clone(), share.untyped_storage().nbytes(), x.grad
