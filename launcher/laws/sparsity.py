"""Sparsity: of weights and of activations in the loss, and how active neurons are after so many tokens."""

from __future__ import annotations

import numpy as np

from launcher.laws.form import Coefficient, Columns, Law, LawError, constant, log_sum, power

_BOUNDS = (1e-12, 1e20)


def _weights(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """theta = (log a_S, b_S, log c_S, b_N, log a_D, b_D, log c)."""
    n, d, dense = np.log(columns["params"]), np.log(columns["tokens"]), np.log1p(-columns["sparsity"])
    data = theta[..., 5, None] * (theta[..., 4, None] - np.log(columns["tokens"]))
    slope = np.zeros((*data.shape, 7))
    slope[..., 4], slope[..., 5] = theta[..., 5, None], theta[..., 4, None] - d
    return log_sum(
        power(theta, 0, (1, -dense), (3, n)), power(theta, 2, (3, n)), (data, slope), constant(theta, 6, len(n))
    )


def _activations(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """theta = (log B, log C, beta, log E, alpha)."""
    n, active = np.log(columns["params"]), 1 / (1 - columns["sparsity"])
    return log_sum(power(theta, 0, (4, n)), power(theta, 1, (2, -active), (4, n)), constant(theta, 3, len(n)))


def _share(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = columns["sparsity"]
    if (values < 0).any() or (values >= 1).any():
        raise LawError(
            f"--sparsity: must be shares of at least 0 and below 1, not {values.min():g} to {values.max():g}; of percent, say "
            "--sparsity 'NAME*0.01'"
        )
    return {}


WEIGHTS = Law(
    name="sparse-weights",
    title="Weight sparsity",
    formula="L = (a_S (1 - S)^b_S + c_S) N^-b_N + (a_D / D)^b_D + c, N the parameters that are not zero",
    source="Frantar et al. 2023, arXiv 2309.08520, equation 1",
    reads=("params", "tokens", "sparsity"),
    coefficients=(
        Coefficient("a_S", (1.0, 30.0), log=True, bounds=_BOUNDS),
        Coefficient("b_S", (0.3, 0.7), bounds=(0.0, 10.0)),
        Coefficient("c_S", (1.0, 30.0), log=True, bounds=_BOUNDS),
        Coefficient("b_N", (0.15, 0.3), bounds=(0.0, 3.0)),
        Coefficient("a_D", (1e4, 1e8), log=True, bounds=(1e-6, 1e30)),
        Coefficient("b_D", (0.15, 0.3), bounds=(1e-3, 3.0)),
        Coefficient("c", (0.5, 1.5), log=True, bounds=(1e-6, 1e3)),
    ),
    predict=_weights,
    prepare=_share,
)

ACTIVATIONS = Law(
    name="sparse-activations",
    title="Activation sparsity",
    formula="L = E + (B + C exp(beta / (1 - S))) / N^alpha",
    source="Wang et al. 2024, Q-Sparse, arXiv 2407.10969, section 3",
    reads=("params", "sparsity"),
    coefficients=(
        Coefficient("B", (1.0, 30.0, 1e3), log=True, bounds=_BOUNDS),
        Coefficient("C", (1e-2, 1.0, 30.0), log=True, bounds=_BOUNDS),
        Coefficient("beta", (0.05, 0.3, 1.0), bounds=(0.0, 50.0)),
        Coefficient("E", (0.5, 1.0, 2.0), log=True, bounds=(1e-6, 1e3)),
        Coefficient("alpha", (0.1, 0.2, 0.4), bounds=(0.0, 3.0)),
    ),
    predict=_activations,
    prepare=_share,
)


def _relu(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """A = exp(b - c D^alpha) + A_0 over theta = (b, log c, alpha, log A_0)."""
    d = np.log(columns["tokens"])
    fall = np.exp(theta[..., 1, None] + theta[..., 2, None] * d)
    log = theta[..., 0, None] - fall
    slope = np.zeros((*log.shape, 4))
    slope[..., 0], slope[..., 1], slope[..., 2] = 1.0, -fall, -fall * d
    return log_sum((log, slope), constant(theta, 3, len(d)))


def _silu(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """A = A_0 - c / D^alpha over theta = (log c, alpha, log A_0); not above nothing, it counts as next to nothing."""
    d = np.log(columns["tokens"])
    below = (
        theta[..., 0, None] - theta[..., 1, None] * d - theta[..., 2, None]
    )  # logarithm of what is missing, as a share
    missing = np.minimum(np.exp(np.minimum(below, 0.0)), 1 - 1e-9)
    ratio = np.where(below < 0, -missing / (1 - missing), 0.0)
    slopes = (ratio, -ratio * d, 1 - ratio)
    return theta[..., 2, None] + np.log1p(-missing), np.stack(np.broadcast_arrays(*slopes), axis=-1)


RELU = Law(
    name="activation-relu",
    title="Active neurons after so many tokens, ReLU",
    formula="A = exp(b - c D^alpha) + A_0",
    source="Luo et al. 2024, Sparsing Law, arXiv 2411.02335, section 4.1: a decreasing power law in logarithms",
    reads=("tokens",),
    coefficients=(
        Coefficient("b", (-3.0, -1.0, 0.0), bounds=(-50.0, 50.0)),
        Coefficient("c", (1e-6, 1e-3, 1e-1), log=True, bounds=(1e-30, 1e6)),
        Coefficient("alpha", (0.1, 0.3, 0.6), bounds=(1e-3, 3.0)),
        Coefficient("A_0", (0.02, 0.07, 0.3), log=True, bounds=(1e-6, 1.0)),
    ),
    predict=_relu,
    target="activation",
)
SILU = Law(
    name="activation-silu",
    title="Active neurons after so many tokens, SiLU",
    formula="A = A_0 - c / D^alpha",
    source="Luo et al. 2024, Sparsing Law, arXiv 2411.02335, section 4.1: an increasing power law that converges",
    reads=("tokens",),
    coefficients=(
        Coefficient("c", (1e-2, 1.0, 1e2, 1e4), log=True, bounds=(1e-12, 1e20)),
        Coefficient("alpha", (0.1, 0.3, 0.6), bounds=(1e-3, 3.0)),
        Coefficient("A_0", (0.1, 0.3, 0.6), log=True, bounds=(1e-6, 1.0)),
    ),
    predict=_silu,
    target="activation",
)
