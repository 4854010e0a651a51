"""The decoder as a list of named blocks that can be built from i to j: a pipeline stage is such a slice.

Blocks: `embedding`, `positions`, `layers.0` … `layers.n-1`, `final_norm` (pre-norm models only), `head`. Between blocks
flows one tensor [S, B, H]; tokens [B, S] go in, logits [S, B, V] come out. Tokens and position embeddings are two
blocks so that a tied head shares a block that holds nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import Attention
from models.blocks import block_count
from models.config import ModelConfig
from models.core import take_spans
from models.feedforward import FeedForward
from models.layers import Dropout, Layers, Norm
from models.moe.layer import MixtureOfExperts
from models.parameters import declaration, initialise


class Block(nn.Module):
    """A named part of the decoder; parameter names are `<name>.<path>` at every layout."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class EmbeddingBlock(Block):
    """tokens [B, S] int64 -> [S, B, H]."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("embedding")
        self.token = layers.embedding(config.padded_vocab, config.hidden_size, std=config.init_std)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens)


class PositionBlock(Block):
    """Adds learned positions, if the model has them, and drops out."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("positions")
        self._layers = layers
        self.weight: nn.Parameter | None = None
        if config.positions == "learned":
            table = nn.Parameter(torch.empty(config.max_sequence, config.hidden_size, dtype=layers.dtype))
            self.weight = layers.replicated(table, std=config.init_std)
        self.resets = config.reset_position_ids and config.positions == "learned"
        self.dropout = Dropout(layers, config.dropout, self.name)

    def forward(self, x: Tensor) -> Tensor:
        dropping = self.dropout.probability > 0 and self.training
        first_sample = self._layers.clock.first_sample(self.name, x.shape[1]) if dropping or self.resets else 0
        if self.weight is not None:
            x = x + self._rows(self._layers.use(self.weight), x, first_sample)
        return self.dropout(x, first_sample, self._layers.uncut(x.shape[0])) if dropping else x

    def _rows(self, table: Tensor, x: Tensor, first_sample: int) -> Tensor:
        """Rows of the table for x [S, B, H]: [S, 1, H], or [S, B, H] where each document has its own positions."""
        spans = self._layers.spans(x.shape[0])
        if not self.resets:
            return take_spans(table, spans, 0)[:, None, :]
        places = self._layers.clock.positions(first_sample, x.shape[1])
        return F.embedding(take_spans(places, spans, 1).t(), table)


