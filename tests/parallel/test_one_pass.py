"""The one-pass AdamW under the engines, and bf16 weights without a master."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launcher.config import OptimizerConfig, RecipeError
from launcher.optim.adamw import OnePassAdamW
from launcher.optim.build import optimizer_factory
from models.errors import ModelError
from models.kernels.adamw.tables import CHUNK
from models.parameters import declare
from parallel.check import check_engine
from parallel.config import ParallelConfig, ParallelError, PrecisionConfig
from parallel.engines.base import OnePass, applied_steps, clipped_step, ensure_state, moments, set_applied_steps
from tests.helpers.pool import Pools
from tests.parallel import jobs, state_jobs
from tests.parallel.cases import ADAMW, Case

BF16, FP32 = PrecisionConfig("bf16"), PrecisionConfig("fp32")
BETAS, RATE = (0.9, 0.95), 0.01


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 30), (17,), (CHUNK + 5,)]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(to: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in to:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("early", [False, True])
def test_steps_are_those_of_torch_within_rounding(kernels: str, early: bool) -> None:
    """Two groups, one parameter that gets no gradient at first, moments made before or at the first step."""
    ours, theirs = parameters(), parameters()

    def groups(of: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": of[:2], "weight_decay": 0.3}, {"params": of[2:], "weight_decay": 0.0}]

    one = OnePassAdamW(groups(ours), lr=RATE, betas=BETAS, eps=1e-8, kernels=kernels)
    other = torch.optim.AdamW(groups(theirs), lr=RATE, betas=BETAS, eps=1e-8)
    assert isinstance(one, OnePass) and not isinstance(other, OnePass)
    if early:
        ensure_state(one)
    for step in range(4):
        for some in (ours, theirs):
            give_gradients(some, step)
            if step == 0:
                some[1].grad = None
        before = [p.grad.clone() for p in ours if p.grad is not None]
        clipped_step(one, [p.grad for p in ours if p.grad is not None], 0.5, RATE)
        assert all(map(torch.equal, before, [p.grad for p in ours if p.grad is not None])), "gradients stay as they are"
        clipped_step(other, [p.grad for p in theirs if p.grad is not None], 0.5, RATE)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert moments(one, a).keys() == moments(other, b).keys() == {"exp_avg", "exp_avg_sq"}
        for name, moment in moments(one, a).items():
            torch.testing.assert_close(moment, moments(other, b)[name], rtol=1e-5, atol=1e-7)
    assert [float(one.state[p]["step"]) for p in ours] == [4, 3, 4] and applied_steps(one) == 4


def test_copies_are_written_in_the_same_pass() -> None:
    ours = parameters()
    copies = [torch.zeros_like(parameter, dtype=torch.bfloat16) for parameter in ours]
    one = OnePassAdamW(ours, lr=RATE, kernels="triton")
    assert all(map(one.keep_copy, ours, copies))
    assert not one.keep_copy(ours[0], torch.zeros(40, 30, dtype=torch.float16)), "the engine copies itself"
    give_gradients(ours, 0)
    one.step()
    for parameter, copy in zip(ours, copies, strict=True):
        assert torch.equal(parameter.detach().bfloat16(), copy)


def test_a_state_that_was_saved_goes_on() -> None:
    """torch's state_dict there and back, with stochastic rounding; new tensors for old moments."""
    whole, begun, resumed = (parameters(torch.bfloat16) for _ in range(3))

    def build(of: list[nn.Parameter]) -> OnePassAdamW:
        for parameter in of:
            parameter.grad_dtype = torch.float32
        return OnePassAdamW(of, lr=RATE, kernels="triton", keys={p: 11 + i for i, p in enumerate(of)})

    one, first, second = build(whole), build(begun), build(resumed)
    for step in range(4):
        give_gradients(whole, step)
        one.step()
    for step in range(2):
        give_gradients(begun, step)
        first.step()
    second.load_state_dict(first.state_dict())
    for state in second.state.values():  # torch's loading casts moments to the parameter's type
        state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"].float(), state["exp_avg_sq"].float()
    for parameter, other in zip(resumed, begun, strict=True):
        parameter.data.copy_(other.data)
        for name, moment in moments(first, other).items():
            second.state[parameter][name].copy_(moment)
    for step in range(2, 4):
        give_gradients(resumed, step)
        second.step()
    assert all(map(torch.equal, whole, resumed))


def test_bf16_without_keys_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ModelError, match="no key"):
        OnePassAdamW([parameter]).step()


