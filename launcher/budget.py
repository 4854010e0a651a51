"""What a run may spend: tokens and steps of its phases, and the learning rate that follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.compose import phases_of
from launcher.config import Recipe
from launcher.optim.schedule import Schedule
from launcher.slots import Slots

if TYPE_CHECKING:  # whoever plans or submits a run needs no torch
    from launcher.batches import Counters


class Budget:
    """The budget of a recipe, phase by phase; `train.max_steps` cuts it short, the schedule keeps to the tokens."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.phases = phases_of(recipe)

    @property
    def tokens(self) -> int:
        """Tokens that the recipe asks for."""
        return sum(self.of_phase(index) for index in range(len(self.phases)))

    def of_phase(self, index: int) -> int:
        """Tokens that a phase asks for."""
        return self.recipe.phases[index].tokens if self.recipe.phases else self.recipe.train.tokens

    def name_of(self, index: int) -> str:
        """Name of a phase; a run without phases has one called `main`."""
        return self.recipe.phases[index].name if self.recipe.phases else "main"

    def steps_of(self, index: int) -> int:
        """Whole batches that a phase takes to spend its budget."""
        return Slots(self.phases[index].train).steps(0, self.of_phase(index))

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, train.max_steps included."""
        steps = sum(self.steps_of(index) for index in range(len(self.phases)))
        return min(steps, self.recipe.train.max_steps or steps)

    @property
    def total_tokens(self) -> int:
        """Tokens that will really be trained on, whole batches and train.max_steps counted."""
        left, tokens = self.total_steps, 0
        for index, phase in enumerate(self.phases):
            steps = min(left, self.steps_of(index))
            left, tokens = left - steps, tokens + Slots(phase.train).place_after(0, steps)
        return tokens

    def steps_left(self, counters: Counters) -> int:
        """Steps that the current phase still has."""
        slots = Slots(self.phases[counters.phase].train)
        steps = slots.steps(counters.phase_tokens, self.of_phase(counters.phase))
        return max(0, min(steps, self.total_steps - counters.step))

    def spent(self, counters: Counters) -> bool:
        """Whether the whole run is done once the current phase has no steps left."""
        return counters.phase == len(self.phases) - 1 or counters.step >= self.total_steps

    def schedule(self, index: int) -> Schedule:
        """The learning-rate schedule that applies in a phase."""
        phase = self.phases[index]
        total = self.of_phase(index) if phase.schedule.span == "phase" else self.tokens
        return Schedule(phase.schedule, phase.optimizer.learning_rate, total)
