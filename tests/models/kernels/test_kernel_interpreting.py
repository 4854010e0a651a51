"""Interpreting leaves nothing behind: the same process compiles kernels before and after, and casts as torch does."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl

from models.kernels.rms_norm.triton import compilations
from models.kernels.row_norm import row_norm
from models.kernels.runtime.compiling import compile_for
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.rounding import rounded


def test_a_process_that_interpreted_can_compile(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    language = {name: getattr(tl.core, name) for name in ("load", "arange", "expand_dims")}
    row_norm(torch.randn(4, 64), None, torch.ones(64), None, 1e-5, False, "e4m3", "rceil")
    assert language == {name: getattr(tl.core, name) for name in language}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compile_for(next(compilations()), "sm_90a")


@kernel
def _cast(x, y, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, rounded(tl.load(x + place), y.dtype.element_ty))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, where float16 has no such numbers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_casts_are_those_of_torch(dtype: torch.dtype) -> None:
    """Ties, carries into the exponent, the largest number, subnormals, infinity and NaN."""
    special = [
        1 + 2**-8,
        1 + 3 * 2**-8,
        2 - 2**-9,
        3.4e38,
        -1e-40,
        2**-126,
        torch.inf,
        -torch.inf,
        torch.nan,
        -0.0,
        0.0,
    ]
    x = torch.cat((torch.tensor(special), torch.randn(1013, generator=torch.Generator().manual_seed(0)) * 100))
    y = torch.empty(1024, dtype=dtype)
    _cast[(1,)](x, y, 1024)
    torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(y.isnan(), x.isnan())
