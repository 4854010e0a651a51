"""Every law: its gradient is exact, it is planted and found again, and it is told of on the command line."""

from __future__ import annotations

import numpy as np
import pytest

from launcher.cli import main
from launcher.laws import chinchilla, experts, gadre, kaplan, mixed, repeats, sparsity
from launcher.laws.fit import fit_law
from launcher.laws.form import Law, LawError
from launcher.laws.laws import entries
from launcher.laws.result import FitOptions
from launcher.laws.table import Table

SIZES, RATIOS = np.geomspace(3e7, 7e9, 7), np.array([2.0, 10.0, 40.0, 200.0])
OWN = {"A": 480.0, "B": 2080.0, "E": 1.8, "alpha": 0.35, "beta": 0.37}


def cross(**columns: np.ndarray) -> dict[str, np.ndarray]:
    """Every combination of values."""
    return {name: grid.ravel() for name, grid in zip(columns, np.meshgrid(*columns.values()), strict=True)}


def sizes(**more: np.ndarray) -> dict[str, np.ndarray]:
    made = cross(params=SIZES, ratio=RATIOS, **more)
    ratio = made.pop("ratio")
    return {**made, "tokens": ratio * made["params"]}


def planted() -> list[tuple[Law, dict[str, float], dict[str, np.ndarray], tuple[str, ...]]]:
    """(law, coefficients, columns, coefficients to hold)."""
    many = sizes(repeats=np.array([1.0, 4.0, 16.0, 60.0]))
    unique = {**many, "unique": many["tokens"] / many["repeats"]}
    expert = sizes(experts=np.array([1.0, 2.0, 4.0, 8.0, 32.0]))
    expert["active"] = expert["params"]
    average = sizes()
    average["average"] = average["params"]
    few = np.array([0.0, 0.3, 0.5, 0.75])
    tokens = {"tokens": np.geomspace(1e9, 1e12, 30)}
    first, second = np.array([0.0, 1e9, 1e10, 1e11]), np.array([0.0, 2e9, 2e10, 2e11])
    both = cross(params=SIZES, first=first, second=second)
    both = {name: values[both["first"] + both["second"] > 0] for name, values in both.items()}
    modal = {f"{k}_1": v for k, v in OWN.items()} | {
        "A_2": 300.0,
        "B_2": 900.0,
        "E_2": 1.2,
        "alpha_2": 0.3,
        "beta_2": 0.32,
    }
    return [
        (chinchilla.CHINCHILLA, OWN, sizes(), ()),
        (gadre.GADRE, {"E": 1.84, "a": 212.0, "b": 367.0, "eta": 0.136}, sizes(), ()),
        (kaplan.KAPLAN, kaplan.PUBLISHED, sizes(), ()),
        (kaplan.KAPLAN_N, {"N_c": 8.8e13, "alpha_N": 0.076}, sizes(), ()),
        (kaplan.KAPLAN_D, {"D_c": 5.4e13, "alpha_D": 0.095}, sizes(), ()),
        (chinchilla.AVERAGE, OWN, average, ()),
        (repeats.REPEATS, {**repeats.PUBLISHED}, unique, ()),
        (
            sparsity.WEIGHTS,
            {"a_S": 16.8, "b_S": 0.722, "c_S": 45.0, "b_N": 0.245, "a_D": 6.9e8, "b_D": 0.203, "c": 0.651},
            sizes(sparsity=few),
            (),
        ),
        (
            sparsity.ACTIVATIONS,
            {"B": 30.0, "C": 8.0, "beta": 0.4, "E": 1.7, "alpha": 0.25},
            cross(params=SIZES, sparsity=few),
            (),
        ),
        (sparsity.RELU, {"b": -1.2, "c": 2e-4, "alpha": 0.35, "A_0": 0.07}, tokens, ()),
        (sparsity.SILU, {"c": 300.0, "alpha": 0.4, "A_0": 0.4}, tokens, ()),
        (
            experts.JOINT,
            {**experts.JOINT_PUBLISHED, "E_start": 2.0, "E_max": 300.0},
            expert,
            ("E_start=2.0", "E_max=300.0"),
        ),
        (
            experts.GRANULAR,
            {"g": 2.1, "gamma": 0.58, "a": 18.1, "alpha": 0.115, "b": 30.8, "beta": 0.147, "c": 0.47},
            sizes(granularity=np.array([1.0, 2.0, 4.0, 8.0, 16.0])),
            ("c=0.47",),
        ),
        (mixed.MIXED, {**modal, "C": 0.12, "A": 40.0, "B": 60.0, "alpha": 0.3, "beta": 0.28}, both, ()),
    ]


