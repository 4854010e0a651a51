"""Powers of parameters and tokens without a constant: Kaplan et al. 2020, arXiv 2001.08361, equations 1.1, 1.2 and 1.5.

N counts parameters without embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from launcher.laws.form import FLOPS_PER_PARAMETER_TOKEN, Coefficient, Columns, Law

PUBLISHED = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}
"""Of the single powers (equations 1.1 and 1.2)."""
_N_C = Coefficient("N_c", (1e8, 1e11, 1e14, 1e17), log=True, bounds=(1.0, 1e40))
_D_C = Coefficient("D_c", (1e8, 1e11, 1e14, 1e17), log=True, bounds=(1.0, 1e40))
_ALPHA_N = Coefficient("alpha_N", (0.05, 0.1, 0.3), bounds=(1e-4, 3.0))
_ALPHA_D = Coefficient("alpha_D", (0.05, 0.1, 0.3), bounds=(1e-4, 3.0))


def _single(role: str) -> Callable[[np.ndarray, Columns], tuple[np.ndarray, np.ndarray]]:
    """(X_c / X)^alpha over theta = (log X_c, alpha)."""

    def predict(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        away = theta[..., 0, None] - np.log(columns[role])
        alpha = np.broadcast_to(theta[..., 1, None], away.shape)
        return alpha * away, np.stack([alpha, away], axis=-1)

    return predict


def _joint(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D over theta = (log N_c, log D_c, alpha_N, alpha_D)."""
    n = theta[..., 0, None] - np.log(columns["params"])
    d = theta[..., 1, None] - np.log(columns["tokens"])
    alpha_n, alpha_d = theta[..., 2, None], theta[..., 3, None]
    first = alpha_n / alpha_d * n
    total = np.logaddexp(first, d)
    share = np.exp(first - total)
    slopes = (alpha_n * share, alpha_d * (1 - share), share * n, total - share * first)
    return alpha_d * total, np.stack(np.broadcast_arrays(*slopes), axis=-1)


def _optimum(law: Mapping[str, float], budget: float) -> dict[str, float]:
    """Best split of C = 6 N D: where alpha_N (N_c / N)^(alpha_N / alpha_D) = alpha_D D_c / D, equation 1.5's derivative."""
    a, d = law["alpha_N"], law["alpha_D"]
    ratio = a / d
    log_n = (
        np.log(ratio) + ratio * np.log(law["N_c"]) - np.log(law["D_c"]) + np.log(budget / FLOPS_PER_PARAMETER_TOKEN)
    ) / (1 + ratio)
    params = float(np.exp(log_n))
    tokens = budget / (FLOPS_PER_PARAMETER_TOKEN * params)
    loss = ((law["N_c"] / params) ** ratio + law["D_c"] / tokens) ** d
    return {"params": params, "tokens": tokens, "loss": float(loss)}


KAPLAN = Law(
    name="kaplan",
    title="Kaplan, parameters and tokens",
    formula="L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
    source="Kaplan et al. 2020, arXiv 2001.08361, equation 1.5",
    reads=("params", "tokens"),
    coefficients=(_N_C, _D_C, _ALPHA_N, _ALPHA_D),
    predict=_joint,
    optimum=_optimum,
)
KAPLAN_N = Law(
    name="kaplan-n",
    title="Kaplan, parameters",
    formula="L = (N_c / N)^alpha_N",
    source="Kaplan et al. 2020, arXiv 2001.08361, equation 1.1",
    reads=("params",),
    coefficients=(_N_C, _ALPHA_N),
    predict=_single("params"),
)
KAPLAN_D = Law(
    name="kaplan-d",
    title="Kaplan, tokens",
    formula="L = (D_c / D)^alpha_D",
    source="Kaplan et al. 2020, arXiv 2001.08361, equation 1.2",
    reads=("tokens",),
    coefficients=(_D_C, _ALPHA_D),
    predict=_single("tokens"),
)
