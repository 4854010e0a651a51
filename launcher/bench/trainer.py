"""`transformers.Trainer` on the equal-sized Llama: sdpa attention, the same batch and accumulation, no logging or saving."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from launcher.bench.task import Task, load_task
from launcher.bench.turns import Turnstile
from launcher.workers import die_with_parent
from models.huggingface_config import to_config


class Samples(Dataset):
    """The sequences of the task; a causal language model of transformers shifts its labels itself."""

    def __init__(self, task: Task) -> None:
        self._inputs = torch.from_numpy(task.samples())[..., :-1].flatten(0, 1).contiguous()

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._inputs[index], "labels": self._inputs[index]}


class StepBoundary(TrainerCallback):
    """Passes the turnstile at the end of every optimizer step."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._turnstile.step_done(0.0)


def llama(task: Task) -> PreTrainedModel:
    """The recipe's model as transformers builds it: as many parameters, the same products."""
    config = task.recipe.model
    theirs = to_config(replace(config, vocab_size=config.padded_vocab), "float32")
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(theirs.pop("model_type"), use_cache=False, **theirs), attn_implementation="sdpa"
    )


def train(task: Task, turnstile: Turnstile) -> None:
    """Train until the turnstile ends the process."""
    optimizing = task.recipe.optimizer
    arguments = TrainingArguments(
        output_dir=str(task.batches.parent / "trainer"),
        max_steps=10**9,
        per_device_train_batch_size=task.recipe.train.micro_batch,
        gradient_accumulation_steps=task.accumulation,
        learning_rate=optimizing.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=optimizing.weight_decay,
        adam_beta1=optimizing.beta1,
        adam_beta2=optimizing.beta2,
        adam_epsilon=optimizing.epsilon,
        max_grad_norm=optimizing.clip_norm,
        optim="adamw_torch_fused",
        bf16=task.precision == "bf16",
        use_cpu=task.device == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(llama(task), arguments, train_dataset=Samples(task), callbacks=[StepBoundary(turnstile)])
    trainer.train()


def main() -> None:
    """Run as a contender."""
    die_with_parent()
    task = load_task()
    torch.set_num_threads(task.threads)
    train(task, Turnstile(task.synchronize()))


if __name__ == "__main__":
    main()
