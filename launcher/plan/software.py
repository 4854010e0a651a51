"""What software makes of a model: which passes over memory it needs, and what it sends beside computing.

One entry a stack; plans of our own runs are of `triaxis`. The others describe the code that published figures were
measured with, from their papers and repositories, so that those figures can be compared. Bytes are of two-byte elements.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Pass = tuple[float, float]
"""Bytes read and written forward, and backward."""


@dataclass(frozen=True)
class Passes:
    """Element-wise passes: bytes of memory traffic for each element that they run over."""

    norm: Pass = (4, 6)
    """A feature of the residual stream: x in, y out; x and dy in, dx out."""
    residual: Pass = (6, 6)
    """A feature where a branch joins the residual stream; backward the sum of both branches' gradients."""
    activation: Pass = (4, 6)
    """A feature of a feed-forward layer without gate."""
    gated: Pass = (6, 10)
    """A feature of a gated one: gate and up in, product out; these and the gradient in, two gradients out."""
    rotary: Pass = (4, 4)
    """A feature of a query, key or value that is rotated or laid out anew."""
    bias: Pass = (0, 2)
    """A feature that a linear layer with a bias puts out: its gradient is read once more to be summed; adding it is part of
    the product or of the pass that follows."""
    scores: Pass = (0, 0)
    """An element of a score matrix, where attention forms it: softmax, mask and dropout."""
    routed: Pass = (12, 12)
    """A feature of a row that is sent to an expert: gathered, put in order, and summed again by weights."""
    logit: Pass = (14, 10)
    """A logit: to float32, maximum, exponential and sum; softmax again and its gradient."""
    fused_logit: Pass = (8, 0)
    """The same where loss and head are one, a chunk of logits at a time (loss.fused), whose gradient is made at once."""
    embedding: Pass = (4, 8)
    """A feature that is looked up."""
    accumulate: float = 10
    """A parameter, for every micro-batch: its bf16 gradient is added to a sum in float32."""
    optimizer: float = 38
    """A parameter of this rank's share, once a step: norm and clip (8), AdamW in one pass (28), the bf16 copy (2)."""


@dataclass(frozen=True)
class Software:
    """A stack. attention: fused, or scores where matrices of scores are formed."""

    name: str
    source: str
    attention: str = "fused"
    kernels: float = 1.0
    """Speed of its kernels beside those of later releases, which the shares of `launcher.plan.chips` are of."""
    passes: Passes = field(default_factory=Passes)
    tensor_hidden: float = 0.0
    """Share of backward's tensor-parallel traffic that runs beside products."""
    data_hidden: bool = True
    """Gradients and parameters of the data axis travel while backward and forward compute."""
    data_hidden_in_pipelines: bool = False
    """So too where there is a pipeline."""
    gathers_hidden: bool = False
    """Parameters are gathered beside the next forward (FSDP2), not right after the update (DeepSpeed's stages 1 and 2)."""
    expert_hidden: float = 0.0
    """Share of the expert axis's traffic that runs beside computing."""
    sends_hidden: bool = False
    """A pipeline's sends run beside computing."""
    nodes_of_token: int = 0
    """A token goes at most once to each of so many nodes, and is spread inside of them (DeepEP); 0: once for each expert."""
    sends_cut: bool = False
    """A pipeline's sends are cut over the tensor axis and gathered on arrival, also without sequence parallelism."""
    gradient_bytes: int = 4
    """Bytes of a gradient on the wire."""


_REFERENCE = Passes(norm=(20, 30), residual=(6, 6), activation=(4, 6), gated=(12, 20), rotary=(16, 16), logit=(30, 24))

_SCORES = (13, 16)
"""Fused softmax (4 bytes forward) and dropout with its mask (5), 6 and 5 backward, at 0.7 of the speed of other passes: drawing
random numbers and exponentials takes that long. From the 1.3 ms by which Korthikanti et al. (arXiv 2205.05198, table 4)
saw a layer of 22 B grow when its cores were computed again."""

_KERNELS_2021 = 0.94
"""The same layout of 530 B on the same cluster, all layers recomputed: 54.1 s with the container of December 2020
(Narayanan et al., nine replicas), 49.1 s with that of 2022 (Korthikanti et al., table 5, one replica, of which eight
replicas take 3.5 % longer)."""

SOFTWARE = {
    software.name: software
    for software in (
        Software("triaxis", "this repository with fused kernels: launcher/bench/kernels, parallel/engines", "fused"),
        Software(
            "triaxis_reference",
            "this repository with kernels=reference: compositions of torch's own kernels",
            passes=_REFERENCE,
        ),
        Software(
            "megatron_2021",
            "Narayanan et al. 2021 (arXiv 2104.04473), Megatron-LM's examples/sc21, pytorch:20.12: fused softmax, bias + GELU, "
            "bias + dropout + add; gradients kept and all-reduced in fp16, after the pipeline or, without one, beside "
            "backward (DDP)",
            attention="scores",
            kernels=_KERNELS_2021,
            passes=Passes(residual=(7, 11), scores=_SCORES, logit=(38, 14), accumulate=6, optimizer=60),
            sends_cut=True,
            gradient_bytes=2,
        ),
        Software(
            "deepspeed_2021",
            "MT-NLG (arXiv 2201.11990): Megatron's layers in DeepSpeed's pipeline, bf16 with gradients summed in float32, "
            "optimizer state over the data axis, nothing overlapped",
            attention="scores",
            kernels=_KERNELS_2021,
            passes=Passes(residual=(7, 11), scores=_SCORES, logit=(38, 14)),
            sends_cut=True,
        ),
        Software(
            "megatron_2022",
            "Korthikanti et al. 2022 (arXiv 2205.05198): as megatron_2021, with later kernels and gradients summed inside of "
            "the weight's product",
            attention="scores",
            passes=Passes(residual=(7, 11), scores=_SCORES, logit=(38, 14), accumulate=6, optimizer=60),
            sends_cut=True,
        ),
        Software(
            "megatron_core",
            "Megatron-core of 2023 and later: fused attention, gradients summed inside of the weight's product, tensor traffic "
            "of backward beside products (Korthikanti et al., arXiv 2205.05198), data and pipeline traffic overlapped",
            passes=Passes(accumulate=6),
            tensor_hidden=0.5,
            data_hidden_in_pipelines=True,
            gathers_hidden=True,
            sends_hidden=True,
        ),
        Software(
            "deepseek",
            "DeepSeek-V3 (arXiv 2412.19437): DualPipe hides expert and pipeline traffic; a token goes to 4 nodes at most; "
            "its fp8 products of the time were up to 1.4 times as slow as DeepGEMM's (its README), here 1.15",
            kernels=0.87,
            passes=Passes(accumulate=6),
            data_hidden_in_pipelines=True,
            gathers_hidden=True,
            expert_hidden=1.0,
            sends_hidden=True,
            nodes_of_token=4,
        ),
    )
}
