"""The losses of a head without its logits: against the head with them, for any upstream gradient, by any chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.kernels.cross_entropy.vocabulary import Place, Terms
from models.kernels.linear_cross_entropy import chunks, functions_of, linear_cross_entropy, reference
from tests.models.kernels.harness import Guarded, gradients, no_worse_than_torch, noise, same_twice

TERMS = [{}, {"z_loss": 0.02, "label_smoothing": 0.1}]
KINDS = ("reference", "triton")


def whole(x: Tensor, weight: Tensor, targets: Tensor, **terms: float) -> Tensor:
    """With logits whole, by autograd."""
    return reference.linear_cross_entropy(x.flatten(0, -2), weight, targets.flatten(), Terms(**terms)).view(
        targets.shape
    )


def made(rows: int, vocab: int, hidden: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x [rows, 2, H], weight [V, H], targets."""
    targets = torch.randint(vocab, (rows, 2), generator=torch.Generator().manual_seed(rows))
    return noise(rows, 2, hidden, dtype=dtype), noise(vocab, hidden, seed=1, dtype=dtype), targets


# How the losses are used, by upstream gradient and the weights that were told before.
UPSTREAM = noise(7, 2, seed=5)
UPSTREAM[1] = 0
TOLD = {
    "nothing told": None,
    "as told": UPSTREAM,
    "a multiple of it": UPSTREAM * -0.37,
    "another": noise(7, 2, seed=9),
    "zeros told": torch.zeros(7, 2),
}


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_it_is_the_head_with_logits_for_any_upstream(terms: dict, kind: str, told: str) -> None:
    x, weight, targets = made(7, 130, 16)
    call = lambda x, w: linear_cross_entropy(x, w, targets, weights=TOLD[told], chunk=4, kernels=kind, **terms)  # noqa: E731
    torch.testing.assert_close(call(x, weight), whole(x, weight, targets, **terms))
    ours = gradients(call, [x, weight], UPSTREAM)
    torch.testing.assert_close(ours, gradients(lambda x, w: whole(x, w, targets, **terms), [x, weight], UPSTREAM))


def count_products(monkeypatch: pytest.MonkeyPatch, told: Tensor | None, used: Tensor, **needs: bool) -> int:
    """Products of a chunk in forward and backward."""
    x, weight, targets = made(7, 130, 16)
    x.requires_grad_(needs.get("x", True)), weight.requires_grad_(needs.get("weight", True))
    seen = []
    plain_mm, plain_add = torch.mm, chunks._add_product
    monkeypatch.setattr(torch, "mm", lambda *a, **k: (seen.append(1), plain_mm(*a, **k))[1])
    monkeypatch.setattr(chunks, "_add_product", lambda *a, **k: (seen.append(1), plain_add(*a, **k))[1])
    losses = linear_cross_entropy(x, weight, targets, weights=told, kernels="reference")
    if losses.requires_grad:
        (losses * used).sum().mul(1 / 7).backward()
    monkeypatch.undo()
    return len(seen)


