"""Over-training: loss of compute and of tokens per parameter, whose exponents are tied."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from launcher.laws.form import FLOPS_PER_PARAMETER_TOKEN, Coefficient, Columns, Law, log_sum


def _predict(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """E + (a M^eta + b M^-eta) C^-eta with C = 6 N D, M = D / N; theta = (log E, log a, log b, eta)."""
    compute = np.log(FLOPS_PER_PARAMETER_TOKEN * columns["params"] * columns["tokens"])
    ratio = np.log(columns["tokens"] / columns["params"])
    return log_sum(
        *(_term(theta, index, x) for index, x in enumerate((0 * compute, ratio - compute, -ratio - compute)))
    )


def _term(theta: np.ndarray, amplitude: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The term exp(theta[amplitude] + eta x)."""
    slope = np.zeros((*theta.shape[:-1], len(x), 4))
    slope[..., amplitude], slope[..., 3] = 1.0, x
    return theta[..., amplitude, None] + theta[..., 3, None] * x, slope


def _optimum(law: Mapping[str, float], budget: float) -> dict[str, float]:
    """The best ratio is where both terms are equal: M^(2 eta) = b / a."""
    ratio = (law["b"] / law["a"]) ** (1 / (2 * law["eta"]))
    params = (budget / (FLOPS_PER_PARAMETER_TOKEN * ratio)) ** 0.5
    loss = law["E"] + 2 * (law["a"] * law["b"]) ** 0.5 * budget ** -law["eta"]
    return {"params": params, "tokens": ratio * params, "loss": loss}


def _derived(law: Mapping[str, float]) -> dict[str, float]:
    return {"M_opt": (law["b"] / law["a"]) ** (1 / (2 * law["eta"]))}


GADRE = Law(
    name="gadre",
    title="Over-training (Gadre)",
    formula="L = E + (a M^eta + b M^-eta) C^-eta, C = 6 N D, M = D / N",
    source="Gadre et al. 2024, arXiv 2403.08540, equation 4; least squares on the loss, as in their scaling/laws.py",
    reads=("params", "tokens"),
    coefficients=(
        Coefficient("E", (0.5, 1.0, 2.0), log=True, bounds=(1e-6, 1e3)),
        Coefficient("a", (30.0, 300.0, 3000.0), log=True, bounds=(1e-6, 1e12)),
        Coefficient("b", (30.0, 300.0, 3000.0), log=True, bounds=(1e-6, 1e12)),
        Coefficient("eta", (0.05, 0.12, 0.2, 0.3), bounds=(0.0, 2.0)),
    ),
    predict=_predict,
    squares=True,
    derived=_derived,
    optimum=_optimum,
)
