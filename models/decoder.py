"""The decoder as a list of named blocks that can be built from i to j: a pipeline stage is such a slice.

Blocks: `embedding`, `positions`, `layers.0` … `layers.n-1`, `final_norm` (pre-norm models only), `head`. Between blocks
flows one tensor [S, B, H]; tokens [B, S] go in, logits [S, B, V] come out. Tokens and position embeddings are two
blocks so that a tied head shares a block that holds nothing else.

An encoder-decoder (arXiv 1706.03762, 1910.10683) is such a list, too, with `encoder.0` … and `encoder_norm` (pre-norm) before
`layers.0`: of each sequence the first `encoder_length` rows are the encoder's, the others the decoder's, and a block passes on
unchanged what it does not act on. Logits come out for the decoder's rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import Attention
from models.blocks import block_count
from models.config import ModelConfig
from models.core import take_spans
from models.cross_attention import CrossAttention
from models.dropout import Dropout
from models.feedforward import FeedForward
from models.layers import Layers, scaled
from models.moe.layer import MixtureOfExperts
from models.norm import Norm
from models.parameters import declaration, initialise


class Parts:
    """Where the rows of sequences part in the encoder's and the decoder's; a decoder alone has all of them."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        self.encoder, self._layers = config.encoder_length, layers

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activations [S, B, H] as they flow between blocks -> the encoder's rows and the decoder's. Where the sequence is cut,
        each rank has its share of both parts."""
        rows = self.encoder * x.shape[0] // self._layers.uncut(x.shape[0])
        return x[:rows], x[rows:]


class Block(nn.Module):
    """A named part of the decoder; parameter names are `<name>.<path>` at every layout."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class EmbeddingBlock(Block):
    """tokens [B, S] int64 -> [S, B, H]."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("embedding")
        self.encoder = config.encoder_length
        self.token = layers.embedding(config.padded_vocab, config.hidden_size, std=config.init_std)

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.encoder:
            return self.token(tokens)
        return torch.cat((self.token(tokens[:, : self.encoder]), self.token(tokens[:, self.encoder :])))


class PositionBlock(Block):
    """Adds learned positions, if the model has them, multiplies by embedding_multiplier, and drops out."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("positions")
        self._layers = layers
        self.weight: nn.Parameter | None = None
        if config.positions == "learned":
            table = nn.Parameter(torch.empty(config.max_sequence, config.hidden_size, dtype=layers.dtype))
            self.weight = layers.replicated(table, std=config.init_std)
        self.resets = config.reset_position_ids and config.positions == "learned"
        self.scale = config.scales.embedding
        self.dropout = Dropout(layers, config.dropout, self.name)
        self.parts = Parts(config, layers)
        if self.parts.encoder:
            self.encoder_dropout = Dropout(layers, config.dropout, f"{self.name}/encoder")

    def forward(self, x: Tensor) -> Tensor:
        dropping = self.dropout.probability > 0 and self.training
        first_sample = self._layers.clock.first_sample(self.name, x.shape[1]) if dropping or self.resets else 0
        if not self.parts.encoder:
            return self._place(x, first_sample, self.dropout)
        encoder, decoder = self.parts.split(x)
        return torch.cat(
            (self._place(encoder, first_sample, self.encoder_dropout), self._place(decoder, first_sample, self.dropout))
        )

    def _place(self, x: Tensor, first_sample: int, dropout: Dropout) -> Tensor:
        if self.weight is not None:
            x = x + self._rows(self._layers.use(self.weight), x, first_sample)
        return dropout(scaled(x, self.scale), first_sample, self._layers.uncut(x.shape[0]))

    def _rows(self, table: Tensor, x: Tensor, first_sample: int) -> Tensor:
        """Rows of the table for x [S, B, H]: [S, 1, H], or [S, B, H] where each document has its own positions."""
        spans = self._layers.spans(x.shape[0])
        if not self.resets:
            return take_spans(table, spans, 0)[:, None, :]
        places = self._layers.clock.positions(first_sample, x.shape[1])
        return F.embedding(take_spans(places, spans, 1).t(), table)


class Branch(NamedTuple):
    """A part of a layer beside the residual stream. part: called with its input and the first sample."""

    norm: Norm
    part: Callable[..., Tensor]
    drop: nn.Module


