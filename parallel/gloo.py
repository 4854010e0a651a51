"""One device for all of a process's gloo groups.

torch gives every group a device of its own, whose thread wakes a hundred times a second for as long as the group lives: eight
ranks of a layout with some twenty groups each wake 16,000 times a second while nothing happens. A group takes 10 ms to close.
"""

from __future__ import annotations

import datetime
import functools
import os
from typing import Any

import torch.distributed as dist


def share_device() -> None:
    """From now on every gloo group of this process is made on the same device. Calling it again changes nothing."""
    if not dist.is_gloo_available() or hasattr(dist.ProcessGroupGloo.__init__, "__wrapped__"):
        return
    make = dist.ProcessGroupGloo.__init__

    @functools.wraps(make)
    def on_the_device(self: Any, store: Any, rank: int, size: int, timeout: Any = dist.default_pg_timeout) -> None:
        if not isinstance(timeout, datetime.timedelta):  # options, with devices of the caller's choice
            return make(self, store, rank, size, timeout)
        options = dist.ProcessGroupGloo._Options()
        options._devices, options._timeout = _devices(os.getpid()), timeout
        options._threads = 2 * len(options._devices)  # as torch has it
        make(self, store, rank, size, options)

    dist.ProcessGroupGloo.__init__ = on_the_device


@functools.cache
def _devices(process: int) -> list[Any]:
    """This process's devices (no thread survives a fork): one for each interface in GLOO_SOCKET_IFNAME, as torch has it."""
    names = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    make = dist.ProcessGroupGloo
    return [make.create_device(interface=name) for name in names] or [make.create_default_device()]
