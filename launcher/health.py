"""Before the first step: is every rank's device sound and as fast as the others', and does every axis of the mesh add up?

Each rank multiplies and copies matrices, each axis sums numbers whose sum is known. What is wrong ends the run before it
costs anything; what is slow is named with its host. All figures go to `<run>/health.json`.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.mesh import Mesh

SLOW = 1.5  # times the median of all ranks: a straggler holds all others up at every step
SKEW = 1.0  # seconds between clocks from which on logs and credentials suffer
REPEATS = 5
PRODUCT = {"cpu": (256, torch.float32), "cuda": (8192, torch.bfloat16)}  # edge of a matrix; its type
COPY = {"cpu": 1 << 23, "cuda": 1 << 28}  # bytes
SUM = {"cpu": 1 << 16, "cuda": 1 << 24}  # float32 numbers


class HealthError(RuntimeError):
    """A device or an axis that computes wrongly. ranks: those to blame."""

    def __init__(self, message: str, ranks: Sequence[int]) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


@dataclass(frozen=True)
class RankHealth:
    """One rank's device. Rates are bests of a few trials, sizes bytes, times seconds."""

    rank: int
    host: str
    device: str
    memory_free: int
    memory_total: int
    skew: float  # its host's clock against rank 0's, to within what a barrier takes
    product: float  # FLOP/s of a matrix product
    copy: float  # bytes/s of a copy, read and written
    wrong: str = ""


@dataclass(frozen=True)
class AxisHealth:
    """All groups of one axis. rate: 2 (n - 1) / n of the bytes by the time, what each link carries of a ring all-reduce."""

    axis: str
    size: int
    bytes: int
    seconds: float  # of the slowest group
    rate: float
    wrong: tuple[int, ...] = ()  # ranks whose sum was not the known one


@dataclass(frozen=True)
class Health:
    """What was found, on every rank the same."""

    ranks: tuple[RankHealth, ...]
    axes: tuple[AxisHealth, ...]
    seconds: float

    @property
    def stragglers(self) -> list[str]:
        """Ranks that are slower than most, and clocks that differ, each in a line."""
        told = []
        for name, unit in (("product", "FLOP/s"), ("copy", "B/s")):
            middle = statistics.median(getattr(rank, name) for rank in self.ranks)
            for rank in self.ranks:
                if (rate := getattr(rank, name)) * SLOW < middle:
                    share = f"{_si(rate)}{unit}, the median is {_si(middle)}{unit}"
                    told.append(f"rank {rank.rank} on {rank.host} ({rank.device}) is slow: {name} at {share}")
        for rank in self.ranks:
            if abs(rank.skew) > SKEW:
                told.append(f"the clock of {rank.host} (rank {rank.rank}) is {rank.skew:+.1f} s off that of rank 0")
        return told

    def table(self) -> str:
        """For people: the span of each figure, a line an axis, and whoever stands out."""
        rates = {name: [getattr(rank, name) for rank in self.ranks] for name in ("product", "copy")}
        hosts = len({rank.host for rank in self.ranks})
        free = min(rank.memory_free for rank in self.ranks)
        clocks = max(abs(rank.skew) for rank in self.ranks)
        lines = [
            f"health  {len(self.ranks)} rank{'s' * (len(self.ranks) > 1)} on {hosts} host{'s' * (hosts > 1)}, "
            f"tried in {self.seconds:.2f} s",
            f"product {_span(rates['product'], 'FLOP/s')}   copy {_span(rates['copy'], 'B/s')}   "
            f"memory free {_si(free)}B or more" + (f"   clocks within {1000 * clocks:.1f} ms" if clocks else ""),
        ]
        for axis in self.axes:
            took = f"{_si(axis.bytes)}B in {1000 * axis.seconds:.2f} ms, {_si(axis.rate)}B/s a link"
            lines.append(f"axis {axis.axis}: all-reduce over {axis.size} ranks, {took}")
        return "\n".join(lines + self.stragglers)


def examine(mesh: Mesh, seconds: float) -> Health:
    """Try all devices and axes; called on every rank, returns the same everywhere. seconds: for a rank's own trials.

    Raises HealthError, on every rank, where something is wrong.
    """
    began = time.perf_counter()
    own = _examine_rank(mesh, seconds)
    axes = tuple(_examine_axis(mesh, name, group) for name, group in _axes(mesh))
    told: list = [(own, axes)]
    if mesh.world_size > 1:
        told = [None] * mesh.world_size
        dist.all_gather_object(told, (own, axes))
    ranks = tuple(rank for rank, _ in told)
    merged = tuple(_merge([found[index] for _, found in told]) for index in range(len(axes)))
    _refuse(ranks, merged)
    return Health(ranks, merged, time.perf_counter() - began)


def write_health(directory: Path, health: Health) -> None:
    """`<run>/health.json`: every figure."""
    partial = directory / "health.json.partial"
    partial.write_text(json.dumps({**asdict(health), "stragglers": health.stragglers}, indent=1))
    partial.replace(directory / "health.json")


def _refuse(ranks: Sequence[RankHealth], axes: Sequence[AxisHealth]) -> None:
    bad = [rank for rank in ranks if rank.wrong]
    if bad:
        named = "; ".join(f"rank {rank.rank} on {rank.host} ({rank.device}): {rank.wrong}" for rank in bad[:8])
        raise HealthError(
            f"a device computes wrongly: {named}; leave that host out, or set life.health=false", [r.rank for r in bad]
        )
    for axis in axes:
        if axis.wrong:
            hosts = sorted({ranks[rank].host for rank in axis.wrong})
            raise HealthError(
                f"the {axis.axis} axis sums wrongly: an all-reduce of known numbers is wrong on ranks "
                f"{', '.join(map(str, axis.wrong[:8]))} (hosts {', '.join(hosts[:8])}); leave these hosts out",
                axis.wrong,
            )


