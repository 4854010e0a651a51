"""Every law by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.laws.form import Law, LawError
from launcher.laws.result import Fit, FitOptions, Told
from launcher.laws.table import Table

Way = Callable[[Table, Mapping[str, str], FitOptions], Fit]


@dataclass(frozen=True)
class Entry:
    """A law on the command line: what it is in a line, what it reads, and how it is fitted."""

    name: str
    title: str
    formula: str
    source: str
    reads: tuple[str, ...]
    fit: Way


def _entry(law: Law) -> Entry:
    from launcher.laws.fit import fit_law

    return Entry(law.name, law.title, law.formula, law.source, (*law.reads, law.target),
                 lambda table, given, options: fit_law(law, table, given, options))  # fmt: skip


def _way(told: Told, reads: tuple[str, ...], fit: Way) -> Entry:
    return Entry(
        told.name, told.title, told.formula, told.source, (*reads, *(() if "loss" in reads else ("loss",))), fit
    )


def entries() -> dict[str, Entry]:
    """All laws."""
    from launcher.laws import (
        chinchilla,
        envelope,
        experts,
        gadre,
        isoflop,
        kaplan,
        mixed,
        power,
        repeats,
        sparsity,
        step,
    )

    ways = (
        _way(isoflop.TOLD, isoflop.READS, isoflop.fit_isoflop),
        _way(envelope.TOLD, envelope.READS, envelope.fit_envelope),
        _way(step.TOLD, step.READS, step.fit_step),
        _way(power.TOLD, power.READS, power.fit_power),
    )
    laws = (
        *(chinchilla.CHINCHILLA, gadre.GADRE, kaplan.KAPLAN, kaplan.KAPLAN_N, kaplan.KAPLAN_D, repeats.REPEATS),
        *(chinchilla.AVERAGE, sparsity.WEIGHTS, sparsity.ACTIVATIONS, sparsity.RELU, sparsity.SILU),
        *(experts.JOINT, experts.GRANULAR, mixed.MIXED),
    )
    return {one.name: one for one in (*map(_entry, laws), *ways)}


def entry(name: str) -> Entry:
    """The law of a name. LawError with the nearest where there is none."""
    known = entries()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    cure = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
    raise LawError(f"fit {name}: no such law; {cure}")
