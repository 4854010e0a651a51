"""The bare start: what torchrun, DistributedDataParallel and a hand-written step take from the command to the first step."""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from models.decoder import Decoder, initialise_blocks
from models.layers import PlainLayers


def main(task: Path, told: Path) -> None:
    """One step of the pickled task's model on this rank. told: where rank 0 writes when it had ended."""
    found: dict[str, Any] = pickle.loads(task.read_bytes())
    torch.set_num_threads(found["threads"])
    dist.init_process_group("gloo")
    model = Decoder(found["model"], PlainLayers())
    initialise_blocks(iter(model.blocks), 1)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3, fused=True)
    rows, length = found["micro_batch"], found["sequence_length"]
    draw = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(found["micro_batches"]):
        samples = torch.randint(0, found["model"].vocab_size, (rows, length + 1), generator=draw)
        logits = parallel(samples[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), samples[:, 1:].t().flatten()).backward()
    torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
    optimizer.step()
    if dist.get_rank() == 0:
        told.write_text(repr(time.monotonic()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
