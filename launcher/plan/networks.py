"""What links nodes, and how long collectives take over it and over the links of a node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from launcher.plan.chips import Chip
from launcher.plan.errors import PlanError

LATENCY = 3e-6
"""Seconds of one hop between chips of a node (nccl-tests: 8 ranks, small messages, 30 to 50 us of 14 hops)."""
NODE_LATENCY = 8e-6
"""Seconds of one hop between nodes: wire and switches 2 us, the rest the proxy and kernels of NCCL."""
START = 10e-6
"""Seconds to launch a collective and meet the others."""
CROWDED = 0.45
"""Share of an adapter's sustained rate that rings of the data axis keep when every rank of a node is in a ring of its
own: the rings meet in the same switches, and the slowest sets the pace. From Korthikanti et al. (arXiv 2205.05198,
section 6.3): eight replicas of 530 B took 39.15 s a step instead of one's 37.83, for 13.2 GB sent by every rank: 10 of
25 GB/s."""


@dataclass(frozen=True)
class Network:
    """Adapters of a node. rate: bytes/s of one, one way."""

    name: str
    adapters: int
    rate: float
    sustained: float
    """Share that collectives and sends of megabytes reach."""
    source: str


_NCCL = "nccl-tests between nodes: all-reduce of 1 GB and more reaches 90 to 95 % of the adapters"
NETWORKS = {
    network.name: network
    for network in (
        Network("hdr_8x200", 8, 25e9, 0.9, "ConnectX-6, 200 Gbit/s; " + _NCCL),
        Network("hdr_4x200", 4, 25e9, 0.9, "ConnectX-6, 200 Gbit/s; " + _NCCL),
        Network("ndr_8x400", 8, 50e9, 0.9, "ConnectX-7, 400 Gbit/s; " + _NCCL),
        Network("ndr_4x400", 4, 50e9, 0.9, "ConnectX-7, 400 Gbit/s; " + _NCCL),
        Network(
            "roce_8x400",
            8,
            50e9,
            0.8,
            "400 Gbit/s Ethernet (Llama 3, arXiv 2407.21783, section 3.3.1); share: judgement",
        ),
        Network("opa_4x100", 4, 12.5e9, 0.9, "Omni-Path, 100 Gbit/s; share as InfiniBand's, not measured"),
        Network("xdr_8x800", 8, 100e9, 0.9, "ConnectX-8, 800 Gbit/s; share as NDR's, not measured"),
        Network("slingshot_4x200", 4, 25e9, 0.8, "HPE Slingshot 11, 200 Gbit/s; share: judgement"),
        Network("ethernet_1x100", 1, 12.5e9, 0.7, "100 Gbit/s Ethernet, TCP; share: judgement"),
    )
}


def network_of(name: str) -> Network:
    """The network of a name that `cluster.fabric` gives."""
    if name not in NETWORKS:
        raise PlanError(f"cluster.fabric={name}: not in the table of networks; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


@dataclass(frozen=True)
class Group:
    """Ranks of one axis: `size` of them, `inside` of which share a node (the others are as many in each further node)."""

    size: int
    inside: int

    @property
    def crosses(self) -> bool:
        """Whether it spans nodes."""
        return self.inside < self.size

    @property
    def link(self) -> str:
        """What it goes over, in words."""
        return "network" if self.crosses else "node"


@dataclass(frozen=True)
class Fabric:
    """Chips in nodes, and the network between these. node: chips of one."""

    chip: Chip
    network: Network | None
    node: int

    @cached_property
    def _inside(self) -> float:
        return self.chip.link * self.chip.link_sustained

    @cached_property
    def _each(self) -> float:
        """Bytes/s that each chip of a node has to other nodes while all of them send: the adapters are shared."""
        if self.network is None:
            raise PlanError("cluster.fabric=: a plan over several nodes needs to know what links them; name a network")
        return self.network.rate * self.network.sustained * self.network.adapters / self.node

    def group(self, size: int, stride: int) -> Group:
        """`size` ranks that are `stride` apart (ranks are dealt out to nodes in order)."""
        return Group(size, max(1, min(size, self.node // stride)) if stride < self.node else 1)

    def rate(self, group: Group, crowded: bool = False) -> float:
        """Bytes/s of one rank's share of a ring over the group: the slower of its links. Rings of a group with several ranks in
        a node cross to the next node once, by all adapters of these ranks. crowded: all groups of a node do so at once."""
        if not group.crosses:
            return self._inside
        share = CROWDED if crowded and group.inside < self.node else 1.0
        return min(self._inside, self._each * group.inside * share)

    def reduce_scatter(self, size: float, group: Group, crowded: bool = False) -> float:
        """Seconds to sum `size` bytes of each rank and leave each its share; an all-gather to `size` bytes takes as long.

        Rings: (n - 1) / n of the bytes pass each link, in n - 1 hops; across nodes trees and rings by turns, so that hops grow
        with the logarithm of the nodes (NCCL chooses likewise).
        """
        if group.size == 1 or size == 0:
            return 0.0
        share = (group.size - 1) / group.size
        return START + self._hops(group) + size * share / self.rate(group, crowded)

    def all_reduce(self, size: float, group: Group, crowded: bool = False) -> float:
        """Seconds to sum `size` bytes of each rank everywhere."""
        if group.size == 1 or size == 0:
            return 0.0
        return 2 * self.reduce_scatter(size, group, crowded) - START

    def all_to_all(self, size: float, group: Group, once: float = 1.0) -> float:
        """Seconds in which each rank sends `size` bytes evenly to all of the group, itself among them; both links at
        once. once: the share that crosses to other nodes where what several ranks of a node want is sent to it once."""
        if group.size == 1 or size == 0:
            return 0.0
        near, far = (group.inside - 1) / group.size, (group.size - group.inside) / group.size
        slowest = max(size * near / self._inside, size * far * once / self._each if group.crosses else 0.0)
        return START + self._hops(group) + slowest

    def send(self, size: float, across: bool) -> float:
        """Seconds from one rank to another, while the rank's neighbours send as much."""
        if across:
            return START + NODE_LATENCY + size / self._each
        return START + LATENCY + size / self._inside

    def _hops(self, group: Group) -> float:
        nodes = -(-group.size // group.inside)
        return LATENCY * (group.inside - 1) + NODE_LATENCY * (nodes - 1).bit_length()
