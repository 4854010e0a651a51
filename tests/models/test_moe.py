"""A mixture layer equals the sum that defines it, written out token by token in float64; and what routers do besides."""

from __future__ import annotations

import gc
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ModelConfig, ModelError, count_active_parameters, count_parameters
from models.kernels.moe_permute import Order
from models.layers import PlainLayers
from models.moe.config import MoEConfig
from models.moe.layer import MixtureOfExperts
from models.moe.products import Rows
from models.moe.routing import summarise
from models.moe.telemetry import BUCKETS
from models.parameters import declaration, initialise
from models.precision import UNQUANTISED, ProductConfig, ProductsConfig
from models.random import Clock

HIDDEN, LENGTH, BATCH = 16, 12, 3
BASE = ModelConfig(vocab_size=11, hidden_size=HIDDEN, layers=2, heads=2, init_std=0.5, scaled_residual_init=False)
MIXTURES = {
    "mixtral": MoEConfig(experts=4, top_k=2, expert_size=24),
    "switch": MoEConfig(experts=4, top_k=1, expert_size=24, normalise=False),
    "olmoe": MoEConfig(experts=8, top_k=3, expert_size=8, normalise=False),
    "shared": MoEConfig(experts=4, top_k=2, expert_size=16, shared_experts=2),
    "gated-shared": MoEConfig(experts=4, top_k=2, expert_size=16, shared_experts=1, shared_gate=True),
    "sigmoid": MoEConfig(experts=8, top_k=3, expert_size=8, scoring="sigmoid", scale=2.5),
    "groups": MoEConfig(experts=8, top_k=2, expert_size=8, groups=4, top_groups=2),
    "groups-top2": MoEConfig(experts=8, top_k=3, expert_size=8, scoring="sigmoid", groups=2, group_score="top2"),
    "loop": MoEConfig(experts=4, top_k=2, expert_size=9, product="loop"),
    "losses": MoEConfig(experts=4, top_k=2, expert_size=8, aux_loss=0.7, z_loss=0.3),
    "capacity": MoEConfig(experts=4, top_k=2, expert_size=8, capacity=0.75),
    "capacity-by-weight": MoEConfig(experts=4, top_k=2, expert_size=8, capacity=0.5, drop="probability"),
}


def layer_of(
    moe: MoEConfig, dtype: torch.dtype = torch.float32, products: ProductsConfig = UNQUANTISED, **options: object
) -> MixtureOfExperts:
    """A mixture layer with weights that are a function of their names."""
    layers = PlainLayers(dtype, Clock(3), products=products)
    layer = MixtureOfExperts(replace(BASE, moe=moe, **options), layers, 0)  # type: ignore[arg-type]
    for name, parameter in layer.named_parameters():
        found = declaration(parameter)
        found = found if found.std else replace(found, std=0.3)
        initialise(parameter.data, name, 3, found, (0,) * parameter.dim())
    return layer


def some_tokens() -> Tensor:
    return torch.randn(LENGTH, BATCH, HIDDEN, generator=torch.Generator().manual_seed(5))


def activation(config: ModelConfig, features: Tensor) -> Tensor:
    """The written-out activation of one expert's features."""
    if config.activation == "swiglu":
        gate, up = features.chunk(2, dim=-1)
        return gate / (1 + torch.exp(-gate)) * up
    return torch.relu(features)