class DecoderLayer(Block):
    """Attention and feed-forward around the residual stream, pre- or post-norm."""

    def __init__(self, config: ModelConfig, layers: Layers, index: int, recompute: str, stack: str = "layers") -> None:
        super().__init__(f"{stack}.{index}")
        self.pre_norm, self.scale = config.norm_position == "pre", config.scales.branch
        self.recompute = recompute == "block"
        self.parted = config.parted or config.prefix_mask
        self._layers = layers = layers.within(self.name, high=layers.products.above(index, config.layers))
        self.attention_norm = Norm(layers, config.norm, config.hidden_size, config.norm_eps, bias=config.bias)
        self.attention = Attention(
            config, layers.within("attention"), self.name, recompute_core=recompute == "selective"
        )
        self.ffn_norm = Norm(layers, config.norm, config.hidden_size, config.norm_eps, bias=config.bias)
        self.feed_forward: FeedForward | MixtureOfExperts
        if config.has_experts(index):
            self.feed_forward = MixtureOfExperts(config, layers.within("feed_forward"), index)
        else:
            self.feed_forward = FeedForward(config, layers.within("feed_forward"), config.ffn_width)
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
        return self._through(x, first_sample, (self._attention_branch, self._feed_branch))

    @property
    def _attention_branch(self) -> Branch:
        return Branch(self.attention_norm, self.attention, self.attention_drop)

    @property
    def _feed_branch(self) -> Branch:
        return Branch(self.ffn_norm, self.feed_forward, self.ffn_drop)

    def _through(self, x: Tensor, first_sample: int | Tensor, branches: Sequence[Branch]) -> Tensor:
        """x [S, B, H] through branches of the residual stream, each added to it in the pass of the norm that follows."""
        length, found = self._layers.uncut(x.shape[0]), None
        for branch in branches:
            if not self.pre_norm:
                x = branch.norm(branch.drop(branch.part(x, first_sample), first_sample, length), x)[0]
                continue
            normed, x = (branch.norm(x), x) if found is None else branch.norm(found, x)
            found = scaled(branch.drop(branch.part(normed, first_sample), first_sample, length), self.scale)
        return x if found is None else x + found


class EncoderLayer(DecoderLayer):
    """A layer of the encoder: acts on its rows, which see one another."""

    def __init__(self, config: ModelConfig, layers: Layers, index: int, recompute: str) -> None:
        super().__init__(config.encoder(), layers, index, recompute, "encoder")
        self._parts = Parts(config, layers)

    def _arithmetic(self, x: Tensor, first_sample: int | Tensor) -> Tensor:
        encoder, decoder = self._parts.split(x)
        return torch.cat((super()._arithmetic(encoder, first_sample), decoder))


class EncoderNorm(Block):
    """The norm of a pre-norm encoder's rows, as every layer of the decoder attends to them."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("encoder_norm")
        self.norm = Norm(layers, config.norm, config.hidden_size, config.norm_eps, bias=config.bias)
        self._parts = Parts(config, layers)

    def forward(self, x: Tensor) -> Tensor:
        encoder, decoder = self._parts.split(x)
        return torch.cat((self.norm(encoder), decoder))


class CrossLayer(DecoderLayer):
    """A layer of a decoder that attends to itself and then to its encoder's rows; acts on its own rows."""

    def __init__(self, config: ModelConfig, layers: Layers, index: int, recompute: str) -> None:
        super().__init__(config, layers, index, recompute)
        self._parts = Parts(config, layers)
        self.cross_norm = Norm(layers, config.norm, config.hidden_size, config.norm_eps, bias=config.bias)
        within = self._layers.within("cross")
        self.cross = CrossAttention(config, within, self.name, recompute_core=recompute == "selective")
        self.cross_drop = Dropout(layers, config.dropout, f"{self.name}/cross_output")

    def _arithmetic(self, x: Tensor, first_sample: int | Tensor) -> Tensor:
        encoder, decoder = self._parts.split(x)
        cross = Branch(self.cross_norm, lambda rows, first: self.cross(rows, encoder, first), self.cross_drop)
        branches = (self._attention_branch, cross, self._feed_branch)
        return torch.cat((encoder, self._through(decoder, first_sample, branches)))


class FinalNorm(Block):
    """The norm before the head of a pre-norm model."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("final_norm")
        self.norm = Norm(layers, config.norm, config.hidden_size, config.norm_eps, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class HeadBlock(Block):
    """[S, B, H] -> logits [S, B, V] of the decoder's rows, or their losses [S, B] where the clock was told of targets; tied to
    the embedding by being handed its block."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__("head")
        self._parts, self._clock, self.scale = Parts(config, layers), layers.clock, config.scales.head
        self.projection = layers.head(
            config.hidden_size, config.padded_vocab, std=config.init_std, tied=config.tied_embeddings
        )

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        first_sample = self._clock.first_sample(self.name, x.shape[1])
        asked = self._clock.asked(first_sample, x.shape[1])
        return self.projection(scaled(self._parts.split(x)[1], self.scale), weight, asked, first_sample)


def block_recipe(
    config: ModelConfig, layers: Layers, index: int, recompute: str
) -> tuple[type[Block], tuple[Any, ...]]:
    """Class and arguments of the block at `index` of the decoder, for engines that build their stages themselves."""
    if index == 0:
        return EmbeddingBlock, (config, layers)
    if index == 1:
        return PositionBlock, (config, layers)
    index -= 2
    if config.encoder_layers:
        if index < config.encoder_layers:
            return EncoderLayer, (config, layers, index, recompute)
        index -= config.encoder_layers
        if config.norm_position == "pre":
            if index == 0:
                return EncoderNorm, (config, layers)
            index -= 1
    if index < config.layers:
        return CrossLayer if config.encoder_layers else DecoderLayer, (config, layers, index, recompute)
    if index == config.layers and config.norm_position == "pre":
        return FinalNorm, (config, layers)
    return HeadBlock, (config, layers)


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
