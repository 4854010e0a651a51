"""The machine at hand: devices, cores, peak speed, and what is written down about them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from launcher.cluster import ClusterConfig
from launcher.config import RecipeError
from launcher.plan.chips import peak_of_device


def gpu_count() -> int:
    """GPUs that CUDA would offer; imports torch only where a driver is present."""
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidia0").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def choose_device(config: ClusterConfig) -> str:
    """cpu or cuda, as configured and as there is."""
    if config.device == "cpu":
        return "cpu"
    if gpu_count():
        return "cuda"
    if config.device == "cuda":
        raise RecipeError("cluster.device=cuda: this machine has no GPU that torch can use; set cluster.device=cpu")
    return "cpu"


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def threads_for(config: ClusterConfig, local_ranks: int) -> int:
    """CPU threads of each rank on this machine."""
    return config.threads or max(1, cores() // local_ranks)


def peak_flops(precision: str) -> float | None:
    """Peak matrix-product FLOP/s of the current GPU in a precision; None where it is not known."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = peak_of_device(torch.cuda.get_device_name())
    return peak / 2 if peak and precision == "fp32" else peak  # fp32 through TF32 units


def environment() -> dict[str, Any]:
    """What a reader of an old run wants to know of where it ran."""
    packages = ("torch", "deepspeed", "megatron-core", "hydra-core", "webdataset", "tokenizers", "numpy")
    versions = {name: _version(name) for name in packages}
    machine = {"host": platform.node(), "cpu": _cpu(), "cores": cores(), "gpus": _gpus(), "system": platform.platform()}
    return {"versions": {"python": platform.python_version(), **versions}, "machine": machine, "git": git_revision()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _gpus() -> list[str]:
    if not gpu_count():
        return []
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def git_revision() -> str:
    """Revision of the code, with `+changes` where the work tree differs; empty outside a repository."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("+changes" if revision and git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:
        return ""
