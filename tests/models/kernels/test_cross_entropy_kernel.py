"""Cross entropy of logits: interpreted Triton against torch, forward and backward, with all terms of the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.kernels.cross_entropy import cross_entropy, rows_of
from models.kernels.cross_entropy.vocabulary import Place, Terms, combined
from tests.models.kernels.harness import Guarded, gradients, no_worse_than_torch, noise, same_twice

TERMS = [{}, {"z_loss": 0.02}, {"label_smoothing": 0.1}, {"z_loss": 0.02, "label_smoothing": 0.1}]
KINDS = ("reference", "triton")


def written_out(logits: Tensor, targets: Tensor, z_loss: float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """torch's own cross entropy, and what it has no word for."""
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    plain = F.cross_entropy(wide, targets, reduction="none", label_smoothing=label_smoothing)
    return plain + z_loss * wide.logsumexp(-1).square()


def drawn(rows: int, vocab: int, seed: int = 0) -> Tensor:
    return torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_it_is_the_formula_forward_and_backward(kind: str, terms: dict) -> None:
    logits, targets, upstream = noise(6, 300, scale=3), drawn(6, 300), noise(6, seed=1)
    found = cross_entropy(logits, targets, kernels=kind, **terms)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, written_out(logits, targets, **terms))
    (ours,) = gradients(lambda x: cross_entropy(x, targets, kernels=kind, **terms), [logits], upstream)
    (theirs,) = gradients(lambda x: written_out(x, targets, **terms), [logits], upstream)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_gradients_are_those_of_differences(kind: str, terms: dict) -> None:
    logits, targets = noise(4, 9, dtype=torch.float64).requires_grad_(), drawn(4, 9)
    upstream = noise(4, seed=2, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: (cross_entropy(x, targets, kernels=kind, **terms) * upstream).sum(), logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_torch(kind: str, dtype: torch.dtype) -> None:
    logits, targets, upstream = noise(8, 513, dtype=dtype, scale=4), drawn(8, 513), noise(8, seed=1)
    terms = TERMS[-1]
    exact = written_out(logits.double(), targets, **terms)
    ours, torchs = cross_entropy(logits, targets, kernels=kind, **terms), written_out(logits, targets, **terms)
    no_worse_than_torch(ours, torchs, exact, "losses")
    (ours,) = gradients(lambda x: cross_entropy(x, targets, kernels=kind, **terms), [logits], upstream)
    (torchs,) = gradients(lambda x: written_out(x, targets, **terms), [logits], upstream)
    (exact,) = gradients(lambda x: written_out(x, targets, **terms), [logits.double()], upstream.double())
    assert ours.dtype == dtype
    no_worse_than_torch(ours, torchs, exact, "gradient")


@example(rows=1, vocab=2, beside=0, shift=0, odd="inf", terms={"z_loss": 0.02})
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 4),
    vocab=st.integers(1, 70),
    beside=st.integers(0, 3),
    shift=st.integers(0, 3),
    odd=st.sampled_from(["", "nan", "inf", "-inf", "zero", "all -inf", "first block -inf"]),
    terms=st.sampled_from(TERMS),
)
def test_shapes_strides_and_odd_rows(rows: int, vocab: int, beside: int, shift: int, odd: str, terms: dict) -> None:
    memory = noise(rows * (vocab + beside) + shift, seed=rows + vocab)
    logits = memory[shift:].view(rows, vocab + beside)[:, :vocab]
    if rows and odd == "all -inf":
        logits[0] = -torch.inf
    elif rows and odd == "first block -inf":
        logits[0, : vocab - 1] = -torch.inf
    elif rows and odd:
        logits[0, vocab // 2] = {"zero": 0.0}.get(odd, float(odd) if odd != "zero" else 0.0)
    targets, upstream = drawn(rows, vocab), torch.ones(rows)
    ours = cross_entropy(logits, targets, kernels="triton", **terms)
    torch.testing.assert_close(ours, cross_entropy(logits, targets, kernels="reference", **terms), equal_nan=True)
    found = [
        gradients(lambda x, kind=kind: cross_entropy(x, targets, kernels=kind, **terms), [logits], upstream)
        for kind in KINDS
    ]
    if odd not in ("all -inf", "inf", "nan"):  # what is not a number is so in both, if not in the same places
        torch.testing.assert_close(found[1], found[0], equal_nan=True)
    else:
        torch.testing.assert_close(found[1][0][1:], found[0][0][1:])


def test_a_block_of_minus_infinity_before_others_is_no_trouble() -> None:
    """Blocks are 8192 wide; the first one has no finite logit."""
    logits = torch.full((2, 9000), -torch.inf)
    logits[:, 8500:] = noise(2, 500)
    targets = torch.tensor([8500, 8999])
    torch.testing.assert_close(cross_entropy(logits, targets, kernels="triton"), written_out(logits, targets))
    halves = [rows_of("triton").statistics(part, targets, Place(first, 9000), Terms()) for first, part in
              ((0, logits[:, :4500]), (4500, logits[:, 4500:].contiguous()))]  # fmt: skip
    torch.testing.assert_close(combined(torch.stack(halves), 9000, Terms())[0], written_out(logits, targets))


@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_shares_of_the_vocabulary_make_the_whole(terms: dict) -> None:
    logits, targets, scale = noise(5, 90, scale=2), drawn(5, 90), noise(5, seed=3)
    told, whole = Terms(**terms), Place(0, 90)
    for kind in KINDS:
        rows, parts = rows_of(kind), ((0, 20), (20, 64), (64, 90))
        found = [rows.statistics(logits[:, a:b], targets, Place(a, 90), told) for a, b in parts]
        losses, lse = combined(torch.stack(found), 90, told)
        torch.testing.assert_close(losses, written_out(logits, targets, **terms))
        expected, out = torch.empty_like(logits), torch.empty_like(logits)
        rows_of("reference").gradient(logits, targets, lse, scale, whole, told, expected)
        for a, b in parts:
            rows.gradient(logits[:, a:b], targets, lse, scale, Place(a, 90), told, out[:, a:b])
        torch.testing.assert_close(out, expected)


def test_nothing_is_written_out_of_bounds_and_in_place_is_the_same() -> None:
    logits, targets, scale = noise(5, 77), drawn(5, 77), noise(5, seed=3)
    rows, terms = rows_of("triton"), Terms(1e-3, 0.1)
    _, lse = rows.losses(logits, targets, terms)
    beside, over = Guarded((5, 77), torch.float32), Guarded((5, 77), torch.float32)
    over.tensor.copy_(logits)
    rows.gradient(logits, targets, lse, scale, Place(0, 77), terms, beside.tensor)
    rows.gradient(over.tensor, targets, lse, scale, Place(0, 77), terms, over.tensor)
    beside.check(), over.check()
    assert torch.equal(beside.tensor, over.tensor)


def test_backward_in_place_takes_the_logits_and_runs_once() -> None:
    weight, x, targets = noise(40, 8).requires_grad_(), noise(6, 8, seed=1).requires_grad_(), drawn(6, 40)
    plain = torch.autograd.grad(cross_entropy(x @ weight.t(), targets, kernels="triton").sum(), (x, weight))
    logits = x @ weight.t()
    kept = logits.detach().clone()
    losses = cross_entropy(logits, targets, in_place=True, kernels="triton")
    ours = torch.autograd.grad(losses.sum(), (x, weight), retain_graph=True)
    assert all(map(torch.equal, ours, plain)) and not torch.equal(logits, kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_a_row_alone_is_that_row_in_a_batch_and_runs_agree() -> None:
    logits, targets = noise(9, 300, dtype=torch.bfloat16), drawn(9, 300)

    def run() -> list[Tensor]:
        call = lambda x: cross_entropy(x, targets, kernels="triton")  # noqa: E731
        return [call(logits), *gradients(call, [logits], noise(9, seed=1))]

    same_twice(run)
    losses, gradient = run()
    alone = lambda x: cross_entropy(x, targets[4:5], kernels="triton")  # noqa: E731
    assert torch.equal(alone(logits[4:5]), losses[4:5])
    assert torch.equal(gradients(alone, [logits[4:5]], noise(9, seed=1)[4:5])[0], gradient[4:5])


def test_the_operators_are_well_formed() -> None:
    logits, targets = noise(4, 33).requires_grad_(), drawn(4, 33)
    torch.library.opcheck(torch.ops.triaxis.cross_entropy.default, (logits, targets, 1e-3, 0.1))
    lse, upstream = noise(4), noise(4, seed=1)
    arguments = (upstream, logits.detach(), targets, lse, 1e-3, 0.1)
    torch.library.opcheck(torch.ops.triaxis.cross_entropy_backward.default, arguments)


@pytest.mark.parametrize(
    ("kind", "backend"), [("triton", "aot_eager"), ("reference", "aot_eager"), ("triton", "inductor")]
)
def test_it_goes_into_one_compiled_graph(kind: str, backend: str) -> None:
    logits, targets = noise(2, 3, 40), drawn(6, 40).view(2, 3)

    def call(x: Tensor) -> Tensor:
        return cross_entropy(x * 2, targets, z_loss=1e-2, in_place=True, kernels=kind)

    compiled = torch.compile(call, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(logits), call(logits))
    upstream = noise(2, 3, seed=1)
    torch.testing.assert_close(gradients(compiled, [logits], upstream), gradients(call, [logits], upstream))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ModelError, match=r"targets \(5,\)"):
        cross_entropy(noise(4, 9), drawn(5, 9))
    with pytest.raises(ModelError, match=r"loss\.z_loss=-1"):
        Terms(z_loss=-1.0)
    with pytest.raises(ModelError, match=r"loss\.label_smoothing=1\.0"):
        Terms(label_smoothing=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_the_formula(terms: dict, dtype: torch.dtype) -> None:
    logits, targets = noise(64, 128256, dtype=dtype).cuda(), drawn(64, 128256).cuda()
    upstream = noise(64, seed=1).cuda()
    call = lambda x: cross_entropy(x, targets, kernels="triton", in_place=True, **terms)  # noqa: E731
    exact = written_out(logits.double(), targets, **terms)
    no_worse_than_torch(call(logits), written_out(logits, targets, **terms), exact)
    (ours,) = gradients(lambda x: call(x * 1), [logits], upstream)
    (torchs,) = gradients(lambda x: written_out(x, targets, **terms), [logits], upstream)
    (exact,) = gradients(lambda x: written_out(x, targets, **terms), [logits.double()], upstream.double())
    no_worse_than_torch(ours, torchs, exact)
    same_twice(lambda: [call(logits), *gradients(lambda x: call(x * 1), [logits], upstream)])