def test_small_updates_are_lost_to_rounding_and_kept_in_the_mean() -> None:
    """Steps of 1e-4 from 1, whose neighbours are 2^-8 and 2^-7 away."""
    steps, rate = 50, 1e-4
    nearest, stochastic = (nn.Parameter(torch.ones(1 << 12, dtype=torch.bfloat16)) for _ in range(2))
    ours = OnePassAdamW([stochastic], lr=rate, weight_decay=0.0, keys={stochastic: 5})
    theirs = torch.optim.AdamW([nearest], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        for parameter, optimizer in ((nearest, theirs), (stochastic, ours)):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert torch.equal(nearest, torch.ones_like(nearest)), "every single update is lost"
    moved = 1 - float(stochastic.detach().float().mean())
    spread = (2.0**-8 * steps * rate / stochastic.numel()) ** 0.5  # of a mean of as many roundings
    assert abs(moved - steps * rate) < 5 * spread


def test_what_computes_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    declare(parameter)

    def kind(kernels: str, **options: Any) -> str:
        return type(optimizer_factory(OptimizerConfig(**options), kernels)([("x", parameter)])).__name__

    assert kind("auto") == kind("reference") == kind("apex") == "AdamW", "on CPU torch's own"
    assert kind("triton") == kind("cuda") == "OnePassAdamW"
    assert kind("auto", master="none") == kind("reference", master="none") == "OnePassAdamW"
    assert kind("triton", name="sgd", beta2=0.95) == "SGD"


def test_apex_counts_steps_where_engines_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that counts as apex does, in its group."""

    class FusedAdam(torch.optim.Optimizer):
        def __init__(self, groups: Any, adam_w_mode: bool = True, **options: Any) -> None:
            assert adam_w_mode
            super().__init__(groups, options)

        def step(self) -> None:  # type: ignore[override]
            for group in self.param_groups:
                group["step"] += 1

    module = ModuleType("apex.optimizers")
    module.FusedAdam = FusedAdam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    from launcher.optim.apex import fused_adam

    optimizer = fused_adam([{"params": parameters()}], lr=0.0, betas=BETAS, eps=1e-8)
    ensure_state(optimizer)
    set_applied_steps(optimizer, 6.0)
    optimizer.step()
    assert applied_steps(optimizer) == 7 and optimizer.param_groups[0]["step"] == 7


# Under the engines ----------------------------------------------------------------------------------------------------

ONE_PASS = [
    Case(parallel=ParallelConfig("torch"), micro_batch=4, kernels="triton"),
    Case(parallel=ParallelConfig("torch"), precision=BF16, micro_batch=4, kernels="triton"),
    Case("llama", ParallelConfig("torch", data=2, zero_stage=3), micro_batch=4, kernels="triton"),
]


@pytest.mark.parametrize("case", ONE_PASS, ids=lambda case: f"{case}-{case.kernels}")
def test_training_is_that_of_torchs_adamw(case: Case, pools: Pools) -> None:
    ours, theirs = (pools.run(case.world_size, jobs.train, case=one, steps=2)[0] for one in (case, plain(case)))
    # bf16: masters that differ in a last bit may round to another bf16 weight
    tolerance = 1e-5 if case.precision == FP32 else 2e-3
    assert ours.losses == pytest.approx(theirs.losses, rel=tolerance)
    assert ours.norms == pytest.approx(theirs.norms, rel=20 * tolerance)
    assert ours.state == theirs.state


def plain(case: Case) -> Case:
    return replace(case, kernels="auto")


WITHOUT = Case(parallel=ParallelConfig("torch"), precision=BF16, micro_batch=4, optimizer=replace(ADAMW, master="none"))


def test_bf16_without_a_master_trains(pools: Pools) -> None:
    """Loss falls, as fast as with a master but for noise, and another run gives the same bits."""
    (without,) = pools.run(1, jobs.train, case=WITHOUT, steps=20)
    (beside,) = pools.run(1, jobs.train, case=replace(WITHOUT, optimizer=ADAMW), steps=20)
    (again,) = pools.run(1, jobs.train, case=WITHOUT, steps=20)
    assert without.losses == again.losses
    assert without.validation[-1] < without.losses[0]
    assert sum(without.losses[-5:]) == pytest.approx(sum(beside.losses[-5:]), rel=0.03)


def test_bf16_without_a_master_saves_what_it_has(pools: Pools) -> None:
    """bf16 weights, float32 moments, of the same names as ever."""
    ours, theirs = (
        state_jobs.assemble(pools.run(1, state_jobs.saved_pieces, case=case, steps=2))
        for case in (WITHOUT, replace(WITHOUT, optimizer=ADAMW))
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert isinstance(tensor, Tensor)
        assert tensor.dtype == (torch.float32 if name.startswith("optimizer.") else torch.bfloat16), name


@pytest.mark.parametrize(
    ("layout", "precision", "words"),
    [
        (ParallelConfig("torch"), "fp32", ["optimizer.master=none", "precision.name=bf16"]),
        (ParallelConfig("torch"), "fp16", ["optimizer.master=none", "precision.name=bf16"]),
        (ParallelConfig("deepspeed"), "bf16", ["optimizer.master=none", "parallel.engine=torch"]),
        (ParallelConfig("torch", data=2), "bf16", ["optimizer.master=none", "2 processes", "master=float32"]),
    ],
)
def test_no_master_is_refused_where_it_cannot_be(layout: ParallelConfig, precision: str, words: list[str]) -> None:
    with pytest.raises(ParallelError) as refusal:
        check_engine(layout, PrecisionConfig(precision), "cpu", max(1, layout.data), "none")
    for word in words:
        assert word in str(refusal.value)


def test_options_of_masters_are_checked() -> None:
    with pytest.raises(RecipeError, match="optimizer.master=bf16"):
        OptimizerConfig(master="bf16")
    with pytest.raises(RecipeError, match="only adamw"):
        OptimizerConfig(name="sgd", master="none")
