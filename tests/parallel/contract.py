"""What Triaxis relies on in torch, megatron-core and DeepSpeed beyond their documentation, each as a small check.

A check runs on every rank of a world of 2; it fails by assertion. `test_contract.py` runs each under its own name, so an
upgrade that changes one of them is told by that name and the place in our code that has to follow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import is_moe_param, is_moe_param_group
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe import p2p
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage

from parallel import megatron
from parallel.config import ParallelConfig, PrecisionConfig
from parallel.engines.base import applied_steps, ensure_state
from parallel.engines.deepspeed import _join_deepspeed
from parallel.engines.pipeline import groups_of
from parallel.mesh import Mesh
from parallel.timeline import timeline
from tests.parallel.cases import SEQUENCES, Case
from tests.parallel.jobs import CPU, Curve, laid_out, run_steps

Check = Callable[[], None]
CHECKS: dict[str, Check] = {}


def relied_on(name: str) -> Callable[[Check], Check]:
    """Register a check. name: what is relied on, and where."""

    def register(check: Check) -> Check:
        assert name not in CHECKS
        CHECKS[name] = check
        return check

    return register


def run(name: str) -> None:
    """The job: one check."""
    CHECKS[name]()


def parameters_of(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def has(thing: Any, *names: str) -> None:
    missing = [name for name in names if not hasattr(thing, name)]
    assert not missing, f"{type(thing).__name__} lacks {missing}"


# torch ----------------------------------------------------------------------------------------------------------------


@relied_on("torch: a bf16 leaf whose grad_dtype is float32 sums its gradients in float32 (engines/torch.py)")
def _wide_gradients() -> None:
    leaf = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    leaf.grad_dtype = torch.float32
    for factor in (1.0, 2.0**-12):
        (leaf * torch.tensor(factor, dtype=torch.bfloat16)).sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.float32
    assert float(leaf.grad) == 1 + 2.0**-12  # in bf16 the second would be lost


@relied_on("torch: _is_avx512_bf16_supported and _is_amx_tile_supported say whether bf16 is native (engines/base.py)")
def _native_bf16() -> None:
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)
    assert isinstance(torch.cpu._is_amx_tile_supported(), bool)


@relied_on("torch: _world.pg_map lists all process groups, destroying one takes it out (mesh.py)")
def _process_groups() -> None:
    groups = dist.distributed_c10d._world.pg_map
    before = set(groups)
    made = dist.new_group([0, 1])
    assert set(groups) == before | {made}
    dist.barrier()
    dist.destroy_process_group(made)
    assert set(groups) == before


@relied_on("torch: Adam and SGD take moments that were made before the first step (engines/base.py, ensure_state)")
def _early_moments() -> None:
    for kind, options in ((torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})):
        ends = []
        for early in (False, True):
            parameter = torch.nn.Parameter(torch.arange(5.0))
            optimizer = kind([parameter], lr=0.1, fused=True, **options)
            if early:
                ensure_state(optimizer)
            for _ in range(3):
                parameter.grad = parameter.detach() * 2 + 1
                optimizer.step()
            ends.append(parameter.detach().clone())
        assert torch.equal(*ends), kind
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=True)
    ensure_state(adam)
    assert applied_steps(adam) == 0.0
    (state,) = adam.state.values()
    assert {key: value.shape for key, value in state.items()} == {"step": (), "exp_avg": (2,), "exp_avg_sq": (2,)}


@relied_on(
    "torch: a step's pre-hook may take all gradients away, then Adam changes nothing (engines/deepspeed.py, ZeRO 0)"
)
def _no_gradients() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.5, fused=True)
    ensure_state(optimizer)
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: opt.zero_grad(set_to_none=True))
    parameter.grad = torch.full((3,), float("nan"))
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(3))
    assert applied_steps(optimizer) == 0.0


@relied_on(
    "torch: CPU attention gives a log-sum-exp, 0 for rows that see nothing, and its backward takes one (attention_block.py)"
)
def _attention_with_log_sum_exp() -> None:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    q, k, v = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = (part.unsqueeze(0) for part in (q[0], k[0], v[0]))
    mask = torch.zeros(4, 4)
    mask[1] = -torch.inf
    out, weight = attend(q, k, v, attn_mask=mask)
    assert weight.dtype == torch.float32
    assert not out[:, :, 1].any() and not weight[:, :, 1].any()
    torch.testing.assert_close(weight[:, :, 0], torch.logsumexp(q @ k.transpose(-1, -2) / 8**0.5, -1)[:, :, 0])
    some = backward(torch.ones_like(out), q, k, v, out, weight, 0.0, False, attn_mask=mask)
    less = backward(torch.ones_like(out), q, k, v, out, weight + 1, 0.0, False, attn_mask=mask)
    torch.testing.assert_close(less[2], some[2] / torch.e)  # weights are exp(score - log-sum-exp), whose ever it is


@relied_on("torch: a fake process group (paper.py)")
def _fake_group() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    FakeStore()
    assert dist.Backend.FAKE == "fake"


@relied_on("torch: FSDP2 puts shards where they stay in lazy_init, and a second one changes nothing (engines/fsdp.py)")
def _fsdp_shards_stay() -> None:
    with torch.device("meta"):
        module = fully_shard(torch.nn.Linear(4, 3), mesh=init_device_mesh("cpu", (2,)))  # 3 rows: one rank's are padded
    module.to_empty(device="cpu")
    for group in groups_of(module):
        group.lazy_init()
    place = module.weight.to_local().untyped_storage().data_ptr()
    module(torch.ones(2, 4)).sum().backward()
    assert module.weight.to_local().untyped_storage().data_ptr() == place
    assert module.weight.grad.to_local().shape == module.weight.to_local().shape


@relied_on("torch: a stage with example inputs and outputs runs once a micro-batch, in order (engines/pipeline.py)")
def _stages_infer_nothing() -> None:
    case = Case("gpt", ParallelConfig("torch", pipeline=2, data=1), micro_batch=2)
    with laid_out(case) as (engine, mesh):
        seen: list[tuple[int, ...]] = []
        (module,) = engine.modules.values()
        module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
        run_steps(case, engine, mesh, range(1), Curve())
        assert len(seen) == SEQUENCES // 2, seen
        seen.clear()


@relied_on("torch: what a stage calls of FSDP2's parameters to sum weight gradients in float32 (engines/pipeline.py)")
def _fsdp_accumulation() -> None:
    assert {"bwd_chunk_id", "last_backward"} <= parameters_of(PipelineStage.backward_weight_one_chunk)
    module = fully_shard(torch.nn.Linear(4, 2), mesh=init_device_mesh("cpu", (2,)))
    module(torch.ones(1, 4))
    for group in groups_of(module):
        for parameter in group.fsdp_params:
            has(parameter, "_unsharded_param", "unsharded_accumulated_grad")
            has(parameter, "accumulate_unsharded_grad_if_needed", "to_accumulated_grad_if_needed")


@relied_on("torch: get_schedule_ops tells a schedule's actions without stages (parallel/timeline.py)")
def _schedule_ops() -> None:
    layout = ParallelConfig(pipeline=2, schedule="zbv")
    slots = timeline(layout, 4)
    assert len(slots) == 2 * 2 * 4 * 3, "two ranks, two stages each, four micro-batches, three actions"


# megatron-core --------------------------------------------------------------------------------------------------------


@relied_on("megatron-core: arguments of the tensor-parallel layers (parallel/layers.py)")
def _megatron_signatures() -> None:
    column = {"config", "init_method", "bias", "gather_output", "skip_weight_param_allocation", "disable_grad_reduce"}
    assert column | {"tp_group"} <= parameters_of(megatron.ColumnParallelLinear)
    row = {"config", "init_method", "bias", "input_is_parallel", "skip_bias_add", "tp_group"}
    assert row <= parameters_of(megatron.RowParallelLinear)
    assert {"init_method", "config", "tp_group"} <= parameters_of(megatron.VocabParallelEmbedding)
    assert list(inspect.signature(megatron.linear_with_grad_accumulation_and_async_allreduce).parameters)[:6] == [
        "input",
        "weight",
        "bias",
        "gradient_accumulation_fusion",
        "allreduce_dgrad",
        "sequence_parallel",
    ]
    assert "group" in parameters_of(megatron.copy_to_tensor_model_parallel_region)


@relied_on("megatron-core: ranks run tensor, context, data, pipeline, experts over context and data (mesh.py)")
def _rank_order() -> None:
    initialise = megatron.parallel_state.initialize_model_parallel
    assert inspect.signature(initialise).parameters["order"].default == "tp-cp-ep-dp-pp"
    assert {
        "create_gloo_process_groups",
        "distributed_timeout_minutes",
        "context_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
    } <= parameters_of(initialise)


@relied_on("megatron-core: layers allocate without initialising and leave the values to us (parallel/layers.py)")
def _no_initialisation() -> None:
    def never(weight: torch.Tensor) -> torch.Tensor:
        raise AssertionError("init_method was called")

    mesh = Mesh(ParallelConfig(tensor=2), CPU)
    config = megatron.ModelParallelConfig(
        tensor_model_parallel_size=2, use_cpu_initialization=True, perform_initialization=False
    )
    with torch.device("meta"):
        layer = megatron.ColumnParallelLinear(
            8, 6, config=config, init_method=never, bias=True, tp_group=mesh.tensor_group
        )
        rows = megatron.VocabParallelEmbedding(10, 4, init_method=never, config=config, tp_group=mesh.tensor_group)
    assert layer.weight.is_meta
    assert (tuple(layer.weight.shape), tuple(layer.bias.shape)) == ((3, 8), (3,))
    assert tuple(rows.weight.shape) == (5, 4)
    mesh.close()


# DeepSpeed ------------------------------------------------------------------------------------------------------------


@relied_on("deepspeed: zero.Init turns an explicit float32 into bf16 on CPU, hence no dtype= (engines/deepspeed.py)")
def _zero_init_dtype() -> None:
    """Of precedence: `dtype or (A) if B else C`. When this fails the bug is mended and the comment there can go."""
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    _join_deepspeed(CPU)
    with deepspeed.zero.Init(dtype=torch.float32, config_dict_or_path=settings):
        explicit = torch.nn.Linear(2, 2)
    with deepspeed.zero.Init(config_dict_or_path=settings):
        implicit = torch.nn.Linear(2, 2)
    deepspeed.utils.groups._release_process_group_references()
    assert implicit.weight.dtype == torch.float32, "without dtype= float32 stays float32: we rely on that"
    assert explicit.weight.dtype == torch.bfloat16


@relied_on("deepspeed: PipelineModule asks _partition_layers for bounds (engines/deepspeed.py, _Pipeline)")
def _partition_layers() -> None:
    assert list(inspect.signature(PipelineModule._partition_layers).parameters) == ["self", "method"]
    assert {"start", "stop"} <= parameters_of(PipelineModule._set_bounds)
    assert "_partition_layers(" in inspect.getsource(PipelineModule.__init__)


@relied_on("deepspeed: a pipeline's module has _topo, global_rank, parts, tied copies marked (engines/deepspeed.py)")
def _pipeline_module() -> None:
    with laid_out(Case("gpt").laid_out(pipeline=2)) as (engine, mesh):
        has(engine.module, "_topo", "global_rank", "parts")
        marks = [getattr(p, "ds_pipe_replicated", False) for n, p in engine.parameters if n == "embedding.token.weight"]
        assert marks == [mesh.last_stage], "the first stage's copy is the original"
        assert {"return_logits", "num_micro_batches", "reduce_output"} <= parameters_of(engine.engine.eval_batch)


def _attributes(stage: int, precision: str = "fp32") -> None:
    case = Case("gpt", ParallelConfig("deepspeed", data=2, zero_stage=stage), PrecisionConfig(precision))
    with laid_out(case) as (engine, mesh):
        run_steps(case, engine, mesh, range(1), Curve())
        has(engine.engine, "basic_optimizer", "get_global_grad_norm", "destroy")
        optimizer = engine.engine.optimizer
        if stage == 3:
            has(optimizer, "grad_position", "fp32_partitioned_groups_flat", "sub_group_to_group_id", "get_param_id")
            has(optimizer, "dp_process_group", "persistent_parameters", "_reassign_or_swap_out_partitioned_parameters")
            for _, parameter in engine.parameters:
                has(parameter, "ds_tensor", "ds_numel", "partition", "all_gather")
                assert len(optimizer.grad_position[optimizer.get_param_id(parameter)]) == 3
            return
        has(optimizer, "update_lp_params")
        mappings = [parameter._hp_mapping for _, parameter in engine.parameters if parameter._hp_mapping is not None]
        assert mappings, "this rank's partition holds something"
        for mapping in mappings:
            has(mapping, "param_group_index", "hp_fragment", "hp_fragment_address", "lp_fragment_address")
            has(mapping.hp_fragment_address, "start", "numel")


@relied_on("deepspeed: ZeRO 1 maps parameters to fragments of its partition (engines/deepspeed_state.py)")
def _zero_1() -> None:
    _attributes(1)


@relied_on("deepspeed: ZeRO 2 maps parameters to fragments of its partition (engines/deepspeed_state.py)")
def _zero_2() -> None:
    _attributes(2)


@relied_on("deepspeed: bf16 with ZeRO 1 maps parameters to fragments of its partition (engines/deepspeed_state.py)")
def _bf16() -> None:
    _attributes(1, "bf16")


@relied_on("deepspeed: ZeRO 3 keeps flat groups and places in them (engines/deepspeed_state.py)")
def _zero_3() -> None:
    _attributes(3)


@relied_on("deepspeed: what its globals keep of an engine (engines/deepspeed.py, _leave_deepspeed)")
def _globals() -> None:
    assert isinstance(parameter_offload.FWD_MODULE_STACK, list)
    to_release = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    has(inspect.getclosurevars(to_release).nonlocals["func"], "cache_clear")
    has(p2p, "_grid")
    has(deepspeed.utils.groups, "_release_process_group_references")


@relied_on("deepspeed: how it is told of experts and their groups (engines/deepspeed_experts.py)")
def _experts() -> None:
    mark = torch.nn.Parameter(torch.zeros(1))
    assert not is_moe_param(mark)
    mark.allreduce = False  # type: ignore[attr-defined]
    assert is_moe_param(mark)
    assert "use_data_before_expert_parallel_" in parameters_of(MoE.set_deepspeed_parallelism)
    for table in ("_EXPERT_PARALLEL_GROUP", "_EXPERT_DATA_PARALLEL_GROUP"):
        assert isinstance(getattr(deepspeed.utils.groups, table), dict)
        assert isinstance(getattr(deepspeed.utils.groups, f"{table}_RANKS"), dict)
    assert is_moe_param_group({"moe": True, "params": []}) and not is_moe_param_group({"params": []})


@relied_on(
    "torch: grouped products on CPU in float32 and bf16, with experts that have nothing to do (models/moe/experts.py)"
)
def _grouped() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, matrices = torch.ones(3, 8, dtype=dtype), torch.ones(4, 8, 16, dtype=dtype, requires_grad=True)
        y = torch.nn.functional.grouped_mm(x, matrices, offs=torch.tensor([0, 2, 2, 3], dtype=torch.int32))
        y.backward(torch.ones_like(y))
        assert y.shape == (3, 16) and bool((y == 8).all())
        assert matrices.grad is not None and matrices.grad.flatten(1).sum(1).tolist() == [0.0, 256.0, 0.0, 128.0]


@relied_on("deepspeed: its shared-memory collective can be switched off (engines/deepspeed.py, _join_deepspeed)")
def _shared_memory() -> None:
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


@relied_on("deepspeed: refuses fp16 on a CPU without it, so that we do on every CPU (check.py)")
def _no_fp16_on_cpu() -> None:
    if deepspeed.get_accelerator().is_fp16_supported():
        return
    _join_deepspeed(CPU)
    settings = {"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True}}
    with pytest.raises(ValueError, match="fp16 is not supported"):
        deepspeed.initialize(model=torch.nn.Linear(2, 2), config=settings)