# A rank


def _examine_rank(mesh: Mesh, seconds: float) -> RankHealth:
    device = mesh.device
    edge, kind = PRODUCT[device.type]
    end = time.perf_counter() + seconds
    a, b = (known_matrix(edge, shift, kind, device) for shift in (0, 3))
    out = torch.empty_like(a)
    product = _best(lambda: torch.mm(a, b, out=out), device, end)
    wrong = "" if product_is_right(a, b, out) else "a matrix product of known numbers is wrong"
    source = torch.zeros(COPY[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device, end)
    free, total = _memory(device)
    return RankHealth(
        rank=mesh.rank,
        host=socket.gethostname(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        memory_free=free,
        memory_total=total,
        skew=_skew(mesh),
        product=2 * edge**3 / product,
        copy=2 * COPY[device.type] / copy,
        wrong=wrong,
    )


def known_matrix(edge: int, shift: int, kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """[edge, edge] of whole numbers from -3 to 3, which every number format here holds exactly."""
    index = torch.arange(edge, device=device)
    return ((index[:, None] * 5 + index * 3 + index[:, None] * index + shift) % 7 - 3).to(kind)


def product_is_right(a: torch.Tensor, b: torch.Tensor, product: torch.Tensor) -> bool:
    """Whether the sums of the rows of A·B are A·(B·1), up to the rounding of the product's own type (Freivalds, 1979)."""
    ones = torch.ones(b.shape[1], 1, dtype=torch.float32, device=b.device)
    expected = (a.float() @ (b.float() @ ones)).flatten()
    limit = torch.finfo(product.dtype).eps * product.float().abs().sum(1) + 1e-3
    return bool(((product.float().sum(1) - expected).abs() <= limit).all())  # False for a NaN too


def _best(work: Callable[[], object], device: torch.device, end: float) -> float:
    """Seconds of the quickest of some repeats; the first does not count where there is time for another."""
    best = float("inf")
    for repeat in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - began
        best = min(best, took) if repeat != 1 else took
        if time.perf_counter() > end:
            break
    return max(best, 1e-9)


def _memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of a GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")


def _skew(mesh: Mesh) -> float:
    """This host's clock less rank 0's, in seconds: the middle of three readings, each right after a barrier."""
    if mesh.world_size == 1:
        return 0.0
    found = []
    for _ in range(3):
        mesh.barrier()
        now = torch.tensor([time.time()], dtype=torch.float64, device=mesh.device)
        first = now.clone()
        dist.broadcast(first, src=0)
        found.append(float(now - first))
    return statistics.median(found)


# An axis


def _axes(mesh: Mesh) -> list[tuple[str, dist.ProcessGroup | None]]:
    """Every axis of more than one rank, and the world where it is no axis by itself."""
    config = mesh.config
    groups = {
        "tensor": (config.tensor, mesh.tensor_group),
        "context": (config.context, mesh.context_group),
        "data": (config.data, mesh.data_group),
        "pipeline": (config.pipeline, mesh.pipeline_group),
        "expert": (config.expert, mesh.expert_group),
    }
    found: list = [(name, group) for name, (size, group) in groups.items() if size > 1]
    alone = any(size == mesh.world_size for size, _ in groups.values())
    return found if alone or mesh.world_size == 1 else [*found, ("world", None)]


def _examine_axis(mesh: Mesh, name: str, group: dist.ProcessGroup | None) -> AxisHealth:
    place, size = dist.get_rank(group), dist.get_world_size(group)
    pattern = torch.arange(SUM[mesh.device.type], device=mesh.device, dtype=torch.float32) % 64
    expected = pattern * sum(weight(other) for other in range(size))
    seconds, right = float("inf"), True
    for repeat in range(3):
        numbers = pattern * weight(place)
        began = time.perf_counter()
        dist.all_reduce(numbers, group=group)
        if mesh.device.type == "cuda":
            torch.cuda.synchronize(mesh.device)
        if repeat:  # the first connects
            seconds = min(seconds, time.perf_counter() - began)
        right &= bool(torch.equal(numbers, expected))
    amount = 4 * len(pattern)
    return AxisHealth(name, size, amount, seconds, 0.0, () if right else (mesh.rank,))


def weight(place: int) -> int:
    """What a rank multiplies the pattern by: sums of 16,384 ranks are whole numbers that float32 holds exactly."""
    return place % 7 + 1


def _merge(found: Sequence[AxisHealth]) -> AxisHealth:
    """One axis as all ranks saw it: its slowest group, and everybody whose sum was wrong."""
    first, seconds = found[0], max(one.seconds for one in found)
    rate = 2 * (first.size - 1) / first.size * first.bytes / seconds
    wrong = tuple(rank for one in found for rank in one.wrong)
    return AxisHealth(first.axis, first.size, first.bytes, seconds, rate, wrong)


def _span(values: Sequence[float], unit: str) -> str:
    low, high = min(values), max(values)
    return f"{_si(low)}{unit}" if len(values) == 1 else f"{_si(low)}{unit} to {_si(high)}{unit}"


def _si(value: float) -> str:
    """1.5e9 as `1.5 G`."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g} "
