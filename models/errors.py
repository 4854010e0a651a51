"""What a model's options raise."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be: the message names the option, the value, the limit and the cure."""
