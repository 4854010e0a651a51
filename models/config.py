"""What a model is: one decoder, with or without an encoder before it, its dialects as options that combine freely.

Every field is documented by the string under it; `triaxis train --help` prints those strings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.errors import ModelError as ModelError
from models.moe.config import MoEConfig
from models.parametrization import ParametrizationConfig, Scales

NORMS = ("layernorm", "rmsnorm")
POSITIONS = ("learned", "rotary", "none")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "squared_relu", "swiglu", "geglu", "geglu_tanh", "polynorm")
KERNELS = ("dense", "varlen")
GATED = ("swiglu", "geglu", "geglu_tanh")


def _refuse_unless(condition: bool, option: str, value: object, limit: str) -> None:
    if not condition:
        raise ModelError(f"{option}={value}: must be {limit}")


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{option}={value}: choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of rotary frequencies (`rope_type: llama3` in Hugging Face configurations)."""

    factor: float = 1.0
    """How much longer the context becomes; 1 leaves the frequencies as they are."""
    low_frequency_factor: float = 1.0
    """Wavelengths above original_sequence / this are divided by `factor`."""
    high_frequency_factor: float = 4.0
    """Wavelengths below original_sequence / this are left alone; between the two the change is linear."""
    original_sequence: int = 8192
    """Sequence length in tokens that the unscaled frequencies were trained with."""

    def __post_init__(self) -> None:
        """Refuse what divides by zero."""
        _refuse_unless(self.factor > 0, "model.rope_scaling.factor", self.factor, "above 0")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        limit = f"above model.rope_scaling.low_frequency_factor={low}"
        _refuse_unless(high > low, "model.rope_scaling.high_frequency_factor", high, limit)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, or with `encoder_layers` an encoder-decoder."""

    name: str = "model"
    """Name of the preset; only shown."""
    vocab_size: int = 0
    """Rows of the token embedding; 0 takes the tokenizer's size."""
    vocab_multiple: int = 1
    """The vocabulary is padded up to a multiple of this, so that it divides by the tensor degree."""
    hidden_size: int = 256
    """Width of the residual stream."""
    layers: int = 4
    """Number of transformer blocks; of an encoder-decoder, those of the decoder."""
    encoder_layers: int = 0
    """Number of encoder blocks, whose positions all see one another and which every decoder block attends to; 0 for a decoder
    alone."""
    encoder_length: int = 0
    """Encoder-decoders only: the first tokens of each sequence, which the encoder reads; positions restart after them."""
    heads: int = 4
    """Number of query heads."""
    kv_heads: int = 0
    """Number of key and value heads: 0 for as many as `heads`, 1 for multi-query, between for grouped-query."""
    head_size: int = 0
    """Width of one head; 0 for hidden_size / heads."""
    ffn_size: int = 0
    """Width of the feed-forward layer; 0 for 4 x hidden_size, or 8/3 x rounded up to a multiple of 64 when gated."""
    max_sequence: int = 2048
    """Longest sequence in tokens, the encoder's part included; rows of a learned position table, limit of a rotary one."""
    positions: str = "rotary"
    """How positions enter: learned, rotary or none."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling = RopeScaling()
    """Stretching of the rotary frequencies."""
    norm: str = "rmsnorm"
    """layernorm or rmsnorm."""
    norm_position: str = "pre"
    """pre: x + f(norm(x)), with a norm before the head; post: norm(x + f(x)), as in the first transformer."""
    norm_eps: float = 1e-5
    """Added to the variance inside the norms."""
    activation: str = "swiglu"
    """gelu, gelu_tanh, relu, squared_relu, polynorm (normed powers with learned weights, arXiv 2411.03884), or the gated
    swiglu, geglu and geglu_tanh."""
    bias: bool = False
    """Biases in all linear layers, and in LayerNorm."""
    qkv_bias: bool = False
    """Biases in the query, key and value projections even where `bias` is off (Qwen2)."""
    tied_embeddings: bool = True
    """The output head reuses the token embedding."""
    attention_window: int = 0
    """Sliding window in tokens: a position sees itself and the window - 1 before it (Mistral); 0 for all before it."""
    document_mask: bool = False
    """Attention does not cross the ends of documents packed into one sequence; positions run on (Llama 3)."""
    reset_position_ids: bool = False
    """Positions begin at 0 with each document packed into a sequence; needs document_mask."""
    attention_kernel: str = "dense"
    """How attention with a document_mask is computed: dense, all pairs of a sequence under a mask; varlen, one document after
    another, so that hidden pairs cost nothing."""
    prefix_mask: bool = False
    """What the objective marks as a prefix is seen by all of its document, also from before it (prefix LM, UL2)."""
    document_end: int = -1
    """Token that ends a document, for document_mask; -1 takes the corpus's."""
    causal: bool = True
    """A position sees none after it; false for objectives that hide what they ask for."""
    qk_norm: bool = False
    """RMS normalisation of each query and key head before the rotation."""
    qk_norm_whole: bool = False
    """RMS normalisation of all query heads together, and of all key heads, before the rotation (OLMoE)."""
    dropout: float = 0.0
    """Dropout probability on embeddings and on both residual branches."""
    attention_dropout: float = 0.0
    """Dropout probability on attention weights; above 0 the attention core is computed unfused."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    scaled_residual_init: bool = True
    """Divide the initial weights of the projections into the residual stream by the square root of how many there are: 2 x
    layers (GPT-2), 3 x in a decoder that attends to an encoder."""
    moe: MoEConfig = MoEConfig()
    """Mixture of experts."""
    parametrization: ParametrizationConfig = ParametrizationConfig()
    """What follows the model's width and depth, so that a learning rate found on a small model holds for a large one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be; sizes of 0 stay as written, the properties below resolve them."""
        _one_of("model.norm", self.norm, NORMS)
        _one_of("model.norm_position", self.norm_position, ("pre", "post"))
        _one_of("model.positions", self.positions, POSITIONS)
        _one_of("model.activation", self.activation, ACTIVATIONS)
        for option in ("hidden_size", "layers", "heads", "max_sequence", "vocab_multiple"):
            _refuse_unless(getattr(self, option) >= 1, f"model.{option}", getattr(self, option), "at least 1")
        for option in ("vocab_size", "kv_heads", "head_size", "ffn_size", "attention_window", "encoder_layers"):
            _refuse_unless(getattr(self, option) >= 0, f"model.{option}", getattr(self, option), "at least 0")
        _refuse_unless(self.document_end >= -1, "model.document_end", self.document_end, "a token, or -1")
        if self.document_end >= 0 and not self.document_mask:
            raise ModelError(
                f"model.document_end={self.document_end}: has no effect with model.document_mask=false; leave it out"
            )
        if self.reset_position_ids and (not self.document_mask or self.positions == "none"):
            option = "document_mask=false" if not self.document_mask else "positions=none"
            raise ModelError(
                f"model.reset_position_ids=true: has no effect with model.{option}; change that or leave it out"
            )
        _one_of("model.attention_kernel", self.attention_kernel, KERNELS)
        if self.attention_kernel == "varlen" and (not self.document_mask or self.attention_dropout):
            option = "document_mask=false" if not self.document_mask else f"attention_dropout={self.attention_dropout}"
            raise ModelError(
                f"model.attention_kernel=varlen: computes documents one by one without dropout, and not with model.{option}; "
                "change that or set model.attention_kernel=dense"
            )
        if self.prefix_mask and not self.causal:
            raise ModelError(
                "model.prefix_mask=true: has no effect with model.causal=false, where everything is seen; leave one out"
            )
        for option in ("rope_theta", "norm_eps", "init_std"):
            _refuse_unless(getattr(self, option) > 0, f"model.{option}", getattr(self, option), "above 0")
        for option in ("dropout", "attention_dropout"):
            value = getattr(self, option)
            _refuse_unless(0 <= value < 1, f"model.{option}", value, "at least 0 and below 1")
        if self.head_size == 0 and self.hidden_size % self.heads:
            raise ModelError(
                f"model.heads={self.heads}: does not divide model.hidden_size={self.hidden_size}; "
                "choose a divisor or set model.head_size"
            )
        if self.heads % self.key_value_heads:
            raise ModelError(
                f"model.kv_heads={self.kv_heads}: must divide model.heads={self.heads} so that every group is as large"
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise ModelError(f"model.head_size={self.head_width}: rotary positions turn pairs; choose an even size")
        if self.rope_scaling.factor != 1.0 and self.positions != "rotary":
            raise ModelError(
                f"model.rope_scaling.factor={self.rope_scaling.factor}: has no effect with "
                f"model.positions={self.positions}; set it to 1"
            )
        if self.qkv_bias and self.bias:
            raise ModelError("model.qkv_bias=true: has no effect with model.bias=true; leave one of them false")
        if self.qk_norm and self.qk_norm_whole:
            raise ModelError(
                "model.qk_norm_whole=true: normalises what model.qk_norm=true does by heads; set one of them false"
            )
        self._check_encoder()
        self._check_experts()
        self._check_depth()

    def _check_encoder(self) -> None:
        if not self.encoder_layers:
            if self.encoder_length:
                raise ModelError(
                    f"model.encoder_length={self.encoder_length}: has no effect with model.encoder_layers=0; set it to 0 or "
                    "model.encoder_layers above 0"
                )
            return
        if not 0 < self.encoder_length < self.max_sequence:
            raise ModelError(
                f"model.encoder_length={self.encoder_length}: with model.encoder_layers={self.encoder_layers} must be at least "
                f"1 and below model.max_sequence={self.max_sequence}: the tokens of a sequence that the encoder reads"
            )
        for option, there, why in (
            ("causal=false", not self.causal, "an encoder sees all anyway, and a decoder must not look ahead"),
            ("document_mask=true", self.document_mask, "attention keeps to the documents that the objective marks"),
            ("prefix_mask=true", self.prefix_mask, "what is given is the encoder's, which all see"),
            (f"moe.experts={self.moe.experts}", self.moe.experts > 0, "experts are built in decoders alone"),
        ):
            if there:
                raise ModelError(
                    f"model.{option}: with model.encoder_layers={self.encoder_layers} it cannot be set ({why}); leave it out"
                )

    def _check_depth(self) -> None:
        if self.parametrization.kind == "completep" and (self.norm_position == "post" or self.encoder_layers):
            option = "norm_position=post" if self.norm_position == "post" else f"encoder_layers={self.encoder_layers}"
            raise ModelError(
                f"model.parametrization.kind=completep: is published for one stack of pre-norm layers, not for model.{option}; "
                "set kind=mup or change that"
            )

    def _check_experts(self) -> None:
        if not self.moe.experts:
            return
        if self.activation == "polynorm":
            raise ModelError(
                f"model.activation=polynorm: has weights of its own, which experts (model.moe.experts={self.moe.experts}) "
                "do not carry; choose another activation or a model without experts"
            )
        if not any(self.has_experts(layer) for layer in range(self.layers)):
            raise ModelError(
                f"model.moe.first_dense={self.moe.first_dense}, every={self.moe.every}: leave none of "
                f"model.layers={self.layers} with experts; lower them"
            )
        if self.moe.product == "grouped" and (self.expert_width % 8 or self.hidden_size % 8):
            raise ModelError(
                f"model.moe.expert_size={self.expert_width}: grouped products need it and "
                f"model.hidden_size={self.hidden_size} in multiples of 8 (16 bytes); change them or set model.moe.product=loop"
            )

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_size or self.hidden_size // self.heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies two projections."""
        return self.activation in GATED

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward layer."""
        if self.ffn_size:
            return self.ffn_size
        return -(-8 * self.hidden_size // 3 // 64) * 64 if self.gated else 4 * self.hidden_size

    @property
    def expert_width(self) -> int:
        """Width of one routed expert."""
        return self.moe.expert_size or self.ffn_width

    @property
    def parted(self) -> bool:
        """Whether attention keeps to the documents that the clock is told of."""
        return self.document_mask or self.encoder_layers > 0

    @property
    def branches(self) -> int:
        """Projections into the residual stream of the decoder's layers; of the base's, where branches shrink with depth."""
        return (self.parametrization.base_depth or self.layers) * (3 if self.encoder_layers else 2)

    @property
    def scales(self) -> Scales:
        """How far the model is from the base of its parametrization; all 1 without one."""
        return self.parametrization.scales(self.hidden_size, self.layers, self.head_width)

    @property
    def matrix_std(self) -> float:
        """Standard deviation of the initial weights of matrices both of whose sides grow with the width."""
        return self.init_std * self.scales.matrix_std

    @property
    def output_std(self) -> float:
        """Of routers and gates."""
        return self.init_std * self.scales.output_std

    def encoder(self) -> ModelConfig:
        """The encoder by itself: layers that see both ways within a document."""
        return replace(
            self, layers=self.encoder_layers, encoder_layers=0, encoder_length=0, causal=False, document_mask=True
        )

    def has_experts(self, layer: int) -> bool:
        """Whether the decoder layer at this index (from 0) has experts."""
        return self.moe.has_experts(layer)

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding, padding included."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


def count_parameters(config: ModelConfig) -> int:
    """Exact number of trainable parameters, padding of the vocabulary included, tied weights once."""
    return _count(config, config.moe.experts)


def count_active_parameters(config: ModelConfig) -> int:
    """Parameters that one token passes through: of the routed experts only the chosen ones, everything else as in
    `count_parameters`."""
    return _count(config, config.moe.top_k)


def _count(config: ModelConfig, experts: int) -> int:
    hidden, width = config.hidden_size, config.head_width
    query, key_value = config.heads * width, config.key_value_heads * width
    norm = hidden * (2 if config.norm == "layernorm" and config.bias else 1)
    attention = hidden * (query + 2 * key_value) + query * hidden
    attention += (query + 2 * key_value) if config.bias or config.qkv_bias else 0
    attention += hidden if config.bias else 0
    attention += 2 * width if config.qk_norm else 0
    attention += query + key_value if config.qk_norm_whole else 0
    layers = sum(
        _count_experts(config, experts) if config.has_experts(layer) else _count_feed_forward(config, config.ffn_width)
        for layer in range(config.layers)
    )
    layers += config.layers * (attention + 2 * norm)
    if config.encoder_layers:
        layers += config.layers * (attention + norm)  # the decoder attends to the encoder, too
        feed_forward = _count_feed_forward(config, config.ffn_width)
        layers += config.encoder_layers * (attention + feed_forward + 2 * norm)
        layers += norm if config.norm_position == "pre" else 0
    embedding = config.padded_vocab * hidden * (1 if config.tied_embeddings else 2)
    positions = config.max_sequence * hidden if config.positions == "learned" else 0
    return embedding + positions + layers + (norm if config.norm_position == "pre" else 0)


def _count_feed_forward(config: ModelConfig, width: int) -> int:
    up = width * (2 if config.gated else 1)
    own = 4 if config.activation == "polynorm" else 0  # a weight for each of three powers, and a bias
    return config.hidden_size * (up + width) + (up + config.hidden_size if config.bias else 0) + own


def _count_experts(config: ModelConfig, experts: int) -> int:
    moe = config.moe
    shared = _count_feed_forward(config, moe.shared_experts * config.expert_width) if moe.shared_experts else 0
    gate = config.hidden_size if moe.shared_gate else 0
    return experts * _count_feed_forward(config, config.expert_width) + shared + gate + config.hidden_size * moe.experts
