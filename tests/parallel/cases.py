"""What is trained in the tests of layouts: minute models, made-up batches, and the list of dialects.

Imports no engine: the parent process of the tests stays light.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from launcher.config import OptimizerConfig
from models.config import ModelConfig
from models.loss import LossConfig
from models.moe.config import MoEConfig
from models.objectives.config import MaskedConfig, MiddleConfig, ObjectiveConfig, ReweightConfig, SpanConfig
from models.parametrization import ParametrizationConfig
from parallel.config import ParallelConfig, PrecisionConfig

SEQUENCES, LENGTH, VOCABULARY = 8, 16, 61
DOCUMENT_END = 0

ADAMW = OptimizerConfig(name="adamw", learning_rate=3e-3, clip_norm=1.0)
SGD = OptimizerConfig(name="sgd", learning_rate=0.3, beta1=0.5, weight_decay=0.01, clip_norm=0.5)

# init_std is ten times the usual, so that attention is not uniform and a wrong head, mask or rotation is seen at once.
_MINUTE = ModelConfig(
    vocab_size=VOCABULARY,
    vocab_multiple=4,
    hidden_size=32,
    layers=4,
    heads=4,
    ffn_size=48,
    max_sequence=32,
    init_std=0.2,
)
DIALECTS: dict[str, ModelConfig] = {
    # rotary, RMSNorm, SwiGLU, no biases: grouped-query and untied
    "llama": replace(_MINUTE, kv_heads=2, tied_embeddings=False),
    # learned positions, LayerNorm, GELU, biases, tied
    "gpt": replace(
        _MINUTE, positions="learned", norm="layernorm", activation="gelu_tanh", bias=True, tied_embeddings=True
    ),
    # the same with post-norm and both kinds of dropout
    "post": replace(
        _MINUTE,
        positions="learned",
        norm="layernorm",
        norm_position="post",
        activation="squared_relu",
        bias=True,
        tied_embeddings=False,
        dropout=0.1,
        attention_dropout=0.1,
    ),
    # an activation with weights of its own, whose means go over features that the tensor axis cuts
    "powers": replace(_MINUTE, layers=2, activation="polynorm", tied_embeddings=True),
    # each position sees five, in grouped-query attention: some blocks of a ring are empty, some full, some neither
    "window": replace(_MINUTE, kv_heads=2, attention_window=5, tied_embeddings=True),
    # attention ends at documents; learned positions run on over them
    "documents": replace(
        _MINUTE, positions="learned", document_mask=True, document_end=DOCUMENT_END, kv_heads=2, tied_embeddings=False
    ),
    # both, with dropout of attention weights
    "parted": replace(
        _MINUTE,
        attention_window=6,
        document_mask=True,
        document_end=DOCUMENT_END,
        attention_dropout=0.1,
        dropout=0.1,
    ),
    # documents that the batch tells, whose positions begin anew, and prefixes that are seen from before them
    "prefix": replace(
        _MINUTE,
        document_mask=True,
        document_end=DOCUMENT_END,
        reset_position_ids=True,
        prefix_mask=True,
        kv_heads=2,
        tied_embeddings=True,
    ),
    # the same with learned positions, a window and dropout of attention weights
    "marked": replace(
        _MINUTE,
        positions="learned",
        attention_window=6,
        document_mask=True,
        document_end=DOCUMENT_END,
        reset_position_ids=True,
        prefix_mask=True,
        attention_dropout=0.1,
        dropout=0.1,
    ),
    # a vocabulary that outweighs the layers: the last of two stages is the tied head alone
    "head": replace(_MINUTE, vocab_size=1001, layers=2, tied_embeddings=True),
    # as many layers as four ranks of two stages need
    "deep": replace(_MINUTE, layers=8, kv_heads=2, tied_embeddings=True),
    # query-key norm, biases in the attention projections only, grouped-query with dropout in its attention, tied
    "qwen": replace(
        _MINUTE, kv_heads=2, qk_norm=True, qkv_bias=True, tied_embeddings=True, dropout=0.1, attention_dropout=0.1
    ),
    # an encoder, packed pairs and padding: grouped-query, query-key norm, dropout in all attentions, tied
    "t5": replace(
        _MINUTE,
        layers=2,
        encoder_layers=2,
        encoder_length=6,
        kv_heads=2,
        qk_norm=True,
        activation="geglu_tanh",
        tied_embeddings=True,
        dropout=0.1,
        attention_dropout=0.1,
    ),
    # as in the first transformer: learned positions, post-norm, biases
    "first": replace(
        _MINUTE,
        layers=3,
        encoder_layers=3,
        encoder_length=8,
        positions="learned",
        norm="layernorm",
        norm_position="post",
        activation="relu",
        bias=True,
        tied_embeddings=False,
    ),
    # experts in every layer, none dropped, balanced by both losses, one always on behind a gate
    "experts": replace(
        _MINUTE,
        kv_heads=2,
        qk_norm_whole=True,
        tied_embeddings=True,
        moe=MoEConfig(
            experts=4, expert_size=16, shared_experts=1, shared_gate=True, aux_loss=0.05, z_loss=0.01, jitter=0.1
        ),
    ),
    # fine-grained experts at their capacity, in groups, balanced by biases, with biases; the first layer dense
    "capacity": replace(
        _MINUTE,
        norm="layernorm",
        activation="gelu_tanh",
        bias=True,
        tied_embeddings=False,
        moe=MoEConfig(
            experts=8,
            top_k=3,
            expert_size=16,
            first_dense=1,
            shared_experts=1,
            scoring="sigmoid",
            scale=1.5,
            groups=4,
            top_groups=2,
            group_score="top2",
            aux_loss=0.0,
            bias_rate=0.01,
            capacity=1.0,
        ),
    ),
    # dropless and balanced by biases, with two experts always on
    "biased": replace(
        _MINUTE,
        tied_embeddings=True,
        moe=MoEConfig(experts=8, expert_size=16, shared_experts=2, normalise=False, aux_loss=0.0, bias_rate=0.02),
    ),
    # at their capacity and balanced by the loss of each micro-batch, one always on
    "tight": replace(
        _MINUTE,
        kv_heads=2,
        tied_embeddings=False,
        moe=MoEConfig(experts=4, expert_size=16, shared_experts=1, aux_loss=0.05, capacity=0.75),
    ),
    # one choice of the highest weights, in every second layer, shares of choices counted over the global batch
    "switch": replace(
        _MINUTE,
        activation="relu",
        tied_embeddings=True,
        moe=MoEConfig(
            experts=4,
            top_k=1,
            every=2,
            normalise=False,
            aux_scope="global_batch",
            aux_loss=0.05,
            capacity=1.25,
            drop="probability",
        ),
    ),
}


# Models whose groups of parameters have learning rates and epsilons of their own, with every multiplier at work. Not among the
# others: sgd has no rule for depth.
PARAMETRIZED: dict[str, ModelConfig] = {
    # four times as wide, twice as deep as its base: tied, grouped-query, biases
    "completep": replace(
        DIALECTS["gpt"],
        kv_heads=2,
        parametrization=ParametrizationConfig(
            "completep", 8, 4, 2, depth_exponent=0.75, embedding_multiplier=1.5, output_multiplier=3.0
        ),
    ),
    # twice as wide: untied, routers, shared experts behind a gate, the first layer dense
    "mup": replace(
        DIALECTS["experts"],
        tied_embeddings=False,
        moe=replace(DIALECTS["experts"].moe, first_dense=1),
        parametrization=ParametrizationConfig("mup", 16, 4, output_multiplier=2.0),
    ),
}


ORDINARY = 45  # of the 61 ids; the others are special tokens
SPECIAL = {
    **dict(zip(("<|mask|>", "<|sep|>", "<|end_of_span|>"), range(45, 48), strict=True)),
    **dict(zip(("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"), range(48, 51), strict=True)),
    **dict(zip(("<|mode_r|>", "<|mode_s|>"), range(51, 53), strict=True)),
    **{f"<|sentinel_{number}|>": 53 + number for number in range(8)},
}
_SPANS = ObjectiveConfig("span_corruption", mode="<|mode_r|>", span_corruption=SpanConfig(rate=0.3, sentinels=8))
_PREFIX = ObjectiveConfig("prefix_lm", mode="<|mode_s|>")
_MASKED = ObjectiveConfig("masked_lm", masked_lm=MaskedConfig(rate=0.4))
_BY_DOCUMENT = {"document_mask": True, "document_end": DOCUMENT_END, "reset_position_ids": True}
# Objectives, and what they ask of the model.
OBJECTIVES: dict[str, tuple[ObjectiveConfig, dict[str, Any]]] = {
    "prefix_lm": (replace(_PREFIX, unit="document"), {"prefix_mask": True, **_BY_DOCUMENT}),
    "masked_lm": (_MASKED, {"causal": False}),
    "span_corruption": (_SPANS, {"prefix_mask": True}),
    "ul2": (ObjectiveConfig("mixture", mixture=(_SPANS, _PREFIX)), {"prefix_mask": True}),
    "codegen2": (ObjectiveConfig("mixture", mixture=(ObjectiveConfig(), replace(_SPANS, unit="document"))), {}),
    "fill_in_the_middle": (
        ObjectiveConfig("fill_in_the_middle", fill_in_the_middle=MiddleConfig(rate=0.9)),
        {"attention_kernel": "varlen", **_BY_DOCUMENT},
    ),
    "encoder_decoder": (replace(_SPANS, unit="document", mode=""), {}),
    "reweighted": (ObjectiveConfig(reweight=ReweightConfig("linupper", 0.5)), {}),
    "masked_and_causal": (ObjectiveConfig("mixture", mixture=(_MASKED, ObjectiveConfig())), {"prefix_mask": True}),
}


@dataclass(frozen=True)
class Case:
    """A model to train and how: everything that a rank needs to know."""

    dialect: str = "llama"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = PrecisionConfig("fp32")
    optimizer: OptimizerConfig = ADAMW
    micro_batch: int = 2
    seed: int = 7
    backend: str = "aot_eager"
    """What compiled blocks are compiled by: aot_eager does all but generate code, inductor is what runs use."""
    objective: str = ""
    """What is asked of the model: one of OBJECTIVES, or every next token."""
    kernels: str = "auto"
    """What computes AdamW."""
    loss: LossConfig = LossConfig()
    wide: bool = False
    """A model whose matrices are larger than whatever else is allocated; never stepped."""

    @property
    def model(self) -> ModelConfig:
        """The dialect's model."""
        if self.dialect in PARAMETRIZED:
            return PARAMETRIZED[self.dialect]
        if self.objective:
            return replace(DIALECTS[self.dialect], **OBJECTIVES[self.objective][1])
        if not self.wide:
            return DIALECTS[self.dialect]
        return replace(DIALECTS[self.dialect], vocab_size=4000, hidden_size=512, ffn_size=1024)

    @property
    def by_micro_batch(self) -> bool:
        """Whether what a micro-batch holds decides what is trained."""
        return bool(self.model.moe.experts) or self.objective == "reweighted"

    @property
    def world_size(self) -> int:
        """Processes that the layout needs."""
        return self.parallel.model_parallel * max(1, self.parallel.data)

    def laid_out(self, **options: Any) -> Case:
        """The same training at another layout."""
        return replace(self, parallel=ParallelConfig(**options))

    @property
    def reference(self) -> Case:
        """The same training in one process of plain PyTorch."""
        return self.laid_out(engine="torch")

    def __str__(self) -> str:
        """Degrees and whatever is not the default, for the names of tests."""
        config = self.parallel
        words = [f"{config.tensor}x{config.pipeline}x{max(1, config.data)}"]
        words += [f"{config.context}{config.context_method}"] if config.context > 1 else []
        words += [] if config.engine == "auto" else [config.engine]
        words += [] if self.world_size == 1 and config.engine == "torch" else [f"zero{config.zero_stage}"]
        words += [] if config.schedule == "1f1b" else [config.schedule]
        words += [] if config.data_replicas == 1 else [f"{config.data_replicas}replicas"]
        words += [] if config.expert == 1 else [f"{config.expert}experts"]
        words += ["sp"] if config.sequence_parallel else []
        words += ["offload"] if config.offload_optimizer else []
        words += [] if config.recompute == "none" else [config.recompute]
        words += [] if config.compile == "none" else ["compiled"]
        words += [self.dialect, self.optimizer.name]
        words += [self.objective] if self.objective else []
        words += ["fused"] if self.loss.fused else []
        words += [] if self.loss.terms.plain else ["terms"]
        words += [] if self.precision.name == "fp32" else [self.precision.name]
        return "-".join(words)


