"""Copies of tokens in the order of their experts and their weighted sums: Triton against torch, and both against loops."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.kernels.moe_permute import Order, order_of, permute, unpermute
from models.kernels.moe_permute import triton as functions
from tests.models.kernels.harness import Guarded, gradients, no_worse_than_torch, noise, same_twice

KINDS = ("reference", "triton")


def drawn(
    tokens: int, top_k: int, experts: int, *, drops: bool = False, multiple: int = 1, seed: int = 0
) -> tuple[Order, Tensor]:
    """An order, and the experts that it is of, int64 [N, K]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :top_k]
    within = torch.rand(tokens, top_k, generator=generator) < 0.7 if drops else None
    return order_of(chosen, within, experts, multiple), chosen


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 9),
    top_k=st.integers(1, 3),
    experts=st.integers(3, 6),
    drops=st.booleans(),
    multiple=st.sampled_from([1, 4, 32]),
    seed=st.integers(0, 99),
)
def test_every_kept_choice_has_one_row_with_its_expert(
    tokens: int, top_k: int, experts: int, drops: bool, multiple: int, seed: int
) -> None:
    order, chosen = drawn(tokens, top_k, experts, drops=drops, multiple=multiple, seed=seed)
    flat, rows = chosen.flatten(), order.rows.shape[0]
    assert int(order.counts.sum()) == rows and not (order.counts % multiple).any()
    expert = torch.repeat_interleave(torch.arange(experts), order.counts)
    real = order.rows < flat.numel()
    assert torch.equal(flat[order.rows[real]], expert[real])
    assert torch.equal(order.place[order.rows[real]], real.nonzero().flatten())
    kept = order.place < rows
    assert int(kept.sum()) == int(real.sum()) and (drops or kept.all())
    for one in range(experts):  # in the order of the tokens, and zeros behind them
        mine = order.rows[expert == one]
        assert torch.equal(mine, mine.sort().values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("drops", [False, True])
def test_they_are_loops_over_tokens_and_choices(kind: str, multiple: int, drops: bool) -> None:
    order, _ = drawn(7, 2, 4, drops=drops, multiple=multiple)
    tokens, weights = noise(7, 20), noise(7, 2, seed=1)
    rows = permute(tokens, order, kind)
    results, found = noise(*rows.shape, seed=2), torch.zeros(7, 20)
    expected = torch.zeros_like(rows)
    for token in range(7):
        for k in range(2):
            place = int(order.place[token * 2 + k])
            if place < len(rows):
                expected[place] = tokens[token]
                found[token] += weights[token, k] * results[place]
    assert torch.equal(rows, expected)
    torch.testing.assert_close(unpermute(results, weights, order, kind), found)


def there_and_back(tokens: Tensor, weights: Tensor, scale: Tensor, order: Order, kind: str) -> Tensor:
    return unpermute(permute(tokens, order, kind) * scale, weights, order, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("drops", [False, True])
def test_gradients_are_those_of_differences(kind: str, multiple: int, drops: bool) -> None:
    order, _ = drawn(3, 2, 3, drops=drops, multiple=multiple)
    tokens, weights = noise(3, 3, dtype=torch.float64), noise(3, 2, seed=1, dtype=torch.float64)
    scale, upstream = noise(len(order.rows), 3, seed=2, dtype=torch.float64), noise(3, 3, seed=3, dtype=torch.float64)
    inputs = [part.requires_grad_() for part in (tokens, weights, scale)]
    torch.autograd.gradcheck(lambda *x: (there_and_back(*x, order, kind) * upstream).sum(), inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_what_backward_needs_is_saved_with_autograd_alone(kind: str) -> None:
    """So hooks can move it away, and it is freed when backward has run."""
    tokens, weights = noise(5, 6).requires_grad_(), noise(5, 2, seed=1).requires_grad_()
    order, _ = drawn(5, 2, 3, drops=True, multiple=4)
    scale = noise(len(order.rows), 6, seed=2)
    expected = torch.autograd.grad(there_and_back(tokens, weights, scale, order, kind).sum(), [tokens, weights])
    held = [weakref.ref(one) for one in (order.rows, order.place, order.counts)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy(force=True).copy(), torch.from_numpy):
        loss = there_and_back(tokens, weights, scale, order, kind).sum()
    del order
    gc.collect()
    assert [one() for one in held] == [None] * 3
    torch.testing.assert_close(torch.autograd.grad(loss, [tokens, weights]), expected)
    order, _ = drawn(5, 2, 3)
    rows = permute(tokens, order, kind).sum()
    rows.backward()
    with pytest.raises(RuntimeError, match="second time"):
        rows.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_no_worse_than_torch(kind: str) -> None:
    order, _ = drawn(30, 4, 8, multiple=8)
    tokens, scale = noise(30, 96, dtype=torch.bfloat16), noise(len(order.rows), 96, seed=2, dtype=torch.bfloat16)
    weights, upstream = noise(30, 4, seed=1).softmax(-1), noise(30, 96, seed=3, dtype=torch.bfloat16)
    inputs = [tokens, weights, scale]

    def plain(tokens: Tensor, weights: Tensor, scale: Tensor) -> Tensor:
        """By autograd's own indexing."""
        rows = torch.cat((tokens, tokens.new_zeros(1, 96)))[order.rows // 4] * scale
        return (rows[order.place].unflatten(0, (-1, 4)) * weights.to(rows.dtype).unsqueeze(-1)).sum(1)

    call = lambda *x: there_and_back(*x, order, kind)  # noqa: E731
    exact = [part.double() for part in inputs]
    no_worse_than_torch(call(*inputs), plain(*inputs), plain(*exact), "sums")
    found = gradients(call, inputs, upstream), gradients(plain, inputs, upstream)
    for name, one, other, right in zip(
        ("tokens", "weights", "scale"), *found, gradients(plain, exact, upstream.double()), strict=True
    ):
        no_worse_than_torch(one, other, right, name)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(0, 5),
    width=st.integers(1, 40),
    beside=st.integers(0, 3),
    turned=st.booleans(),
    drops=st.booleans(),
    multiple=st.sampled_from([1, 4]),
    odd=st.sampled_from([0.0, float("nan"), float("inf")]),
)
def test_shapes_strides_and_odd_rows(
    tokens: int, width: int, beside: int, turned: bool, drops: bool, multiple: int, odd: float
) -> None:
    order, _ = drawn(tokens, 2, 3, drops=drops, multiple=multiple)
    x, weights = noise(tokens, width + beside)[:, :width], noise(tokens, 2, seed=1)
    scale, upstream = noise(len(order.rows), width, seed=2), noise(tokens, width, seed=3)
    x[:1] = odd
    if turned:
        x, upstream = x.t().contiguous().t(), upstream.t().contiguous().t()
    found = [
        [call(x, weights, scale), *gradients(call, [x, weights, scale], upstream)]
        for call in (lambda *x, kind=kind: there_and_back(*x, order, kind) for kind in KINDS)
    ]
    torch.testing.assert_close(found[1], found[0], equal_nan=True)


def test_nothing_is_written_out_of_bounds() -> None:
    order, _ = drawn(5, 2, 3, drops=True, multiple=4)
    inputs = [Guarded(shape, torch.float32) for shape in ((5, 9), (len(order.rows), 9), (10,))]
    for guarded in inputs:
        guarded.tensor.copy_(noise(*guarded.tensor.shape))
    tokens, results, weights = (guarded.tensor for guarded in inputs)
    made = [Guarded((len(order.rows), 9), torch.float32), Guarded((5, 9), torch.float32), Guarded((10,), torch.float32)]
    sizes = {"TOP_K": 2, "BLOCK": 16}
    functions._gather[(len(order.rows), 1)](tokens, order.rows, made[0].tensor, 10, 9, 9, **sizes)
    assert torch.equal(made[0].tensor, permute(tokens, order, "reference"))
    wide = sizes | {"WIDE": functions.tl.float32}
    functions._sum[(5, 1)](results, order.place, weights, made[1].tensor, len(order.rows), 9, 9, WEIGHTED=True, **wide)
    functions._weighted_gradients[(len(order.rows),)](
        tokens, results, weights, order.rows, made[0].tensor, made[2].tensor, 10, 9, 9, 9, **wide
    )
    for guarded in (*inputs, *made):
        guarded.check()


def test_runs_agree_and_a_token_alone_is_that_token_in_a_batch() -> None:
    order, chosen = drawn(6, 2, 3, multiple=4)
    tokens, weights = noise(6, 50, dtype=torch.bfloat16), noise(6, 2, seed=1)
    scale = torch.ones(len(order.rows), 50, dtype=torch.bfloat16)
    call = lambda *x: there_and_back(*x, order, "triton")  # noqa: E731
    same_twice(lambda: [call(tokens, weights, scale), *gradients(call, [tokens, weights, scale], noise(6, 50))])
    alone = order_of(chosen[4:5], None, 3, 4)
    one = there_and_back(tokens[4:5], weights[4:5], scale[: len(alone.rows)], alone, "triton")
    assert torch.equal(one, call(tokens, weights, scale)[4:5])


def test_the_operators_are_well_formed() -> None:
    order, _ = drawn(4, 2, 3, drops=True, multiple=4)
    tokens, weights = noise(4, 5).requires_grad_(), noise(8, seed=1).requires_grad_()
    results, gradient = noise(len(order.rows), 5, seed=2).requires_grad_(), noise(4, 5, seed=3)
    plain = [part.detach() for part in (results, weights)]
    operators = torch.ops.triaxis
    for operator, arguments in (
        (operators.moe_permute, (tokens, order.rows, order.place, 2)),
        (operators.moe_permute_backward, (plain[0], order.place, 2)),
        (operators.moe_unpermute, (results, weights, order.rows, order.place, 2)),
        (operators.moe_unpermute_backward, (gradient, *plain, order.rows, 2)),
    ):
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize(
    ("kind", "backend"), [("triton", "aot_eager"), ("reference", "aot_eager"), ("triton", "inductor")]
)
def test_they_go_into_one_compiled_graph(kind: str, backend: str) -> None:
    order, _ = drawn(6, 2, 3, multiple=4)
    inputs = [noise(6, 10), noise(6, 2, seed=1), noise(len(order.rows), 10, seed=2)]
    call = lambda *x: there_and_back(*x, order, kind)  # noqa: E731
    compiled = torch.compile(call, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), call(*inputs))
    upstream = noise(6, 10, seed=3)
    torch.testing.assert_close(gradients(compiled, inputs, upstream), gradients(call, inputs, upstream))


def test_what_does_not_fit_is_refused() -> None:
    order, _ = drawn(6, 2, 3)
    for call, match in (
        (lambda: permute(noise(5, 4), order), "5 tokens do not fit an order of 6"),
        (lambda: unpermute(noise(11, 4), noise(6, 2), order), "11 results do not fit an order of 12"),
        (lambda: unpermute(noise(12, 4), noise(6, 3), order), "18 weights do not fit an order of 12"),
    ):
        with pytest.raises(ModelError, match=match):
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("multiple", [1, 32])
def test_on_a_gpu_they_are_those_of_torch(multiple: int) -> None:
    order, _ = drawn(2000, 8, 64, multiple=multiple)
    moved = Order(order.rows.cuda(), order.place.cuda(), order.counts.cuda(), 8, order.dropped, order.filled)
    inputs = [noise(2000, 2048), noise(2000, 8, seed=1), noise(len(order.rows), 2048, seed=2)]
    inputs, upstream = [part.cuda() for part in inputs], noise(2000, 2048, seed=3).cuda()
    calls = [lambda *x, kind=kind: there_and_back(*x, moved, kind) for kind in KINDS]
    found = [[call(*inputs), *gradients(call, inputs, upstream)] for call in calls]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    same_twice(lambda: [calls[1](*inputs), *gradients(calls[1], inputs, upstream)])
