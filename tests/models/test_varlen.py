"""Attention document by document equals attention written out, and the dense mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.core import CoreSpec, PlainCore, document_numbers
from models.errors import ModelError
from models.random import Clock
from models.varlen import VarlenCore
from tests.models.helpers import LLAMA, changed, random_decoder, random_tokens, run, worst_error
from tests.models.naive_attention import made_up, made_up_prefix, naive

MASKS = [
    (causal, window, prefix)
    for causal in (True, False)
    for window in (0, 1, 4, 99)
    for prefix in ((False, True) if causal else (False,))
]


@pytest.mark.parametrize(("causal", "window", "marked"), MASKS)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_documents_one_by_one_are_attention_written_out(causal: bool, window: int, marked: bool, groups: int) -> None:
    query, key, value, documents, gradient = made_up(14, 3, 4, groups)
    prefix = made_up_prefix(14, 3) if marked else None
    expected = naive(query, key, value, causal=causal, window=window, documents=documents, prefix=prefix)
    wanted = torch.autograd.grad(expected, (query, key, value), gradient)
    clock = Clock(0)
    clock.start(6, documents, prefix)
    spec = CoreSpec(causal=causal, window=window, documents=True, prefix=marked, varlen=True, heads=4)
    core = VarlenCore(spec, clock)
    found = core(query, key, value, 6, True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (query, key, value), gradient), wanted)
    part = core(query[:, 1:], key[:, 1:], value[:, 1:], 7, True)  # a later micro-batch
    torch.testing.assert_close(part, expected[:, 1:])


def test_a_clock_tells_where_documents_begin() -> None:
    clock = Clock(0)
    clock.start(10, torch.tensor([[0, 0, 1, 1, 1, 2], [4, 4, 4, 4, 4, 4], [-1, 0, 1, 1, 5, 5]]))
    assert clock.borders(10, 3) == [[0, 2, 5], [0], [0, 1, 2, 4]]
    assert clock.borders(11, 1) == [[0]]


@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_a_model_trains_alike_with_either_kernel(recompute: str) -> None:
    config = changed(LLAMA, document_mask=True, document_end=3, reset_position_ids=True)
    tokens = random_tokens(config, 2, 40)
    found = {}
    for kernel in ("dense", "varlen"):
        clock = Clock(0)
        clock.start(0, document_numbers(tokens, 3))
        decoder = random_decoder(changed(config, attention_kernel=kernel), clock=clock, recompute=recompute)
        found[kernel] = run(decoder.train(), tokens)
    logits, loss, gradients = zip(*found.values(), strict=True)
    torch.testing.assert_close(*logits)
    torch.testing.assert_close(*loss)
    assert worst_error(*gradients)[0] < 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"document_mask": True, "document_end": 3, "attention_dropout": 0.1}], ids=["no mask", "dropout"]
)
def test_what_it_cannot_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="attention_kernel=varlen"):
        changed(LLAMA, attention_kernel="varlen", **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("causal", [True, False])
def test_the_gpu_kernel_agrees_with_the_dense_mask(causal: bool, window: int) -> None:
    """Output and gradients in bfloat16; its counterpart on CPU is the first test."""
    generator = torch.Generator("cuda").manual_seed(0)
    parts = [
        torch.randn(64, 2, heads, 32, generator=generator, device="cuda").bfloat16().requires_grad_()
        for heads in (4, 2, 2)
    ]
    gradient = torch.randn(64, 2, 128, generator=generator, device="cuda").bfloat16()
    clock = Clock(0)
    clock.start(0, (torch.arange(64, device="cuda") // torch.tensor([[13], [20]], device="cuda")))
    spec = CoreSpec(causal=causal, window=window, documents=True, varlen=True, heads=4)
    results = []
    for core in (VarlenCore(spec, clock), PlainCore(spec, clock)):
        out = core(*parts, 0, True)
        results.append((out, *torch.autograd.grad(out, parts, gradient)))
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
