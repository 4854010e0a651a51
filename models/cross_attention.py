"""Attention of a decoder to its encoder (arXiv 1706.03762, section 3.2.3): queries from one, keys and values from the other.

No positions enter: rows of the two parts have none in common. A row sees the encoder's rows of its own document, of which there
must be some. Query-key norm and dropout are those of self-attention.

Shapes: D the decoder's and E the encoder's rows of a sequence, B batch, H hidden, A query heads, G key-value heads, W head
size; A and G are this rank's, and so are D and E as they come in where sequence parallelism cuts both.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import query_key_norm
from models.attention_block import attend
from models.config import ModelConfig
from models.core import CoreSpec, drop_weights
from models.feedforward import residual_std
from models.layers import Layers, scaled
from models.random import key_tensor, stream_key


class CrossAttention(nn.Module):
    """Projections around attention to the encoder's rows. `recompute_core` drops what attention keeps and computes it again."""

    def __init__(self, config: ModelConfig, layers: Layers, name: str, *, recompute_core: bool) -> None:
        super().__init__()
        width = config.head_width
        query, key_value = config.heads * width, config.key_value_heads * width
        bias, std = config.bias or config.qkv_bias, config.matrix_std
        self.width, self.encoder, self.recompute_core, self._layers = (
            width,
            config.encoder_length,
            recompute_core,
            layers,
        )
        self.heads, self.query_scale = layers.share(config.heads), config.scales.query
        self.query = layers.column("query", config.hidden_size, (query,), bias=bias, std=std)
        self.key_value = layers.column("key_value", config.hidden_size, (key_value, key_value), bias=bias, std=std)
        self.output = layers.row("output", query, config.hidden_size, bias=config.bias, std=residual_std(config))
        self.query_norm = query_key_norm(config, layers, config.heads)
        self.key_norm = query_key_norm(config, layers, config.key_value_heads)
        key = key_tensor(stream_key(layers.clock.seed, "dropout", name, "cross"))
        self.spec = CoreSpec(causal=False, dropout=config.attention_dropout, dropout_key=key, heads=config.heads)

    def forward(self, x: Tensor, encoder: Tensor, first_sample: int | Tensor) -> Tensor:
        """x: [D, B, H], encoder: [E, B, H] -> [D, B, H]."""
        query = self.query(x, first_sample).unflatten(-1, (-1, self.width))
        key, value = self.key_value(encoder, first_sample).unflatten(-1, (-1, self.width)).chunk(2, dim=-2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = scaled(query, self.query_scale)
        if self.recompute_core and self.training:
            mixed = checkpoint(self._core, query, key, value, first_sample, use_reentrant=False)
        else:
            mixed = self._core(query, key, value, first_sample)
        return self.output(mixed, first_sample)

    def _core(self, query: Tensor, key: Tensor, value: Tensor, first_sample: int | Tensor) -> Tensor:
        """query [D, B, A, W], key and value [E, B, G, W] -> [D, B, A * W]."""
        q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        documents = self._layers.clock.documents(first_sample, q.shape[0])
        ours, theirs = documents[:, self.encoder :], documents[:, : self.encoder]
        mask = (ours[:, :, None] == theirs[:, None, :])[:, None]
        if self.spec.dropout > 0 and self.training:
            mixed, _ = attend(q, k, v, mask, False, lambda weights: self._drop(weights, first_sample))
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return mixed.permute(2, 0, 1, 3).flatten(2)

    def _drop(self, weights: Tensor, first_sample: int | Tensor) -> Tensor:
        rows, columns = weights.shape[2:]
        first_head = self._layers.feature_start(self.heads)
        return drop_weights(weights, self.spec, first_sample, first_head, ((0, rows),), ((0, columns),), rows + columns)
