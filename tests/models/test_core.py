"""Attention cores in one process: windows, documents and bidirectional attention, and blocks merged by log-sum-exp."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from models.attention_block import attend, attend_backward
from models.config import ModelConfig
from models.core import CoreSpec, PlainCore, document_numbers, mask_for, slice_spans
from models.random import Clock
from tests.models.helpers import LLAMA, changed, random_decoder, random_tokens
from tests.models.naive_attention import made_up, made_up_prefix, naive, sees

MASKS = [
    (causal, window, documents, prefix)
    for causal in (True, False)
    for window in (0, 1, 5, 99)
    for documents in (False, True)
    for prefix in ((False, True) if causal else (False,))
]


@pytest.mark.parametrize(("causal", "window", "parted", "marked"), MASKS)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_plain_core_is_attention_written_out(
    causal: bool, window: int, parted: bool, marked: bool, groups: int
) -> None:
    query, key, value, documents, gradient = made_up(12, 3, 4, groups)
    prefix = made_up_prefix(12, 3)
    hidden = {"documents": documents if parted else None, "prefix": prefix if marked else None}
    expected = naive(query, key, value, causal=causal, window=window, **hidden)
    wanted = torch.autograd.grad(expected, (query, key, value), gradient)
    clock = Clock(0)
    clock.start(6, documents, prefix)
    core = PlainCore(CoreSpec(causal=causal, window=window, documents=parted, prefix=marked, heads=4), clock)
    found = core(query, key, value, 6, False)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (query, key, value), gradient), wanted)


@pytest.mark.parametrize(("causal", "window", "parted", "marked"), MASKS)
def test_dropping_nothing_changes_nothing(causal: bool, window: int, parted: bool, marked: bool) -> None:
    """The core that is written out for dropout masks as the fused ones do."""
    query, key, value, documents, _ = made_up(12, 2, 4, 2)
    clock, prefix = Clock(0), made_up_prefix(12, 2)
    clock.start(0, documents, prefix)
    spec = CoreSpec(causal=causal, window=window, documents=parted, prefix=marked, dropout=1e-12, heads=4)
    hidden = {"documents": documents if parted else None, "prefix": prefix if marked else None}
    expected = naive(query, key, value, causal=causal, window=window, **hidden)
    torch.testing.assert_close(PlainCore(spec, clock)(query, key, value, 0, True), expected, rtol=1e-5, atol=1e-5)


def test_what_is_called_empty_or_full_is_so() -> None:
    cuts = [(0, 4), (4, 8), (3, 9), (8, 10), (9, 10)]
    for causal, window in itertools.product((True, False), (0, 1, 3, 5, 7)):
        spec = CoreSpec(causal=causal, window=window)
        for rows, columns in itertools.product(cuts, cuts):
            seen = [
                sees(row, column, causal=causal, window=window, documents=None)
                for row in range(*rows)
                for column in range(*columns)
            ]
            assert spec.empty(rows, columns) == (not any(seen)), (spec, rows, columns)
            assert spec.full(rows, columns) == all(seen), (spec, rows, columns)
            both_ways = CoreSpec(causal=False, window=window)
            assert spec.empty(rows, columns, marked=True) == both_ways.empty(rows, columns), (spec, rows, columns)


def test_slices_of_spans_are_slices_of_their_positions() -> None:
    spans = ((2, 5), (9, 10), (12, 16))
    flat = [position for span in spans for position in range(*span)]
    for start, stop in itertools.combinations(range(9), 2):
        assert [p for span in slice_spans(spans, start, stop) for p in range(*span)] == flat[start:stop]


@pytest.mark.parametrize("kind", ["none", "causal", "mask", "rows that see nothing"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fused_and_written_out_blocks_agree(kind: str, dtype: torch.dtype) -> None:
    """Output, log-sum-exp and gradients; the written-out one is chosen by a dropout that keeps everything."""
    generator = torch.Generator().manual_seed(0)
    q, gradient = (torch.randn(2, 4, 6, 8, generator=generator).to(dtype) for _ in range(2))
    k, v = (torch.randn(2, 2, 6, 8, generator=generator).to(dtype) for _ in range(2))
    mask = None
    if kind not in ("none", "causal"):
        mask = torch.rand(2, 1, 6, 6, generator=generator) < 0.6
        mask[..., 0] = True
        if kind.startswith("rows"):
            mask[:, :, 2:4] = False
    found = attend(q, k, v, mask, kind == "causal", None)
    expected = attend(q, k, v, mask, kind == "causal", lambda weights: weights)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, expected, check_dtype=False, **close)
    if kind.startswith("rows"):
        assert bool((found[1][:, :, 2:4] == -math.inf).all())
        assert not bool(found[0][:, :, 2:4].any())
    out, weight = (
        expected[0],
        expected[1].masked_fill(expected[1] == -math.inf, 0.5),
    )  # as if other blocks gave them something
    there = (gradient, q, out, weight, k, v, mask, kind == "causal")
    torch.testing.assert_close(attend_backward(*there, None), attend_backward(*there, lambda weights: weights), **close)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("causal", [True, False])
def test_gpu_blocks_agree_with_those_written_out(causal: bool) -> None:
    """The kernel's output, log-sum-exp and gradients; its counterpart on CPU is the test above."""
    generator = torch.Generator("cuda").manual_seed(0)
    q, gradient = (torch.randn(2, 4, 64, 32, generator=generator, device="cuda").bfloat16() for _ in range(2))
    k, v = (torch.randn(2, 2, 64, 32, generator=generator, device="cuda").bfloat16() for _ in range(2))
    close = {"rtol": 2e-2, "atol": 2e-2}
    found, expected = attend(q, k, v, None, causal, None), attend(q, k, v, None, causal, lambda weights: weights)
    torch.testing.assert_close(found, expected, check_dtype=False, **close)
    there = (gradient, q, expected[0], expected[1] + 0.5, k, v, None, causal)
    torch.testing.assert_close(attend_backward(*there, None), attend_backward(*there, lambda weights: weights), **close)