class DecoderLayer(Block):
    """Attention and feed-forward around the residual stream, pre- or post-norm."""

    def __init__(self, config: ModelConfig, layers: Layers, index: int, recompute: str) -> None:
        super().__init__(f"layers.{index}")
        self.pre_norm = config.norm_position == "pre"
        self.recompute = recompute == "block"
        self.parted = config.document_mask or config.prefix_mask
        self._layers = layers
        self.attention_norm = Norm(layers, config.norm, config.hidden_size, config.norm_eps, bias=config.bias)
        self.attention = Attention(config, layers, self.name, recompute_core=recompute == "selective")
        self.ffn_norm = Norm(layers, config.norm, config.hidden_size, config.norm_eps, bias=config.bias)
        self.feed_forward: FeedForward | MixtureOfExperts
        if config.has_experts(index):
            self.feed_forward = MixtureOfExperts(config, layers, index)
        else:
            self.feed_forward = FeedForward(config, layers, config.ffn_width)
        self.attention_drop = Dropout(layers, config.dropout, f"{self.name}/attention_output")
        self.ffn_drop = Dropout(layers, config.dropout, f"{self.name}/ffn_output")
        self._compiled: Callable[[Tensor, Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [S, B, H] -> [S, B, H]."""
        first_sample = self._layers.clock.first_sample(self.name, x.shape[1]) if self.training or self.parted else 0
        if self.recompute and self.training:
            return checkpoint(self._run, x, first_sample, use_reentrant=False)
        return self._run(x, first_sample)

    def compile_arithmetic(self, backend: str | Callable) -> None:
        """Compile all but the clock and the checkpoint. Layers share their code, so a decoder compiles one of them.

        A break in the graph, or a layer that would have to be compiled over and over, is an error, not a slow run.
        """
        self._compiled = torch.compile(self._arithmetic, backend=backend, fullgraph=True, dynamic=False)

    def _run(self, x: Tensor, first_sample: int) -> Tensor:
        if self._compiled is None:
            return self._arithmetic(x, first_sample)
        return self._compiled(x, torch.tensor(first_sample))  # a number would be compiled for each value anew

    def _arithmetic(self, x: Tensor, first_sample: int | Tensor) -> Tensor:
        length = self._layers.uncut(x.shape[0])
        if self.pre_norm:
            x = x + self.attention_drop(self.attention(self.attention_norm(x), first_sample), first_sample, length)
            return x + self.ffn_drop(self._feed(self.ffn_norm(x), first_sample), first_sample, length)
        x = self.attention_norm(x + self.attention_drop(self.attention(x, first_sample), first_sample, length))
        return self.ffn_norm(x + self.ffn_drop(self._feed(x, first_sample), first_sample, length))

    def _feed(self, x: Tensor, first_sample: int) -> Tensor:
        if isinstance(self.feed_forward, MixtureOfExperts):
            return self.feed_forward(x, first_sample)
        return self.feed_forward(x)


class FinalNorm(Block):
    """The norm before the head of a pre-norm model."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("final_norm")
        self.norm = Norm(layers, config.norm, config.hidden_size, config.norm_eps, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class HeadBlock(Block):
    """[S, B, H] -> logits [S, B, V]; tied to the embedding by being handed its block."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("head")
        self.projection = layers.head(
            config.hidden_size, config.padded_vocab, std=config.init_std, tied=config.tied_embeddings
        )

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.projection(x, weight)


def block_recipe(
    config: ModelConfig, layers: Layers, index: int, recompute: str
) -> tuple[type[Block], tuple[Any, ...]]:
    """Class and arguments of the block at `index` of the decoder, for engines that build their stages themselves."""
    if index == 0:
        return EmbeddingBlock, (config, layers)
    if index == 1:
        return PositionBlock, (config, layers)
    if index < config.layers + 2:
        return DecoderLayer, (config, layers, index - 2, recompute)
    if index == block_count(config) - 1:
        return HeadBlock, (config, layers)
    return FinalNorm, (config, layers)


def build_block(config: ModelConfig, layers: Layers, index: int, recompute: str = "none") -> Block:
    """Build the block at `index` of the decoder."""
    kind, arguments = block_recipe(config, layers, index, recompute)
    return kind(*arguments)


class Decoder(nn.Module):
    """Blocks [start, stop) of a decoder in order. The whole decoder maps tokens [B, S] to logits [S, B, V]."""

    def __init__(
        self, config: ModelConfig, layers: Layers, start: int = 0, stop: int | None = None, recompute: str = "none"
    ) -> None:
        super().__init__()
        stop = block_count(config) if stop is None else stop
        self.blocks = nn.ModuleList(build_block(config, layers, i, recompute) for i in range(start, stop))
        self.tied = config.tied_embeddings

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            tied = self.tied and isinstance(block, HeadBlock)
            x = block(x, self._embedding().token.weight) if tied else block(x)
        return x

    def _embedding(self) -> EmbeddingBlock:
        first = self.blocks[0]
        assert isinstance(first, EmbeddingBlock), "a tied head without its embedding is the pipeline engine's business"
        return first


def named_parameters(blocks: Iterator[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Logical name and parameter of every parameter of some blocks."""
    for block in blocks:
        assert isinstance(block, Block)
        for name, parameter in block.named_parameters():
            yield f"{block.name}.{name}", parameter


def initialise_blocks(blocks: Iterator[nn.Module], seed: int) -> None:
    """Write the initial weights of whole (unpartitioned) blocks."""
    for name, parameter in named_parameters(blocks):
        initialise(parameter.data, name, seed, declaration(parameter), (0,) * parameter.dim())