def definition(layer: MixtureOfExperts, config: ModelConfig, x: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs [S, B, H], the router's own loss) of the same mixture, token by token and expert by expert, in float64.

    The choice is made here again, from sorted scores and by counting room, not with what the layer has chosen.
    """
    moe, named = config.moe, {name: value.double() for name, value in layer.named_parameters()}
    width, experts = config.expert_width, moe.experts
    rows = 2 * width if config.gated else width
    logits = x @ named["router.weight"].T
    scores = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    if moe.scoring == "sigmoid":
        scores = 1 / (1 + torch.exp(-logits))
    chosen: dict[tuple[int, int], list[int]] = {}
    for s in range(x.shape[0]):
        for b in range(x.shape[1]):
            allowed = list(range(experts))
            if moe.top_groups < moe.groups:
                size = experts // moe.groups
                strength = {
                    g: sum(
                        sorted(scores[s, b, g * size : (g + 1) * size].tolist())[
                            -(2 if moe.group_score == "top2" else 1) :
                        ]
                    )
                    for g in range(moe.groups)
                }
                best = sorted(strength, key=strength.__getitem__)[-moe.top_groups :]
                allowed = [e for e in allowed if e // size in best]
            chosen[s, b] = sorted(allowed, key=lambda e: -scores[s, b, e].item())[: moe.top_k]

    def weight(s: int, b: int, e: int) -> Tensor:
        total = sum(scores[s, b, other] for other in chosen[s, b]) if moe.normalise else 1.0
        return moe.scale * scores[s, b, e] / total

    order = [(k, s, b) for k in range(moe.top_k) for s in range(x.shape[0]) for b in range(x.shape[1])]
    if moe.drop == "probability":
        order.sort(key=lambda at: -weight(at[1], at[2], chosen[at[1], at[2]][at[0]]).item())
    room = {e: math.ceil(moe.capacity * len(order) / experts) if moe.capacity else len(order) for e in range(experts)}
    y = torch.zeros_like(x)
    for k, s, b in order:
        e = chosen[s, b][k]
        room[e] -= 1
        if room[e] >= 0:
            up = named["experts.up.weight"][e * rows : (e + 1) * rows]
            features = up @ x[s, b]
            if config.bias:
                features = features + named["experts.up.bias"][e * rows : (e + 1) * rows]
            one = activation(config, features) @ named["experts.down.weight"][e * width : (e + 1) * width]
            if config.bias:
                one = one + named["experts.down.bias"][e * HIDDEN : (e + 1) * HIDDEN]
            y[s, b] = y[s, b] + weight(s, b, e) * one
    if moe.shared_experts:
        always = activation(config, x @ named["shared.up.weight"].T) @ named["shared.down.weight"].T
        if moe.shared_gate:
            always = always / (1 + torch.exp(-(x @ named["shared_gate.weight"].T)))
        y = y + always

    tokens = x.shape[0] * x.shape[1]
    share = torch.zeros(experts, dtype=torch.float64)
    for experts_of_token in chosen.values():
        for e in experts_of_token:
            share[e] += 1 / (tokens * moe.top_k)
    mean = (scores / scores.sum(-1, keepdim=True)).mean((0, 1))
    loss = moe.aux_loss * experts * (share * mean).sum()
    return y, loss + moe.z_loss * torch.log(torch.exp(logits).sum(-1)).square().mean()


# the definition's shared experts have no biases; FeedForward has tests of its own
@pytest.mark.parametrize(
    ("mixture", "bias"),
    [(name, bias) for name, moe in MIXTURES.items() for bias in (False, True) if not (bias and moe.shared_experts)],
)
def test_outputs_and_gradients_equal_the_definition(mixture: str, bias: bool) -> None:
    options = {"bias": bias, "activation": "relu" if bias else "swiglu"}
    config = replace(BASE, moe=MIXTURES[mixture], **options)  # type: ignore[arg-type]
    layer = layer_of(config.moe, **options)
    layer._layers.routing.start(0.25)
    x = some_tokens().requires_grad_()
    outward = torch.randn(LENGTH, BATCH, HIDDEN, generator=torch.Generator().manual_seed(6))
    y = layer(x, 0)
    y.backward(outward)
    found = {"x": x.grad} | {name: parameter.grad for name, parameter in layer.named_parameters()}

    wide = x.detach().double().requires_grad_()
    layer.zero_grad()
    expected, loss = definition(layer, config, wide)
    ((expected * outward.double()).sum() + 0.25 * loss).backward()
    wanted = {"x": wide.grad} | {name: parameter.grad for name, parameter in layer.named_parameters()}

    assert float((y - expected).detach().abs().max()) <= 1e-6 * float(expected.detach().abs().max())
    for name, value in wanted.items():
        assert value is not None and found[name] is not None
        assert float((found[name] - value).abs().max()) <= 2e-6 * float(value.abs().max()), name


def test_grouped_products_and_the_loop_agree_bitwise_on_experts_with_nothing_to_do() -> None:
    moe = MoEConfig(experts=8, top_k=1, expert_size=8)
    grouped, loop = layer_of(moe), layer_of(replace(moe, product="loop"))
    x = some_tokens()[:2, :1]  # two tokens for eight experts
    for layer in (grouped, loop):
        layer(x, 0).sum().backward()
    for (name, one), (_, other) in zip(grouped.named_parameters(), loop.named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-7), name
    assert grouped.experts.up.weight.grad is not None
    idle = grouped.experts.up.weight.grad.view(8, -1).abs().sum(1) == 0
    assert idle.sum() >= 6


def test_capacity_drops_what_comes_late_and_by_weight_what_weighs_little() -> None:
    for drop in ("position", "probability"):
        layer = layer_of(MoEConfig(experts=2, top_k=1, expert_size=8, capacity=0.5, drop=drop))
        layer.router.weight.data[1] = layer.router.weight.data[0] - 1.0  # the sign of the sum of x decides
        x = some_tokens().abs()  # so expert 0 is chosen always, and has room for a quarter
        weights, experts, kept = layer.router(x, 0)
        assert kept is not None and bool((experts == 0).all())
        assert int(kept.sum()) == math.ceil(0.5 * LENGTH * BATCH / 2)
        if drop == "position":
            assert bool(kept[: LENGTH // 4].all()) and not kept[LENGTH // 4 :].any()
        else:
            assert float(weights[kept].min().detach()) >= float(weights[~kept].max().detach())
        y = layer(x, 0)
        assert bool((y[~kept[..., 0]] == 0).all())


def test_biases_move_the_choice_and_not_the_weights() -> None:
    layer = layer_of(MoEConfig(experts=4, top_k=1, expert_size=8, normalise=False, bias_rate=0.1, aux_loss=0.0))
    x = some_tokens()
    before, chosen, _ = layer.router(x, 0)
    state = layer._layers.routing.states[0]
    rare = int(chosen.flatten().bincount(minlength=4).argmin())
    state.bias[rare] = 1.0  # above every probability
    after, moved, _ = layer.router(x, 0)
    scores = F.linear(x, layer.router.weight).softmax(-1)
    assert bool((moved == rare).all()) and not bool((chosen == rare).all())
    assert torch.allclose(after, scores[..., rare : rare + 1])
    assert torch.allclose(before, scores.amax(-1, keepdim=True))


def test_the_loss_of_the_global_batch_uses_the_shares_of_the_step_before() -> None:
    layer = layer_of(MoEConfig(experts=4, top_k=1, expert_size=8, aux_loss=1.0, aux_scope="global_batch"))
    x = some_tokens()
    state = layer._layers.routing.states[0]
    gradients = []
    for frequency in ([0.25] * 4, [0.7, 0.1, 0.1, 0.1]):
        state.frequency.copy_(torch.tensor(frequency))
        layer.zero_grad()
        layer(x, 0).mul(0).sum().backward()
        assert layer.router.weight.grad is not None
        gradients.append(layer.router.weight.grad.clone())
    mean = F.linear(x, layer.router.weight).softmax(-1).mean((0, 1))
    expected = torch.autograd.grad(4 * (torch.tensor([0.7, 0.1, 0.1, 0.1]) * mean).sum(), layer.router.weight)[0]
    assert float(gradients[0].abs().max()) < 1e-7  # even shares ask for nothing
    assert torch.allclose(gradients[1], expected, rtol=1e-5, atol=1e-7)


def test_jitter_is_a_function_of_the_sample_and_absent_in_evaluation() -> None:
    layer = layer_of(MoEConfig(experts=4, top_k=2, expert_size=8, jitter=0.3))
    x = some_tokens()
    one, other = layer.router(x, 0)[0], layer.router(x, BATCH)[0]
    assert torch.equal(one, layer.router(x, 0)[0]) and not torch.equal(one, other)
    assert torch.equal(layer.router(x[:, 1:], 1)[0], one[:, 1:])
    layer.eval()
    plain = layer_of(MoEConfig(experts=4, top_k=2, expert_size=8)).eval()
    assert torch.equal(layer.router(x, 0)[0], plain.router(x, 0)[0])


def test_a_step_is_counted_once_and_summed() -> None:
    layer = layer_of(MIXTURES["capacity"])
    routing = layer._layers.routing
    routing.start(1.0)
    for first_sample in (0, BATCH, 0):  # the first is computed again, as in recomputation
        _, experts, kept = layer.router(some_tokens(), first_sample)
    found = summarise(0, routing.collect(2, 4, torch.device("cpu"))[0], 4)
    assert kept is not None
    assert found.load == pytest.approx((experts.flatten().bincount(minlength=4) / experts.numel()).tolist())
    assert found.drop_share == pytest.approx(1 - float(kept.float().mean()), rel=1e-6)
    assert len(found.dropped) == BUCKETS
    assert 0 < found.entropy < math.log(4) and found.balance >= 1 - 1e-6
    scores = F.linear(some_tokens(), layer.router.weight).softmax(-1)
    assert found.entropy == pytest.approx(-(scores * scores.log()).sum(-1).mean().item(), rel=1e-5)
    layer.eval()
    routing.start(1.0)
    layer.router(some_tokens(), 0)
    assert float(routing.collect(2, 4, torch.device("cpu")).sum()) == 0.0


def test_only_chosen_experts_count_as_active() -> None:
    config = replace(BASE, moe=MoEConfig(experts=8, top_k=2, expert_size=24, shared_experts=1, first_dense=1))
    expert = 3 * HIDDEN * 24
    assert count_parameters(config) - count_active_parameters(config) == 6 * expert


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0, "top_k": 3}, "moe.top_k=3: has no effect with model.moe.experts=0"),
        ({"experts": 1}, "experts=1: must be at least 2"),
        ({"experts": 4, "top_k": 5}, "top_k=5: more than the 4"),
        ({"experts": 8, "groups": 4, "top_groups": 1, "top_k": 3}, "top_k=3: more than the 2"),
        ({"experts": 8, "groups": 3}, "groups=3: must divide"),
        ({"experts": 8, "groups": 4, "top_groups": 4}, "groups=4: has no effect with model.moe.top_groups=4"),
        ({"experts": 8, "groups": 8, "top_groups": 4, "group_score": "top2"}, "needs two experts in a group"),
        ({"experts": 4, "drop": "probability"}, "drop=probability: has no effect"),
        ({"experts": 4, "aux_loss": 0.0, "aux_scope": "global_batch"}, "aux_scope=global_batch: has no effect"),
        ({"experts": 4, "shared_gate": True}, "shared_gate=true: has no effect"),
        ({"experts": 4, "scoring": "tanh"}, "choose one of softmax, sigmoid"),
        ({"experts": 4, "jitter": 1.0}, "jitter=1.0: must be at least 0 and below 1"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MoEConfig(**options)  # type: ignore[arg-type]


def test_models_that_cannot_have_their_mixture_are_refused() -> None:
    with pytest.raises(ModelError, match="leave none of model.layers=2 with experts"):
        replace(BASE, moe=MoEConfig(experts=4, first_dense=2))
    with pytest.raises(ModelError, match=r"expert_size=9: .* multiples of 8"):
        replace(BASE, moe=MoEConfig(experts=4, expert_size=9))


@pytest.mark.parametrize("name", ["mixtral", "capacity"])
@pytest.mark.parametrize(("kernels", "multiple"), [("reference", 8), ("triton", 1), ("triton", 8)])
def test_kernels_and_rows_of_zeros_change_nothing(name: str, kernels: str, multiple: int) -> None:
    """Rows aligned for products of MX blocks, with biases, which rows of zeros get too."""

    def outputs(kernels: str, multiple: int) -> tuple[Tensor, list[Tensor | None]]:
        layer, x = layer_of(MIXTURES[name], bias=True), some_tokens().requires_grad_()
        layer._layers.kernels, layer._multiple = kernels, multiple
        y = layer(x, 0)
        (y * some_tokens().flip(0)).sum().backward()
        return y.detach(), [x.grad, *(parameter.grad for parameter in layer.parameters())]

    expected = outputs("reference", 1)
    torch.testing.assert_close(outputs(kernels, multiple), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rounding", ["", "nearest_even", "stochastic"])
def test_a_graph_holds_no_order_of_its_own(rounding: str) -> None:
    """Indices that backward needs are saved with autograd, where hooks, offload and recomputation find them."""
    formats = {"activation": "mxint8", "rounding": rounding}
    products = (
        ProductsConfig(
            forward=ProductConfig(weight="mxint8", **formats),
            weight_gradient=ProductConfig(gradient="mxint8", gradient_rounding=rounding, **formats),
        )
        if rounding
        else UNQUANTISED
    )
    moe = MoEConfig(experts=4, top_k=2, expert_size=32)
    layer = layer_of(moe, products=products, hidden_size=32)
    x = torch.randn(LENGTH, BATCH, 32, generator=torch.Generator().manual_seed(5)).requires_grad_()
    layer(x, 0).sum().backward()
    expected, x.grad = x.grad, None
    before = {id(one) for one in _indices_alive()}
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.detach().clone(), lambda saved: saved):
        y = layer(x, 0)
    assert not [one for one in _indices_alive() if id(one) not in before]
    y.sum().backward()
    assert torch.equal(x.grad, expected)


def _indices_alive() -> list[object]:
    gc.collect()
    return [one for one in gc.get_objects() if type(one) in (Order, Rows)]