def tokens_of_step(step: int) -> Tensor:
    """Tokens int64 [8, 17] of a step: every second one can be foretold, so there is something to learn; documents end in
    every second row."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    tokens[:, 1::2] = (tokens[:, 0:-1:2] * 3 + 1) % VOCABULARY
    tokens[step % 2 :: 2, (5 * step + 3) % LENGTH] = DOCUMENT_END
    tokens[step % 4 :: 4, (5 * step + 9) % LENGTH] = DOCUMENT_END
    return tokens


def documents_of_step(step: int) -> Tensor:
    """Document numbers int64 [8, 16] of a step, that no token ends: two or three documents a row."""
    place = torch.arange(LENGTH)
    first, second = (4 + (step + torch.arange(SEQUENCES)) % 5)[:, None], (10 + step % 7)
    return (place >= first).long() + (place >= second)


def prefix_of_step(step: int) -> Tensor:
    """Prefixes bool [8, 16] of a step: the first third of each document, but of none in every third row."""
    documents, place = documents_of_step(step), torch.arange(LENGTH)
    found = torch.zeros(SEQUENCES, LENGTH, dtype=torch.bool)
    for number in range(3):
        here = documents == number
        first = torch.where(here, place, LENGTH).amin(1, keepdim=True)
        found |= here & (place - first < (here.sum(1, keepdim=True) + 2) // 3)
    found[step % 3 :: 3] = False
    return found


def pairs_of_step(step: int, encoder: int) -> Tensor:
    """Documents int64 [8, 16] of a step of an encoder-decoder whose encoder reads the first `encoder` tokens: two pairs in
    every second row, one in the others, and up to three tokens of padding after the sources."""
    documents = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int64)
    documents[step % 2 :: 2, encoder // 2 : encoder] = 1
    documents[step % 2 :: 2, encoder + (5 * step + 3) % (LENGTH - encoder) :] = 1
    for row in range(SEQUENCES):
        documents[row, encoder - (row + step) % min(4, encoder // 2) : encoder] = -1
    return documents


def weights_of_step(step: int) -> Tensor:
    """Weights float32 [8, 16] of a step's targets, uneven between data ranks and micro-batches.

    Zeros at the head of one sequence, a sequence at half weight; every fourth step a whole half of the batch counts
    nothing (a data rank then has not one valid target), every fifth step only one micro-batch of two counts.
    """
    weights = torch.ones(SEQUENCES, LENGTH)
    weights[step % SEQUENCES, :5] = 0
    weights[(3 * step + 1) % SEQUENCES] *= 0.5
    if step % 4 == 3:
        weights[SEQUENCES // 2 :] = 0
    if step % 5 == 4:
        weights[0:2] = weights[4:6] = 0
    return weights
