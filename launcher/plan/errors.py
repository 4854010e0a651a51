"""What a plan refuses."""

from __future__ import annotations


class PlanError(ValueError):
    """A plan that cannot be made: the message names the option, the value, the limit and the cure."""
