"""The bare loop: what somebody who knows PyTorch writes by hand, around the same modules and batches.

Mixed precision is autocast over float32 weights, the usual way by hand.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from launcher.bench.task import Task, load_task
from launcher.bench.turns import Turnstile
from launcher.workers import die_with_parent
from models.decoder import Decoder, initialise_blocks
from models.layers import PlainLayers


def train(task: Task, turnstile: Turnstile) -> None:
    """Train until the turnstile ends the process."""
    config, optimizing, train = task.recipe.model, task.recipe.optimizer, task.recipe.train
    samples = torch.from_numpy(task.samples()).to(task.device)
    inputs, targets = samples[..., :-1].contiguous(), samples[..., 1:].transpose(1, 2).contiguous()
    with torch.device(task.device):
        model = Decoder(config, PlainLayers())
    initialise_blocks(iter(model.blocks), task.recipe.seed)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": optimizing.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (optimizing.beta1, optimizing.beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=optimizing.epsilon, fused=True)

    for step in itertools.count():
        batch, total = step % len(samples), torch.zeros((), device=task.device)
        micro = zip(inputs[batch].split(train.micro_batch), targets[batch].split(train.micro_batch, 1), strict=True)
        for tokens, expected in micro:
            with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16"):
                logits = model(tokens)
            loss = F.cross_entropy(logits.float().flatten(0, 1), expected.flatten()) / task.accumulation
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizing.clip_norm or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = task.rates[min(step, len(task.rates) - 1)]
        optimizer.step()
        optimizer.zero_grad()
        turnstile.step_done(total)


def main() -> None:
    """Run as a contender."""
    die_with_parent()
    task = load_task()
    torch.set_num_threads(task.threads)
    train(task, Turnstile(task.synchronize()))


if __name__ == "__main__":
    main()