def test_three_products_where_the_weights_are_told_and_four_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = (UPSTREAM > 0).float()
    assert count_products(monkeypatch, UPSTREAM, UPSTREAM) == 3
    assert count_products(monkeypatch, mask, mask) == 3
    assert count_products(monkeypatch, None, UPSTREAM) == 4
    assert count_products(monkeypatch, mask, UPSTREAM) == 6  # made for nothing, and made again
    assert count_products(monkeypatch, mask, mask, weight=False) == 2
    assert count_products(monkeypatch, mask, mask, x=False, weight=False) == 1
    with torch.no_grad():
        assert count_products(monkeypatch, mask, mask) == 1


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_gradients_are_those_of_differences(terms: dict, kind: str, told: bool) -> None:
    x, weight, targets = made(3, 7, 4, torch.float64)
    upstream = noise(3, 2, seed=3, dtype=torch.float64)

    def call(x: Tensor, w: Tensor) -> Tensor:
        weights = upstream if told else None
        losses = linear_cross_entropy(x, w, targets, weights=weights, chunk=5, kernels=kind, **terms)
        return (losses * upstream).sum() * 0.3

    torch.autograd.gradcheck(call, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_torch(dtype: torch.dtype, kind: str, told: bool) -> None:
    x, weight, targets = made(40, 257, 64, dtype)
    weight *= 0.3
    upstream = noise(40, 2, seed=4) * 0.01
    weights = upstream * 77 if told else None
    call = lambda x, w: linear_cross_entropy(x, w, targets, weights=weights, chunk=16, kernels=kind, **TERMS[1])  # noqa: E731
    torchs = lambda x, w: whole(x, w, targets, **TERMS[1])  # noqa: E731
    wide = [x.double(), weight.double()]
    no_worse_than_torch(call(x, weight), torchs(x, weight), torchs(*wide), "losses")
    found = [gradients(call, [x, weight], upstream), gradients(torchs, [x, weight], upstream)]
    exact = gradients(torchs, wide, upstream.double())
    for name, one, other, right in zip(("x", "weight"), *found, exact, strict=True):
        assert one.dtype == dtype
        no_worse_than_torch(one, other, right, name)


def test_the_weights_gradient_is_summed_in_float32() -> None:
    """A thousand chunks that add the same: in bfloat16 the sum would stop to grow at 256 addends."""
    x, weight = torch.ones(512, 2, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    targets = torch.zeros(512, 2, dtype=torch.int64)
    for weights in (None, torch.ones(512, 2)):
        call = lambda w, told=weights: linear_cross_entropy(x, w, targets, weights=told, chunk=1, kernels="reference")  # noqa: E731
        (gradient,) = gradients(call, [weight], torch.ones(512, 2))
        assert gradient.flatten().tolist() == [-512, 512]


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(0, 5),
    vocab=st.integers(1, 40),
    hidden=st.integers(1, 9),
    chunk=st.integers(0, 11),
    odd=st.sampled_from(["", "nan", "inf", "zero"]),
    turned=st.booleans(),
    told=st.booleans(),
)
def test_shapes_strides_and_odd_rows(
    rows: int, vocab: int, hidden: int, chunk: int, odd: str, turned: bool, told: bool
) -> None:
    x, weight, targets = made(rows, vocab, hidden)
    if rows and odd:
        x[0, 0] = 0 if odd == "zero" else float(odd)
    if turned:
        x, weight = x.transpose(0, 1).contiguous().transpose(0, 1), weight.t().contiguous().t()
    upstream = noise(rows, 2, seed=2)
    found = []
    for kind in KINDS:
        call = lambda x, w, kind=kind: linear_cross_entropy(  # noqa: E731
            x, w, targets, weights=upstream if told else None, chunk=chunk, kernels=kind
        )
        found.append([call(x, weight), *gradients(call, [x, weight], upstream)])
    torch.testing.assert_close(found[1], found[0], equal_nan=True)
    if odd not in ("nan", "inf"):
        torch.testing.assert_close(found[0][0], whole(x, weight, targets))


def test_nothing_is_written_out_of_bounds() -> None:
    x, weight, targets = made(3, 77, 4)
    logits = Guarded((6, 77), torch.float32)
    logits.tensor.copy_(x.flatten(0, 1) @ weight.t())
    kept, scale = logits.tensor.clone(), noise(6)
    losses, lse = functions_of("triton").both(logits.tensor, targets.flatten(), scale, Terms(0.1, 0.1))
    logits.check()
    expected = torch.empty_like(kept)
    reference.gradient(kept, targets.flatten(), lse, scale, Place(0, 77), Terms(0.1, 0.1), expected)
    torch.testing.assert_close(logits.tensor, expected)
    torch.testing.assert_close(losses, whole(x, weight, targets, z_loss=0.1, label_smoothing=0.1).flatten())


def test_runs_agree_bit_by_bit() -> None:
    x, weight, targets = made(9, 200, 16, torch.bfloat16)
    call = lambda x, w: linear_cross_entropy(x, w, targets, weights=torch.ones(9, 2), chunk=4, kernels="triton")  # noqa: E731
    same_twice(lambda: [call(x, weight), *gradients(call, [x, weight], torch.full((9, 2), 0.3))])


def test_a_chunks_rows_do_not_depend_on_one_another() -> None:
    """The row functions alone: products of another number of rows may be summed in another order."""
    x, weight, targets = made(5, 90, 8)
    logits, scale = (x.flatten(0, 1) @ weight.t()), noise(10)
    every, one = logits.clone(), logits[3:4].clone()
    losses, _ = functions_of("triton").both(every, targets.flatten(), scale, Terms())
    alone, _ = functions_of("triton").both(one, targets.flatten()[3:4], scale[3:4], Terms())
    assert torch.equal(alone[0], losses[3]) and torch.equal(one[0], every[3])


def test_logits_of_a_chunk_stay_below_their_limit() -> None:
    for tokens in (16384, 16000, 1023, 1):
        for rows, size in ((128256, 2), (128256, 4), (16032, 2), (1000, 2), (10**9, 2)):
            chunk = chunks.chunk_for(tokens, rows, size)
            assert 1 <= chunk <= tokens and (chunk == 1 or chunk * rows * size <= chunks.LOGITS_BYTES)
            assert chunk % 128 == 0 or chunk == tokens or rows * size * 128 > chunks.LOGITS_BYTES
    assert chunks.chunk_for(16384, 128256, 2) == 1024


def test_a_factor_is_found_where_there_is_one() -> None:
    weights = torch.tensor([0.0, 1.0, 0.3, 1e-8])
    factor = chunks.factor_between(weights * 0.7, weights)
    assert factor is not None and float(factor) == pytest.approx(0.7)
    assert chunks.factor_between(torch.tensor([0.1, 0.7, 0.21, 0.7e-8]), weights) is None
    assert chunks.factor_between(torch.tensor([0.0, 0.7, 0.21, 0.71e-8]), weights) is None
    assert chunks.factor_between(torch.tensor([0.0, torch.nan, 0.21, 0.0]), weights) is None
    assert float(chunks.factor_between(torch.zeros(4), torch.zeros(4))) == 0  # type: ignore[arg-type]
    assert chunks.factor_between(torch.ones(4), torch.zeros(4)) is None


def test_the_operators_are_well_formed() -> None:
    x, weight, targets = made(3, 33, 4)
    x, targets = x.flatten(0, 1).requires_grad_(), targets.flatten()
    weight.requires_grad_()
    arguments = (x, weight, targets, torch.ones(6), 1e-3, 0.1, 4, True, True)
    torch.library.opcheck(torch.ops.triaxis.linear_cross_entropy.default, arguments)
    torch.library.opcheck(torch.ops.triaxis.linear_cross_entropy.default, (*arguments[:3], None, *arguments[4:]))
    plain = [part.detach() for part in arguments[:3]]
    losses, lse, rows, sums = torch.ops.triaxis.linear_cross_entropy(*plain, *arguments[3:])
    backward = (losses, *plain, lse, arguments[3], rows, sums, *arguments[4:])
    torch.library.opcheck(torch.ops.triaxis.linear_cross_entropy_backward.default, backward)


@pytest.mark.parametrize(
    ("kind", "backend"), [("triton", "aot_eager"), ("reference", "aot_eager"), ("triton", "inductor")]
)
def test_it_goes_into_one_compiled_graph(kind: str, backend: str) -> None:
    x, weight, targets = made(5, 40, 8)
    weights = torch.full((5, 2), 0.5)

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(x * 2, weight, targets, weights=weights, chunk=4, kernels=kind) * weights

    compiled, upstream = torch.compile(call, backend=backend, fullgraph=True), torch.ones(5, 2)
    torch.testing.assert_close(compiled(x, weight), call(x, weight))
    found = [gradients(run, [x, weight], upstream) for run in (compiled, call)]
    torch.testing.assert_close(found[0], found[1])


def test_bad_input_is_refused() -> None:
    x, weight, targets = made(3, 33, 4)
    for arguments, options, match in (
        ((x, weight[:, :3], targets), {}, r"weight \(33, 3\)"),
        ((x, weight.double(), targets), {}, "float64 does not fit"),
        ((x, weight, targets[:2]), {}, r"targets \(2, 2\)"),
        ((x, weight, targets), {"weights": torch.ones(3)}, r"weights \(3,\)"),
        ((x, weight, targets), {"chunk": -1}, "chunk=-1"),
    ):
        with pytest.raises(ModelError, match=match):
            linear_cross_entropy(*arguments, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("told", [False, True])
def test_on_a_gpu_it_is_the_head_with_logits(told: bool) -> None:
    x, weight, targets = (part.cuda() for part in made(512, 32000, 256, torch.bfloat16))
    weight *= 0.05
    upstream = noise(512, 2, seed=4).cuda()
    call = lambda x, w: linear_cross_entropy(x, w, targets, weights=upstream if told else None, chunk=256)  # noqa: E731
    torchs = lambda x, w: whole(x, w, targets)  # noqa: E731
    wide = [x.double(), weight.double()]
    no_worse_than_torch(call(x, weight), torchs(x, weight), torchs(*wide), "losses")
    found = [gradients(call, [x, weight], upstream), gradients(torchs, [x, weight], upstream)]
    for one, other, right in zip(*found, gradients(torchs, wide, upstream.double()), strict=True):
        no_worse_than_torch(one, other, right)
    same_twice(lambda: [call(x, weight), *gradients(call, [x, weight], upstream)])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        call(x, weight)
    assert torch.cuda.max_memory_allocated() - before < 256 * 32000 * 2 + (8 << 20)
