"""A head whose clock was told of targets gives their losses, micro-batch after micro-batch; else logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.decoder import Decoder, initialise_blocks
from models.layers import PlainLayers
from models.linear import cross_entropy
from models.loss import Terms
from models.random import Asked, Clock
from tests.parallel.cases import DIALECTS


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("dialect", ["llama", "gpt", "t5"])
def test_losses_are_those_of_the_logits(dialect: str, kernels: str) -> None:
    config = replace(DIALECTS[dialect], dropout=0.0, attention_dropout=0.0)
    clock = Clock(1)
    layers = PlainLayers(clock=clock)
    layers.kernels = kernels
    model = Decoder(config, layers)
    initialise_blocks(iter(model.blocks), 1)
    tokens = torch.randint(config.vocab_size, (6, 16))
    documents = torch.zeros_like(tokens)
    rows = 16 - config.encoder_length
    targets, weights, terms = tokens.roll(-1, 1)[:, 16 - rows :], torch.rand(6, rows), Terms(0.01, 0.1)

    def gradients(*asked: Asked) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        clock.start(40, documents, None, *asked)
        found = []
        model.zero_grad()
        for at in (slice(0, 3), slice(3, 6)):
            output = model(tokens[at])
            assert output.dim() == (2 if asked else 3)
            wanted = targets[at].t().contiguous()
            losses = output if asked else cross_entropy(output, wanted, terms, kernels=kernels)
            assert losses.shape == wanted.shape and losses.dtype == torch.float32
            (losses * weights[at].t()).sum().backward()
            found.append(losses.detach())
        return found, [p.grad for p in model.parameters()]

    expected = gradients()
    for told in (None, weights):
        torch.testing.assert_close(gradients(Asked(targets, told, terms)), expected)
    clock.start(0, documents)
    assert model(tokens).shape == (rows, 6, config.padded_vocab)
