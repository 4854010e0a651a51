"""Norms and activations, which go over rows: interpreted Triton against torch, forward and backward; the same on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.formats import quantize
from models.formats.names import FORMATS
from models.formats.scales import MODES
from models.kernels.gated import gated, gated_backward, gated_mx, gated_operator
from models.kernels.layer_norm import add_layer_norm, layer_norm, layer_norm_mx
from models.kernels.poly_norm import poly_norm, poly_norm_backward, poly_norm_mx, poly_norm_operator
from models.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_mx
from models.kernels.row_norm import WIDEST, row_norm, row_norm_backward
from models.kernels.row_norm.triton import NARROW
from models.kernels.squared_relu import squared_relu, squared_relu_backward, squared_relu_mx, squared_relu_operator
from tests.models.kernels.harness import Guarded, no_worse_than_torch, noise, same_twice

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in which infinity and NaN are interpreted

EPS = 1e-5
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


def plain_rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


def plain_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, EPS)


def plain_gated(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return activation(gate) * up

    return call


def plain_poly(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return sum((weight[i - 1] * F.rms_norm(x**i, (x.shape[-1],), None, EPS) for i in (1, 2, 3)), bias)


@dataclass(frozen=True)
class Case:
    """ours: of inputs and a choice of kernels. plain: the same by torch. beside: shapes of the inputs beside x, W being its
    width. mx: ours with MX beside. wide: features of x for one of its result."""

    ours: Callable[..., Any]
    plain: Callable[..., Any]
    beside: tuple[tuple[int, ...], ...]
    mx: Callable[..., Any]
    wide: int = 1


W = -1  # the width of x
CASES = {
    "rms_norm": Case(
        lambda x, w, k: rms_norm(x, w, EPS, k),
        plain_rms,
        ((W,),),
        lambda x, w, f, s, k: rms_norm_mx(x, w, EPS, f, s, None, k),
    ),
    "layer_norm": Case(
        lambda x, w, b, k: layer_norm(x, w, b, EPS, k),
        plain_layer,
        ((W,), (W,)),
        lambda x, w, b, f, s, k: layer_norm_mx(x, w, b, EPS, f, s, None, k),
    ),
    "swiglu": Case(lambda x, k: gated(x, "silu", k), plain_gated(F.silu), (), lambda x, *o: gated_mx(x, "silu", *o), 2),
    "geglu": Case(lambda x, k: gated(x, "gelu", k), plain_gated(F.gelu), (), lambda x, *o: gated_mx(x, "gelu", *o), 2),
    "geglu_tanh": Case(
        lambda x, k: gated(x, "gelu_tanh", k),
        plain_gated(lambda x: F.gelu(x, approximate="tanh")),
        (),
        lambda x, *o: gated_mx(x, "gelu_tanh", *o),
        2,
    ),
    "squared_relu": Case(squared_relu, lambda x: F.relu(x).square(), (), squared_relu_mx),
    "poly_norm": Case(
        lambda x, w, b, k: poly_norm(x, w, b, EPS, k),
        plain_poly,
        ((3,), (1,)),
        lambda x, w, b, *o: poly_norm_mx(x, w, b, EPS, *o),
    ),
}
ADDING = {
    "add_rms_norm": Case(
        lambda x, r, w, k: add_rms_norm(x, r, w, EPS, k),
        lambda x, r, w: (plain_rms(x + r, w), x + r),
        ((W, W), (W,)),
        lambda x, r, w, f, s, k: rms_norm_mx(x, w, EPS, f, s, r, k),
    ),
    "add_layer_norm": Case(
        lambda x, r, w, b, k: add_layer_norm(x, r, w, b, EPS, k),
        lambda x, r, w, b: (plain_layer(x + r, w, b), x + r),
        ((W, W), (W,), (W,)),
        lambda x, r, w, b, f, s, k: layer_norm_mx(x, w, b, EPS, f, s, r, k),
    ),
}
ALL = CASES | ADDING
each = pytest.mark.parametrize("name", ALL)
everywhere = pytest.mark.parametrize("device", ["cpu", GPU])


def inputs_of(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """x [..., width], and what belongs beside it; (W, W) stands for the shape of x."""
    x = noise(*shape[:-1], shape[-1] * ALL[name].wide, dtype=dtype)
    beside = [
        tuple(x.shape) if size == (W, W) else tuple(x.shape[-1] if side == W else side for side in size)
        for size in ALL[name].beside
    ]
    return [x.to(device), *(noise(*size, seed=i + 1, dtype=dtype).to(device) for i, size in enumerate(beside))]


def run(call: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients by upstream ones that differ from element to element."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    outputs = call(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [noise(*y.shape, seed=7 + i, dtype=y.dtype).to(y.device) for i, y in enumerate(outputs)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, upstream)]


def by(name: str, kernels: str) -> Callable[..., Any]:
    return lambda *inputs: ALL[name].ours(*inputs, kernels)


@everywhere
@each
def test_triton_is_the_reference(name: str, device: str) -> None:
    inputs = inputs_of(name, (3, 2, 200), torch.float32, device)
    for ours, theirs in zip(run(by(name, "triton"), inputs), run(by(name, "reference"), inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-5)


@each
def test_gradients_are_those_of_differences(name: str) -> None:
    inputs = [x.requires_grad_() for x in inputs_of(name, (2, 5), torch.float64)]
    assert torch.autograd.gradcheck(by(name, "triton"), inputs)


@everywhere
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each
def test_low_precision_is_no_worse_than_torch(name: str, dtype: torch.dtype, device: str) -> None:
    inputs = inputs_of(name, (9, 192), dtype, device)
    ours, torchs = run(by(name, "triton"), inputs), run(ALL[name].plain, inputs)
    # upstream gradients are those of the dtype, so that only arithmetic differs
    leaves = [x.double().requires_grad_() for x in inputs]
    outputs = ALL[name].plain(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [noise(*y.shape, seed=7 + i, dtype=dtype).to(y) for i, y in enumerate(outputs)]
    exact = [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]
    for place, (found, plain, right) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert found.dtype == dtype
        no_worse_than_torch(found, plain, right.detach(), f"{name}, result {place}")


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "side by side": lambda x: x,
    "heads of a fused tensor": lambda x: torch.cat((x, x[:1] * 0 + 9), 0).transpose(0, 1).contiguous()[:, : len(x)],
    "from an odd place": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    "columns apart": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "rows reversed in dims": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}
SPECIAL = {"": None, "zeros": 0.0, "nan": torch.nan, "infinity": torch.inf}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(CASES)),
    rows=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    width=st.integers(1, 300),
    layout=st.sampled_from(sorted(LAYOUTS)),
    special=st.sampled_from(sorted(SPECIAL)),
)
def test_any_shape_stride_and_value(name: str, rows: tuple[int, int], width: int, layout: str, special: str) -> None:
    inputs = inputs_of(name, (*rows, width), torch.float32)
    if SPECIAL[special] is not None:
        inputs[0][0, 0] = SPECIAL[special]
    inputs[0] = LAYOUTS[layout](inputs[0])
    for ours, theirs in zip(run(by(name, "triton"), inputs), run(by(name, "reference"), inputs), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-4 * (1 + float(theirs.nan_to_num().abs().max())), equal_nan=True
        )


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Guarded]]:
    """All memory that is made lies between guards, which are looked at in the end."""
    made: list[Guarded] = []

    def between(size: Any, dtype: torch.dtype | None, device: Any) -> Tensor:
        made.append(Guarded(tuple(size), dtype or torch.get_default_dtype(), str(device or "cpu")))
        return made[-1].tensor

    def sizes(given: tuple) -> tuple:
        return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else given

    def empty(*size: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return between(sizes(size), dtype, device)

    plain = Tensor.new_empty

    def new_empty(self: Tensor, *size: Any, dtype: Any = None, **others: Any) -> Tensor:
        if others:  # the interpreter's own
            return plain(self, *size, dtype=dtype, **others)
        return between(sizes(size), dtype or self.dtype, self.device)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", lambda x: between(x.shape, x.dtype, x.device))
    monkeypatch.setattr(Tensor, "new_empty", new_empty)
    yield made
    monkeypatch.undo()
    assert made
    for one in made:
        one.check()


@everywhere
def test_nothing_is_written_beside_the_outputs(guarded: list[Guarded], device: str) -> None:
    from models.kernels.gated import triton as gates
    from models.kernels.poly_norm import triton as powers
    from models.kernels.row_norm import triton as norms
    from models.kernels.squared_relu import triton as squares

    x, weight = noise(5, 224).to(device), noise(224, seed=1).to(device)
    for element in ("e4m3", "e3m2", "e2m1"):
        y, _, mean, factor, _, _ = norms.norm(x, x, weight, weight, EPS, True, element, "rceil")
        norms.norm_backward(y, y, x, weight, True, mean, factor)
        gates.gated_backward(gates.gated(x, "silu", "", "")[0], x, "silu")
        gates.gated(torch.cat((x, x), -1), "silu", element, "floor")
        squares.squared_relu_backward(squares.squared_relu(x, element, "floor")[0], x)
        y, factors, _, _ = powers.poly_norm(x, weight[:3], weight[:1], EPS, element, "even")
        powers.poly_norm_backward(y, x, weight[:3], factors)


@everywhere
@each
def test_two_runs_give_the_same_bits(name: str, device: str) -> None:
    inputs = inputs_of(name, (40, 130), torch.bfloat16, device)
    same_twice(lambda: run(by(name, "triton"), inputs))


@everywhere
@each
def test_a_row_alone_is_the_row_in_a_batch(name: str, device: str) -> None:
    case, inputs = ALL[name], inputs_of(name, (37, 130), torch.bfloat16, device)
    per_row = [size == (W, W) for size in ((W, W), *case.beside)]
    alone = [x[5:6] if cut else x for x, cut in zip(inputs, per_row, strict=True)]
    whole = [x.clone().requires_grad_() for x in inputs]
    single = [x.clone().requires_grad_() for x in alone]
    for leaves, rows in ((whole, slice(None)), (single, slice(5, 6))):
        outputs = case.ours(*leaves, "triton")
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        upstream = [noise(37, y.shape[-1], seed=3, dtype=y.dtype).to(device)[rows] for y in outputs]
        leaves.extend((*outputs, torch.autograd.grad(outputs, leaves[0], upstream)[0]))
    for ours, theirs in zip(whole[len(inputs) :], single[len(inputs) :], strict=True):
        assert torch.equal(ours[5:6], theirs)


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "nvfp4"])
@pytest.mark.parametrize("name", ["rms_norm", "swiglu"])
def test_mx_output_is_that_of_quantize(name: str, format: str) -> None:
    for scale in MODES:
        hold_to_quantize(name, format, scale, torch.bfloat16, "cpu")


@everywhere
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@each
def test_mx_output_of_every_kernel(name: str, dtype: torch.dtype, device: str) -> None:
    hold_to_quantize(name, "mxfp6_e2m3", "rceil", dtype, device)


def hold_to_quantize(name: str, format: str, scale: str, dtype: torch.dtype, device: str) -> None:
    """In rows of which one is zero, one has NaN and one infinity, and sizes that go over forty powers of two."""
    inputs = inputs_of(name, (9, 96), dtype, device)
    inputs[0] *= torch.exp2(torch.linspace(-20, 20, 9, device=device)).to(dtype)[:, None]
    inputs[0][1], inputs[0][2, 5], inputs[0][3, 40] = 0, torch.nan, torch.inf
    y, *_, found = ALL[name].mx(*inputs, format, scale, "triton")
    expected = quantize(y, format, -1, scale)
    assert found.shape == y.shape
    assert torch.equal(found.elements, expected.elements) and torch.equal(found.scales, expected.scales)
    plain, *_, defined = ALL[name].mx(*inputs, format, scale, "reference")
    assert torch.equal(defined.elements, quantize(plain, format, -1, scale).elements)


def test_gradients_pass_by_what_is_quantised_too() -> None:
    x, residual, weight = (x.requires_grad_() for x in inputs_of("add_rms_norm", (4, 64), torch.float32))
    y, stream, _ = rms_norm_mx(x, weight, EPS, "mxfp8_e4m3", residual=residual, kernels="triton")
    torch.autograd.backward((y, stream), (noise(4, 64, seed=5), noise(4, 64, seed=6)))
    found = x.grad, residual.grad, weight.grad
    plain = [t.detach().clone().requires_grad_() for t in (x, residual, weight)]
    outputs = add_rms_norm(*plain, EPS, "reference")
    expected = torch.autograd.grad(outputs, plain, (noise(4, 64, seed=5), noise(4, 64, seed=6)))
    torch.testing.assert_close(found, expected)


def test_only_the_stream_or_only_the_norm_may_be_used() -> None:
    x, residual, weight = (x.requires_grad_() for x in inputs_of("add_rms_norm", (4, 64), torch.float32))
    y, stream = add_rms_norm(x, residual, weight, EPS, "triton")
    upstream = noise(4, 64, seed=5)
    for_x, for_residual = torch.autograd.grad(stream, (x, residual), upstream, retain_graph=True)
    assert torch.equal(for_x, upstream) and torch.equal(for_residual, upstream)
    (ours,) = torch.autograd.grad(y, x, upstream)
    (theirs,) = torch.autograd.grad(plain_rms(x + residual, weight), x, upstream)
    torch.testing.assert_close(ours, theirs)


def test_operators_are_well_formed() -> None:
    x, weight, bias = (x.requires_grad_() for x in inputs_of("layer_norm", (3, 64), torch.float32))
    row = torch.ones(3)
    samples: list[tuple[Any, tuple]] = [
        (row_norm, (x, None, weight, None, EPS, False, "", "")),
        (row_norm, (x, x.detach() * 2, weight, bias, EPS, True, "e3m2", "even")),
        (row_norm_backward, (x.detach(), x.detach(), x.detach(), weight.detach(), True, row, row)),
        (gated_operator, (x, "gelu", "e2m1", "floor")),
        (gated_backward, (x.detach()[:, :32], x.detach(), "silu")),
        (squared_relu_operator, (x, "", "")),
        (squared_relu_backward, (x.detach(), x.detach())),
        (poly_norm_operator, (x, weight[:3].detach().requires_grad_(), bias[:1].detach(), EPS, "e4m3", "ceil")),
        (poly_norm_backward, (x.detach(), x.detach(), weight[:3].detach(), torch.ones(3, 3))),
    ]
    for operator, arguments in samples:
        torch.library.opcheck(operator, arguments)


@each
def test_it_is_one_graph_under_a_compiler(name: str) -> None:
    torch.compiler.reset()
    inputs = inputs_of(name, (3, 64), torch.float32)
    compiled = torch.compile(by(name, "triton"), backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(run(compiled, inputs), run(by(name, "triton"), inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_it_passes_through_inductor() -> None:
    inputs = inputs_of("add_rms_norm", (3, 64), torch.float32)
    compiled = torch.compile(lambda x, r, w: add_rms_norm(x * 2, r, w, EPS, "triton"), fullgraph=True)
    plain = run(lambda x, r, w: add_rms_norm(x * 2, r, w, EPS, "reference"), inputs)
    for ours, theirs in zip(run(compiled, inputs), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@everywhere
@pytest.mark.parametrize("name", ["rms_norm", "add_layer_norm"])
def test_wide_rows_have_their_weights_gradient_by_columns(name: str, device: str) -> None:
    inputs = inputs_of(name, (3, NARROW + 24), torch.float32, device)
    for ours, theirs in zip(run(by(name, "triton"), inputs), run(by(name, "reference"), inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_rows_too_long_for_registers_are_left_to_torch() -> None:
    x, weight = inputs_of("rms_norm", (1, WIDEST + 8), torch.float32)
    with pytest.warns(UserWarning, match=f"longer than {WIDEST}"):
        found = rms_norm(x, weight, EPS, "triton")
    assert torch.equal(found, rms_norm(x, weight, EPS, "reference"))


def test_no_rows_are_no_trouble() -> None:
    for name in ALL:
        assert all(
            part.numel() == 0 or not part.any()
            for part in run(by(name, "triton"), inputs_of(name, (0, 64), torch.float32))
        )


def test_what_cannot_be_is_refused() -> None:
    x, weight = inputs_of("rms_norm", (2, 48), torch.float32)
    with pytest.raises(ModelError, match=r"mxfp4_e2m1: rows of 48 elements .* 32"):
        rms_norm_mx(x, weight, EPS, "mxfp4_e2m1")
    with pytest.raises(ModelError, match="nvfp4: its scales follow from the whole tensor"):
        squared_relu_mx(x, "nvfp4")
    with pytest.raises(ModelError, match="scale='up': choose one of floor"):
        gated_mx(torch.zeros(2, 64), "silu", "mxint8", "up")
    with pytest.raises(ModelError, match="takes float32, bfloat16 or float16"):
        squared_relu_mx(torch.zeros(2, 32).double(), "mxint8")
    with pytest.raises(ModelError, match="activation=relu: is none of a gated layer"):
        gated(x, "relu")
    with pytest.raises(ModelError, match="47 features"):
        gated(x[:, :47], "silu")
    with pytest.raises(ModelError, match=r"PolyNorm with weights \(48,\)"):
        poly_norm(x, weight, weight[:1], EPS)