CASES = planted()


def data(law: Law, values: dict[str, float], columns: dict[str, np.ndarray], noise: float = 0.0) -> Table:
    losses = np.exp(law.predict(law.inner(values), columns)[0])
    losses *= np.exp(noise * np.random.default_rng(3).normal(size=losses.size))
    made = {**{name: columns[name] for name in law.reads}, law.target: losses}
    rows = zip(*made.values(), strict=True)
    return Table("planted", tuple({k: repr(float(v)) for k, v in zip(made, row, strict=True)} for row in rows))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name)
def test_the_gradient_is_exact(case):
    law, values, columns, _ = case
    theta = np.stack([law.inner(values), law.inner(values) * 1.02])
    logs, slopes = law.predict(theta, columns)
    assert logs.shape == (2, len(columns["params" if "params" in columns else "tokens"]))
    assert slopes.shape == (*logs.shape, len(law.coefficients))
    for index in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[index] = 2e-6 * max(1.0, abs(theta[0, index]))
        numeric = (law.predict(theta + step, columns)[0] - law.predict(theta - step, columns)[0]) / (2 * step[index])
        np.testing.assert_allclose(slopes[..., index], numeric, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name)
def test_planted_without_noise_it_is_found_again(case):
    law, values, columns, fixed = case
    fit = fit_law(law, data(law, values, columns), {}, FitOptions(bootstraps=0, hold_out=0, fix=fixed))
    assert fit.errors["max"] < 1e-4
    for name, value in values.items():
        exponent = not law.coefficients[law.names.index(name)].log
        assert fit.coefficients[name] == pytest.approx(value, rel=0.02 if exponent else 0.1, abs=2e-3), fit.coefficients


def test_every_law_is_listed_with_its_source(capsys):
    assert main(["fit", "--list"]) == 0
    told = capsys.readouterr().out
    for one in entries().values():
        assert one.formula in told and one.source in told
        assert "arXiv" in one.source
    assert {case[0].name for case in CASES} | {"isoflop", "envelope", "step", "power"} == set(entries())


@pytest.mark.parametrize("noise", [0.002])
def test_the_half_life_of_repeats_lies_in_its_interval(noise):
    law, values, columns, _ = next(case for case in CASES if case[0] is repeats.REPEATS)
    fit = fit_law(law, data(law, values, columns, noise), {}, FitOptions(bootstraps=100, hold_out=0, level=0.99))
    assert fit.intervals is not None
    low, high = fit.intervals["R_D"]
    assert low < values["R_D"] < high and high / low < 2


def test_kaplans_optimum_is_where_no_other_split_is_better():
    best = kaplan._optimum(kaplan.PUBLISHED, 1e21)
    theta = kaplan.KAPLAN.inner(kaplan.PUBLISHED)
    n = best["params"] * np.array([0.9, 1.0, 1.1])
    losses = kaplan.KAPLAN.predict(theta, {"params": n, "tokens": 1e21 / (6 * n)})[0]
    assert losses.argmin() == 1
    assert float(np.exp(losses[1])) == pytest.approx(best["loss"])


def test_modalities_that_are_never_alone_are_refused():
    columns = cross(params=SIZES, first=np.array([1e9, 1e10]), second=np.array([1e9, 1e10]))
    table = Table("x", tuple({**{k: str(v) for k, v in zip(columns, row, strict=True)}, "loss": "3"} for row in zip(*columns.values(), strict=True)))  # fmt: skip  # noqa: E501
    with pytest.raises(LawError, match="of the first modality alone"):
        fit_law(mixed.MIXED, table, {}, FitOptions())


def test_sparsity_in_percent_is_refused():
    columns = {"params": SIZES, "tokens": SIZES * 20, "sparsity": np.full(7, 50.0), "loss": np.full(7, 3.0)}
    rows = zip(*columns.values(), strict=True)
    table = Table("x", tuple({k: repr(float(v)) for k, v in zip(columns, row, strict=True)} for row in rows))
    with pytest.raises(LawError, match=r"NAME\*0.01"):
        fit_law(sparsity.WEIGHTS, table, {}, FitOptions())
