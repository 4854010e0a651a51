"""What a recipe's `kernels=` may say. No torch here: the launcher refuses before it starts."""

from __future__ import annotations

import importlib.util

from models.errors import ModelError

CHOICES = ("auto", "reference", "triton", "cuda", "cpp", "liger", "apex")

_PACKAGES = {"liger": "liger_kernel", "apex": "apex"}


def check_choice(wanted: str) -> None:
    """ModelError for what cannot be chosen on this machine."""
    if wanted not in CHOICES:
        raise ModelError(f"kernels={wanted}: choose one of {', '.join(CHOICES)}")
    package = _PACKAGES.get(wanted)
    if package and importlib.util.find_spec(package) is None:
        raise ModelError(f"kernels={wanted}: {package} is not installed; install it or choose kernels=auto")
    if wanted in ("triton", "cuda") and importlib.util.find_spec("triton") is None:
        raise ModelError(f"kernels={wanted}: triton is not installed; install it or choose kernels=reference")
