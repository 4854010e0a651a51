"""Mixture of experts as options of a model: router, losses, capacity, shared experts, and which layers have them.

Every field is documented by the string under it; `triaxis train --help` prints those strings.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from models.errors import ModelError


@dataclass(frozen=True)
class MoEConfig:
    """Routed experts in place of the feed-forward layers; `experts=0` is a dense model."""

    experts: int = 0
    """Routed experts in each mixture layer; 0 for a dense model."""
    top_k: int = 2
    """Experts that each token is sent to."""
    expert_size: int = 0
    """Width of one expert; 0 for the model's ffn_size. Fine-grained experts are narrower and more (DeepSeekMoE)."""
    shared_experts: int = 0
    """Experts of the same width that every token passes through, computed as one feed-forward layer."""
    shared_gate: bool = False
    """Multiply the shared experts' output by a learned sigmoid gate (Qwen2-MoE)."""
    first_dense: int = 0
    """So many first layers keep a dense feed-forward layer."""
    every: int = 1
    """Among the other layers, each whose number from 1 this divides has experts."""
    scoring: str = "softmax"
    """softmax over all experts, or an independent sigmoid each (DeepSeek-V3)."""
    normalise: bool = True
    """The weights of a token's chosen experts are divided by their sum."""
    scale: float = 1.0
    """The weights are multiplied by this, after `normalise`."""
    groups: int = 1
    """Experts are divided into so many equal groups, of which a token may use only `top_groups`."""
    top_groups: int = 1
    """Groups that a token may use."""
    group_score: str = "max"
    """What ranks the groups: max (best expert, DeepSeek-V2) or top2 (sum of the best two, DeepSeek-V3)."""
    aux_loss: float = 0.01
    """Coefficient of the load-balancing loss, experts x sum of (share of choices x mean score), of each layer."""
    aux_scope: str = "micro_batch"
    """Where shares of choices are counted: micro_batch, or global_batch (the whole batch of the step before)."""
    z_loss: float = 0.0
    """Coefficient of the mean squared log-sum-exp of the router's logits (ST-MoE)."""
    bias_rate: float = 0.0
    """Balancing without a loss: after each step an expert's bias in the choice rises by this if it was chosen less than the
    mean, and falls if more (arXiv 2408.15664)."""
    capacity: float = 0.0
    """Each expert takes at most this times its even share of a micro-batch's choices; 0 drops nothing."""
    drop: str = "position"
    """What an expert at its capacity drops: position (later choices and tokens) or probability (lower weights)."""
    jitter: float = 0.0
    """The router's input is multiplied by uniform noise in [1 - jitter, 1 + jitter] while training (Switch)."""
    product: str = "grouped"
    """How experts are computed: grouped (one call for all of them) or loop (one product an expert)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be, and what would have no effect."""
        if not self.experts:
            for one in fields(self):
                if getattr(self, one.name) != one.default:
                    raise ModelError(
                        f"model.moe.{one.name}={getattr(self, one.name)}: has no effect with model.moe.experts=0; set "
                        "model.moe.experts or leave it out"
                    )
            return
        self._check_ranges()
        if self.top_k > self.experts_in_reach:
            raise ModelError(
                f"model.moe.top_k={self.top_k}: more than the {self.experts_in_reach} experts that a token may use; lower it"
            )
        if self.groups > 1 and self.top_groups == self.groups:
            raise ModelError(
                f"model.moe.groups={self.groups}: has no effect with model.moe.top_groups={self.top_groups}; lower "
                "top_groups or set both to 1"
            )
        if self.groups == 1 and self.group_score != "max":
            raise ModelError(
                f"model.moe.group_score={self.group_score}: has no effect with model.moe.groups=1; set groups above 1"
            )
        if self.aux_scope != "micro_batch" and not self.aux_loss:
            raise ModelError(
                f"model.moe.aux_scope={self.aux_scope}: has no effect with model.moe.aux_loss=0; set it to micro_batch"
            )
        if self.drop != "position" and not self.capacity:
            raise ModelError(f"model.moe.drop={self.drop}: has no effect with model.moe.capacity=0; set a capacity")
        if self.shared_gate and not self.shared_experts:
            raise ModelError(
                "model.moe.shared_gate=true: has no effect with model.moe.shared_experts=0; set it to false"
            )

    def _check_ranges(self) -> None:
        at_least = {"experts": 2, "top_k": 1, "every": 1, "groups": 1, "top_groups": 1}
        for option in (
            *at_least,
            "expert_size",
            "shared_experts",
            "first_dense",
            "aux_loss",
            "z_loss",
            "bias_rate",
            "capacity",
        ):
            limit = at_least.get(option, 0)
            if getattr(self, option) < limit:
                raise ModelError(f"model.moe.{option}={getattr(self, option)}: must be at least {limit}")
        for option, choices in (
            ("scoring", ("softmax", "sigmoid")),
            ("group_score", ("max", "top2")),
            ("aux_scope", ("micro_batch", "global_batch")),
            ("drop", ("position", "probability")),
            ("product", ("grouped", "loop")),
        ):
            if getattr(self, option) not in choices:
                raise ModelError(f"model.moe.{option}={getattr(self, option)}: choose one of {', '.join(choices)}")
        if self.experts % self.groups:
            raise ModelError(f"model.moe.groups={self.groups}: must divide model.moe.experts={self.experts}")
        if self.top_groups > self.groups:
            raise ModelError(f"model.moe.top_groups={self.top_groups}: must be at most model.moe.groups={self.groups}")
        if self.group_score == "top2" and self.experts // self.groups < 2:
            raise ModelError("model.moe.group_score=top2: needs two experts in a group; set max or fewer groups")
        if not 0 <= self.jitter < 1:
            raise ModelError(f"model.moe.jitter={self.jitter}: must be at least 0 and below 1")
        if self.scale <= 0:
            raise ModelError(f"model.moe.scale={self.scale}: must be above 0")

    @property
    def experts_in_reach(self) -> int:
        """Experts that one token may choose among."""
        return self.experts // self.groups * self.top_groups

    @property
    def keeps_frequencies(self) -> bool:
        """Whether a router remembers the shares of choices of the step before."""
        return bool(self.experts) and self.aux_scope == "global_batch"

    def has_experts(self, layer: int) -> bool:
        """Whether the decoder layer at this index (from 0) has experts."""
        return self.experts > 0 and layer >= self.first_dense and (layer + 1) % self.every == 0
