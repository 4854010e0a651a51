"""What a plan lays out: all of a recipe that memory depends on, but for the layout."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.config import OptimizerConfig, Recipe
from models.config import ModelConfig
from models.loss import LossConfig
from models.precision import ProductsConfig


@dataclass(frozen=True)
class Work:
    """What is to be trained: all of a recipe that memory depends on, but for the layout and the micro-batch.

    batch_sequences: of a global batch. precision: fp32, bf16 or fp16. gpu: whether it runs on one: transfers overlap and its
    allowances count. kernels: whether fused ones run, not plain torch.
    """

    model: ModelConfig
    sequence_length: int
    batch_sequences: int
    precision: str
    products: ProductsConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    reweighted: bool
    gpu: bool
    kernels: bool

    @staticmethod
    def of(recipe: Recipe, precision: str, device: str = "cuda") -> Work:
        """That of a recipe whose vocabulary is resolved. precision: resolved; device: cpu or cuda."""
        return Work(
            recipe.model,
            recipe.train.sequence_length,
            recipe.train.batch_sequences,
            precision,
            recipe.precision.products,
            recipe.optimizer,
            recipe.loss,
            recipe.objective.reweight.name != "none",
            device == "cuda",
            device == "cuda" and recipe.kernels != "reference",
        )

    @property
    def size(self) -> int:
        """Bytes of a number of the model's type."""
        return 4 if self.precision == "fp32" else 2
