"""The recipe as frozen, typed dataclasses; past this file nobody sees Hydra.

Sections of other rooms come from `models.config`, `data.config` and `parallel.config`; the rest is here. Every field is
documented by the string under it, which `triaxis train --help` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.config import CorpusConfig, TokenizerConfig
from data.stream_config import DataConfig
from launcher.cluster import ClusterConfig
from launcher.jobs.config import JobConfig
from launcher.life import LifeConfig
from launcher.sweep.config import SweepConfig
from models.config import ModelConfig
from models.loss import LossConfig
from models.objectives.config import ObjectiveConfig
from parallel.config import ParallelConfig, PrecisionConfig


class RecipeError(ValueError):
    """A recipe that cannot be: the message names the option, the value, the limit and the cure."""


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RecipeError(f"{option}={value}: choose one of {', '.join(choices)}")


def _at_least(option: str, value: float, limit: float) -> None:
    if value < limit:
        raise RecipeError(f"{option}={value}: must be at least {limit}")


@dataclass(frozen=True)
class RunConfig:
    """The run: its name, its place, and what it begins with."""

    name: str = "run"
    """Name of the run; its directory is run.dir/run.name."""
    dir: str = "runs"
    """Directory that holds runs."""
    init_from: str = ""
    """Run directory or checkpoint to begin from instead of fresh weights; only read when this run has no checkpoint."""
    init_what: str = "weights"
    """What init_from gives: weights, or everything (optimizer, counters and data position too)."""

    def __post_init__(self) -> None:
        """Refuse names that are paths."""
        if not self.name.strip(".") or "/" in self.name:
            raise RecipeError(f"run.name={self.name!r}: must be a plain name; set run.dir for the directory")
        _one_of("run.init_what", self.init_what, ("weights", "everything"))
        if self.init_what != "weights" and not self.init_from:
            raise RecipeError(
                f"run.init_what={self.init_what}: has no effect without run.init_from; set it or leave this"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Budget, batch and what happens between steps. Token counts are of the global batch."""

    tokens: int = 1_000_000
    """Budget of the run in tokens; with phases, their budgets are added up instead."""
    max_steps: int = 0
    """Stop after this many optimizer steps, whatever the budget; 0 for no such limit. The schedule keeps to `tokens`."""
    sequence_length: int = 256
    """Tokens of one sequence."""
    batch_tokens: int = 8192
    """Tokens of one global batch, over all micro-batches and data ranks."""
    epochs: float = 0.0
    """Budget in passes over the run's sources, instead of `tokens`; 0 takes `tokens`."""
    flops: float = 0.0
    """Budget in floating-point operations of forward and backward, as models/flops.py counts them, instead of `tokens`, which
    become whole batches; 0 takes `tokens`."""
    tokens_per_parameter: float = 0.0
    """Budget in tokens for each parameter that a token passes through, embeddings counted, instead of `tokens`, which become
    whole batches (Chinchilla: 20, arXiv 2203.15556); 0 takes `tokens`."""
    batch_law: str = ""
    """Law of parameters N and tokens D that gives `batch_tokens`: step_law, porian (launcher/derive.py says what they are), or
    written out, 0.58*D^0.571; empty takes `batch_tokens`."""
    ramp_from: int = 0
    """Tokens of the first batch of a phase, when batches grow to batch_tokens; 0: all are of batch_tokens."""
    ramp_tokens: int = 0
    """Tokens over which batches grow, in stages of equal length."""
    ramp_increment: int = 0
    """Tokens by which a batch grows from stage to stage; 0: by ramp_from."""
    micro_batch: int = 8
    """Sequences that go through the model at once on each data rank; of buckets of another length than sequence_length, as
    many as have no more tokens."""
    validate_every_tokens: int = 0
    """Tokens between validations; 0 validates only at the end."""
    validation_tokens: int = 0
    """Tokens of the validation split to use, from its start; 0 for all of them."""
    sample_every_tokens: int = 0
    """Tokens between sampled texts; 0 samples only at the end."""
    sample_length: int = 96
    """Tokens of a sampled text; 0 samples never."""
    sample_prompts: tuple[str, ...] = ("",)
    """Texts to continue."""
    sample_temperature: float = 0.8
    """Temperature of sampling; 0 takes the likeliest token."""
    max_skipped_steps: int = 20
    """End the run after this many skipped steps in a row (gradients with NaN or infinity)."""
    profile_step: int = 0
    """Note when each action of this step's pipeline begins and ends, for `triaxis report`; 0 for no step."""
    trace_step: int = 0
    """Record all operators and GPU kernels of this step: a trace a rank for Perfetto, a table in the report; 0 for no step."""

    def __post_init__(self) -> None:
        """Refuse batches that do not divide."""
        for option in ("tokens", "sequence_length", "batch_tokens", "micro_batch", "max_skipped_steps"):
            _at_least(f"train.{option}", getattr(self, option), 1)
        for option in (
            "max_steps",
            "epochs",
            "flops",
            "tokens_per_parameter",
            "ramp_from",
            "ramp_tokens",
            "ramp_increment",
            "validate_every_tokens",
            "validation_tokens",
            "sample_every_tokens",
            "sample_length",
            "profile_step",
            "trace_step",
        ):
            _at_least(f"train.{option}", getattr(self, option), 0)
        _at_least("train.sample_temperature", self.sample_temperature, 0)
        budgets = [option for option in ("epochs", "flops", "tokens_per_parameter") if getattr(self, option)]
        if len(budgets) > 1:
            first, second = (f"train.{option}={getattr(self, option):g}" for option in budgets[:2])
            raise RecipeError(f"{first} and {second}: both are the run's budget; set one of them to 0")
        if self.batch_law and self.ramp_from:
            raise RecipeError(
                f"train.batch_law={self.batch_law}: gives one size of batches, and train.ramp_from={self.ramp_from} lets them "
                "grow; leave one out"
            )
        if self.batch_tokens % self.sequence_length:
            near = max(1, round(self.batch_tokens / self.sequence_length)) * self.sequence_length
            raise RecipeError(
                f"train.batch_tokens={self.batch_tokens}: must be a multiple of "
                f"train.sequence_length={self.sequence_length}; the nearest is {near}"
            )

        self._check_ramp()

    def _check_ramp(self) -> None:
        if bool(self.ramp_from) != bool(self.ramp_tokens) or (self.ramp_increment and not self.ramp_from):
            raise RecipeError(
                f"train.ramp_from={self.ramp_from} and train.ramp_tokens={self.ramp_tokens}: a ramp needs both; set them, or "
                "leave both and train.ramp_increment out"
            )
        if self.ramp_from >= self.batch_tokens:
            raise RecipeError(
                f"train.ramp_from={self.ramp_from}: must be below train.batch_tokens={self.batch_tokens}, which batches grow to"
            )

    @property
    def batch_sequences(self) -> int:
        """Sequences of one global batch."""
        return self.batch_tokens // self.sequence_length


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: str = "adamw"
    """adamw (decoupled weight decay, arXiv 1711.05101) or sgd."""
    learning_rate: float = 1e-3
    """Peak learning rate; where model.parametrization follows the model's size, that of the base, which is shown, too."""
    rate_law: str = ""
    """Law of parameters N and tokens D that gives `learning_rate`: step_law, porian (launcher/derive.py says what they are), or
    written out, 1.79*N^-0.713*D^0.307; empty takes `learning_rate`."""
    beta1: float = 0.9
    """adamw: decay of the first moment; sgd: momentum."""
    beta2: float = 0.95
    """adamw only: decay of the second moment."""
    epsilon: float = 1e-8
    """adamw only: added to the root of the second moment."""
    weight_decay: float = 0.1
    """Applied to matrices and embeddings, never to norm gains and biases."""
    clip_norm: float = 1.0
    """Limit of the global gradient norm; 0 for none."""
    master: str = "float32"
    """What updates are added to below fp32: float32, a copy of the weights that keeps what bf16 would round away, or none, the
    bf16 weights themselves, rounded stochastically (adamw and bf16 only, parallel.engine=torch in one process)."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        _one_of("optimizer.name", self.name, ("adamw", "sgd"))
        _one_of("optimizer.master", self.master, ("float32", "none"))
        if self.master == "none" and self.name != "adamw":
            raise RecipeError(
                f"optimizer.master=none: only adamw rounds stochastically, not optimizer.name={self.name}; set "
                "optimizer.master=float32"
            )
        for option in ("learning_rate", "epsilon", "weight_decay", "clip_norm"):
            _at_least(f"optimizer.{option}", getattr(self, option), 0)
        for option in ("beta1", "beta2"):
            if not 0 <= getattr(self, option) < 1:
                raise RecipeError(f"optimizer.{option}={getattr(self, option)}: must be at least 0 and below 1")
        for option in ("beta2", "epsilon"):
            if self.name == "sgd" and getattr(self, option) != getattr(OptimizerConfig, option):
                raise RecipeError(
                    f"optimizer.{option}={getattr(self, option)}: has no effect with optimizer.name=sgd; leave it out"
                )


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over tokens, as a share of optimizer.learning_rate."""

    name: str = "cosine"
    """constant, linear, cosine, or wsd (warm-up, stable, decay; arXiv 2404.06395)."""
    warmup_tokens: int = 0
    """Tokens over which the rate rises linearly from 0."""
    warmup_share: float = 0.0
    """Share of what the schedule spans over which the rate rises, instead of `warmup_tokens`; 0 takes `warmup_tokens`."""
    decay_tokens: int = 0
    """wsd only: tokens at the end over which the rate falls linearly; 0 for a tenth of the budget."""
    final_ratio: float = 0.1
    """Share of the peak that is left at the end (constant ignores it and refuses other values than the default)."""
    span: str = "run"
    """What the schedule spans: the whole run, or each phase anew."""

    def __post_init__(self) -> None:
        """Refuse options without effect."""
        _one_of("schedule.name", self.name, ("constant", "linear", "cosine", "wsd"))
        _one_of("schedule.span", self.span, ("run", "phase"))
        _at_least("schedule.warmup_tokens", self.warmup_tokens, 0)
        if not 0 <= self.warmup_share < 1:
            raise RecipeError(f"schedule.warmup_share={self.warmup_share}: must be at least 0 and below 1")
        if self.warmup_share and self.warmup_tokens:
            raise RecipeError(
                f"schedule.warmup_share={self.warmup_share} and schedule.warmup_tokens={self.warmup_tokens}: both say how long "
                "the rate rises; set one of them to 0"
            )
        _at_least("schedule.decay_tokens", self.decay_tokens, 0)
        if not 0 <= self.final_ratio <= 1:
            raise RecipeError(f"schedule.final_ratio={self.final_ratio}: must be between 0 and 1")
        if self.decay_tokens and self.name != "wsd":
            raise RecipeError(
                f"schedule.decay_tokens={self.decay_tokens}: has no effect with schedule.name={self.name}; "
                "set it to 0 or choose schedule.name=wsd"
            )
        if self.name == "constant" and self.final_ratio != 0.1:
            raise RecipeError(
                f"schedule.final_ratio={self.final_ratio}: has no effect with schedule.name=constant; leave it out"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When state is saved, how much is kept, and what happens to a bad checkpoint."""

    every_tokens: int = 0
    """Tokens between checkpoints; 0 saves only at the end, at phase borders and when interrupted."""
    every_minutes: float = 0.0
    """Minutes between checkpoints, as well; 0 for none by the clock."""
    keep_last: int = 3
    """Newest checkpoints that are kept."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of this many steps are kept for ever; 0 for none."""
    every_epoch: bool = False
    """Save whenever the sources of a phase were read through once more, and keep those checkpoints for ever."""
    asynchronous: bool = True
    """Write in the background while training goes on."""
    verify: bool = True
    """Check the checksums of what is read."""
    fall_back: bool = True
    """Where the newest checkpoint is corrupt, name it, set it aside and use the one before; false stops instead."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for option, limit in (("every_tokens", 0), ("every_minutes", 0), ("keep_every_steps", 0), ("keep_last", 1)):
            _at_least(f"checkpoint.{option}", getattr(self, option), limit)


@dataclass(frozen=True)
class TrackerConfig:
    """Where metrics go besides metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """online, offline, off, or auto: online if an account is configured, else offline."""
    project: str = "triaxis"
    """wandb project."""
    entity: str = ""
    """wandb team; empty for the account's own."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    every_steps: int = 10
    """Plain progress lines (not on a terminal): one every this many steps."""
    routing_every_steps: int = 10
    """routing.jsonl, of models with experts: one line every this many steps."""
    formats_every_steps: int = 0
    """formats.jsonl, of models in block formats: what becomes of operands, counted every this many steps; 0 for never."""
    report: bool = True
    """Write report.html and report.png when ranks have ended; `triaxis report` writes them at any time."""

    def __post_init__(self) -> None:
        """Refuse unknown modes."""
        _one_of("tracker.wandb", self.wandb, ("auto", "online", "offline", "off"))
        _at_least("tracker.every_steps", self.every_steps, 1)
        _at_least("tracker.routing_every_steps", self.routing_every_steps, 1)
        _at_least("tracker.formats_every_steps", self.formats_every_steps, 0)


@dataclass(frozen=True)
class PhaseConfig:
    """A stretch of a run with its own budget and overrides."""

    name: str
    """Name of the phase."""
    tokens: int
    """Budget of the phase in tokens."""
    overrides: dict = field(default_factory=dict)
    """Sections and fields that differ in this phase, e.g. {train: {sequence_length: 256}}."""


@dataclass(frozen=True)
class Recipe:
    """Everything that a run is made of."""

    seed: int = 1
    """Decides initial weights, sample order and dropout."""
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig(path="corpora/stdlib")
    corpus: CorpusConfig = CorpusConfig(name="stdlib", sources=("stdlib",), directory="corpora/stdlib")
    tokenizer: TokenizerConfig = TokenizerConfig(kind="bpe", vocab_size=1024)
    objective: ObjectiveConfig = ObjectiveConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: PrecisionConfig = PrecisionConfig()
    kernels: str = "auto"
    """What computes norms, activations, losses, quantisation and the optimizer: reference (plain torch), triton (on CPU
    interpreted, slow), cuda (where a kernel has C++), auto (reference on CPU, the fastest known on a GPU), liger or apex
    (where installed, what they have)."""
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracker: TrackerConfig = TrackerConfig()
    cluster: ClusterConfig = ClusterConfig()
    job: JobConfig = JobConfig()
    life: LifeConfig = LifeConfig()
    train: TrainConfig = TrainConfig()
    phases: tuple[PhaseConfig, ...] = ()
    """Phases in order; none means one phase of train.tokens."""
    sweep: SweepConfig = SweepConfig()