def test_an_end_belongs_to_the_document_that_it_ends() -> None:
    tokens = torch.tensor([[5, 9, 1, 9, 9, 2], [9, 3, 3, 3, 3, 9]])
    assert document_numbers(tokens, 9).tolist() == [[0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1]]


def packed_tokens(config: ModelConfig) -> Tensor:
    """Three documents in one row of 20 tokens: 7, 7 and 6."""
    tokens = random_tokens(config, 1, 20)
    tokens[tokens == config.document_end] += 1
    tokens[0, [6, 13]] = config.document_end
    return tokens


def assert_each_as_alone(config: ModelConfig) -> None:
    """Packed documents give the logits that each gives by itself."""
    decoder, tokens = random_decoder(config, dtype=torch.float64), packed_tokens(config)
    clock = decoder.blocks[2]._layers.clock
    clock.start(0, document_numbers(tokens, config.document_end))
    packed = decoder(tokens)
    for start, stop in ((0, 7), (7, 14), (14, 20)):
        clock.start(0, torch.zeros(1, stop - start, dtype=torch.int64))
        torch.testing.assert_close(packed[start:stop], decoder(tokens[:, start:stop]))


def test_a_document_does_not_notice_what_stands_before_it() -> None:
    """With rotary positions, which see only differences, packed documents give the logits of each alone."""
    assert_each_as_alone(changed(LLAMA, document_mask=True, document_end=3))


def test_positions_that_are_reset_are_those_of_each_document_alone() -> None:
    config = changed(LLAMA, document_mask=True, document_end=3, reset_position_ids=True)
    assert_each_as_alone(config)
    assert_each_as_alone(changed(config, qk_norm=True))
    assert_each_as_alone(changed(config, positions="learned"))
    with pytest.raises(AssertionError):  # where they run on, the second document is another
        assert_each_as_alone(changed(config, positions="learned", reset_position_ids=False))


def test_rotary_positions_that_are_reset_are_not_those_that_run_on() -> None:
    """Differences are the same, so logits cannot tell: the table can, far from the beginning in bfloat16."""
    clock = Clock(0)
    clock.start(0, torch.tensor([[0, 0, 1, 1, 1]]))
    attention = random_decoder(
        changed(LLAMA, document_mask=True, document_end=3, reset_position_ids=True), clock=clock
    ).blocks[2]
    cosine, sine = attention.attention._rotation(torch.zeros(5, 1, 8), 0)
    for part in (cosine, sine):
        assert torch.equal(part[:2], part[2:4])
        assert not torch.equal(part[0], part[1])


def test_positions_count_from_the_beginning_of_each_document() -> None:
    clock = Clock(0)
    clock.start(10, torch.tensor([[0, 0, 1, 1, 1, 2], [4, 4, 4, 4, 4, 4], [-1, 0, 1, 1, 5, 5]]))
    assert clock.positions(10, 3).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 0, 1]]
    assert clock.positions(11, 1).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_prefix_is_seen_from_before_it_and_nothing_else_is() -> None:
    """With one layer: what is marked moves every position of its document, what is not moves only those after it."""
    config = changed(LLAMA, prefix_mask=True, document_mask=True, document_end=3, layers=1)
    decoder, tokens = random_decoder(config), random_tokens(config, 1, 12)
    documents, prefix = torch.tensor([[0] * 8 + [1] * 4]), torch.zeros(1, 12, dtype=torch.bool)
    prefix[0, :5] = prefix[0, 10] = True
    clock = decoder.blocks[2]._layers.clock
    clock.start(0, documents, prefix)
    logits = decoder(tokens)
    for place, moves in ((4, range(8)), (6, (6, 7)), (10, range(8, 12))):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % config.vocab_size
        clock.start(0, documents, prefix)
        moved = (decoder(other) - logits).abs().amax((1, 2)) > 1e-4
        assert moved.tolist() == [position in moves for position in range(12)], place


def test_a_window_ends_where_it_says() -> None:
    """With one layer, the token `window` before moves nothing, the one after it does."""
    config = changed(LLAMA, attention_window=4, layers=1)
    decoder, tokens = random_decoder(config), random_tokens(config, 1, 12)
    logits = decoder(tokens)
    other = tokens.clone()
    other[0, 2] = (other[0, 2] + 1) % config.vocab_size
    moved = (decoder(other) - logits).abs().amax((1, 2)) > 1e-4
    assert moved.tolist() == [2 <= position < 6 for position in range(12)]


def test_without_causality_every_position_sees_every_other() -> None:
    config = changed(LLAMA, causal=False, layers=1)
    decoder, tokens = random_decoder(config), random_tokens(config, 1, 8)
    logits = decoder(tokens)
    for place in (0, 7):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % config.vocab_size
        assert bool(((decoder(other) - logits).abs().amax((1, 2)) > 1e-4).all())


def test_masks_of_spans_are_parts_of_the_whole_mask() -> None:
    documents = made_up(12, 2, 1, 1)[3]
    spec, cpu = CoreSpec(window=5, documents=True), torch.device("cpu")
    whole = mask_for(spec, ((0, 12),), ((0, 12),), documents, cpu)
    part = mask_for(spec, ((1, 3), (8, 12)), ((0, 2), (6, 9)), documents, cpu)
    rows, columns = [1, 2, 8, 9, 10, 11], [0, 1, 6, 7, 8]
    assert torch.equal(part, whole[:, :, rows][:, :, :, columns])
