"""`triaxis bench kernels`: every fused kernel, forward and backward, as a share of what memory or the products allow.

    triaxis bench kernels [--kernels rms_norm,adamw] [--sizes large,small] [--rounds N] [--picture FILE] [--json FILE]
    triaxis bench kernels --compile-only

First the copy rate and the product rate of this device, then each kernel beside plain torch, torch.compile and, where it is
installed, liger-kernel, alone and within a compiled block. On a GPU in bfloat16 at the sizes of an 8-billion-parameter model
and at small ones. On CPU a reduced table in float32, plain torch beside torch.compile, so that the bench itself stays true.
A kernel that would be computed by another implementation than the one named is an error here, a failed CUDA build included.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch._functorch import config as functorch

from launcher.bench.kernels.compiled import compiled_figures, show_compiled
from launcher.bench.kernels.families import known, maker
from launcher.bench.kernels.picture import picture
from launcher.bench.kernels.record import COMPILED, LARGE, OWN, REDUCED, SMALL, Pass, Place, Sizes, place_of
from launcher.bench.kernels.show import show
from launcher.bench.kernels.timing import copy_rate, peak_memory, product_rate, seconds_of
from launcher.bench.show import write_figures
from launcher.config import RecipeError
from launcher.machine import environment

SIZES = {sizes.name: sizes for sizes in (LARGE, SMALL, REDUCED)}


def run(names: list[str], sizes: list[Sizes], rounds: int, device: torch.device) -> dict[str, Any]:
    """All figures. Times in seconds, rates in bytes and FLOP a second."""
    place = place_of(device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # two that wait for one another measure who else is at work on the machine
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": os.getloadavg()[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(place.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "copy_rate": copy_rate(place, rounds),
        "product_rate": product_rate(place, rounds),
        "kernels": [],
    }
    dynamo.recompile_limit = 64  # a block's code is one, whatever kernel it holds
    functorch.donated_buffer = False  # backward runs many times over one graph
    for one in sizes:
        for name in names:
            for each in _made(name, one, place):
                figures = {"kernel": name, "pass": each.name, "sizes": one.name}
                found["kernels"].append(figures | _figures(name, each, place, rounds, found))
            torch.compiler.reset()  # or the memory of one kernel's inputs stays while the next is timed
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def _made(name: str, sizes: Sizes, place: Place) -> list[Pass]:
    torch.manual_seed(0)
    return maker(name)(sizes, place)


def _figures(name: str, one: Pass, place: Place, rounds: int, rates: dict[str, Any]) -> dict[str, Any]:
    """Of a pass. shares: of the copy rate, or of the product rate where products set the time."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message="kernels="
        )  # what the registry says when it takes another implementation
        try:
            seconds = seconds_of(one.calls, place, rounds)
            inside = seconds_of(one.inside, place, rounds) if one.inside else {}
        except UserWarning as refused:
            raise RecipeError(f"{name}: {refused}; leave it out with --kernels, or cure that") from refused
    least = one.flops / rates["product_rate"] if one.flops else one.moved / rates["copy_rate"]
    ours = next((way for way in OWN if way in one.calls), COMPILED)
    return {
        "seconds": seconds,
        "shares": {way: least / taken for way, taken in seconds.items()},
        "inside": inside,
        "least_seconds": least,
        "by": "products" if one.flops else "copies",
        "goal": one.goal,
        "memory": {way: peak_memory(one.calls[way], place) for way in (ours,)},
    }


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench kernels", description="Fused kernels as shares of the copy rate."
    )
    parser.add_argument("--kernels", default="", help=f"some of {', '.join(known())} (default all)")
    parser.add_argument("--sizes", default="", help="of large, small, reduced (default large,small; on CPU reduced)")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each contender (default 9, on CPU 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--picture", metavar="FILE", help="write a picture of the shares there, a PNG")
    parser.add_argument(
        "--compile-only", action="store_true", help="what compilers say for GPUs that need not be there"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags = parser.parse_args(arguments)
    names = _chosen("--kernels", flags.kernels, known(), known())
    if flags.compile_only:
        figures = compiled_figures(names)
        show_compiled(figures)
        write_figures(figures, flags.json)
        return 0
    on_gpu = flags.device == "cuda"
    sizes = _chosen("--sizes", flags.sizes, list(SIZES), ["large", "small"] if on_gpu else ["reduced"])
    rounds = flags.rounds or (9 if on_gpu else 3)
    if rounds < 1:
        raise RecipeError(f"--rounds={rounds}: must be at least 1")
    figures = run(names, [SIZES[name] for name in sizes], rounds, torch.device(flags.device))
    show(figures)
    write_figures(figures, flags.json)
    if flags.picture:
        Path(flags.picture).write_bytes(picture(figures))
    return 0


def _chosen(option: str, text: str, known_: list[str], default: list[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or default
    for name in names:
        if name not in known_:
            raise RecipeError(f"{option}={name}: choose of {', '.join(known_)}")
    return names
