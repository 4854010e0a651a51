"""`train.trace_step`: every operator and GPU kernel of one step, as torch's profiler records them, in `<run>/trace`.

`rank_00000.json.gz` is the trace of a rank, which Perfetto and chrome://tracing draw. `operators.json` holds, for rank 0: step,
device (of the times: `cuda` or `cpu`), seconds (of the step, with the recording) and operators [name, calls, seconds of its
own], longest first. A report reads it without torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from launcher.config import Recipe

if TYPE_CHECKING:
    from torch.profiler import profile

    from launcher.run import Run

DIRECTORY = "trace"
OPERATORS = "operators.json"


@contextmanager
def traced(run: Run, phase: Recipe) -> Iterator[None]:
    """Around every step: records the one that the recipe names, and what comes of it once it is over."""
    step = run.counters.step + 1
    if step != phase.train.trace_step:
        yield
        return
    import torch
    import torch.distributed as dist
    from torch.profiler import ProfilerActivity, profile

    directory, device = run.directory / DIRECTORY, run.mesh.device
    if run.mesh.rank == 0:  # an earlier attempt may have had more ranks
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    dist.barrier()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as recorded:
        began = perf_counter()
        yield
        if on_gpu:  # the step's last kernels belong to it
            torch.cuda.synchronize(device)
        seconds = perf_counter() - began
    recorded.export_chrome_trace(str(directory / f"rank_{run.mesh.rank:05d}.json.gz"))
    if run.mesh.rank == 0:
        operators = _operators(recorded, on_gpu)
        told = {"step": step, "device": device.type, "seconds": seconds, "operators": operators}
        (directory / OPERATORS).write_text(json.dumps(told))
        run.event("trace", _message(step, directory, operators))


def _operators(recorded: profile, on_gpu: bool) -> list[tuple[str, int, float]]:
    """(name, calls, seconds of its own), longest first: on a GPU what kernels took there, else what operators took here."""

    def seconds(one: Any) -> float:
        return float(one.self_device_time_total if on_gpu else one.self_cpu_time_total) / 1e6

    found = [(one.key, one.count, seconds(one)) for one in recorded.key_averages()]
    return sorted((one for one in found if one[2] > 0), key=lambda one: -one[2])


def _message(step: int, directory: Path, operators: list[tuple[str, int, float]], most: int = 4) -> str:
    whole = sum(seconds for *_, seconds in operators)
    longest = ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, _, seconds in operators[:most])
    return f"step {step}: longest were {longest}; {directory}/rank_*.json.gz open in Perfetto, `triaxis report` has a table"
