"""Which column plays which role: as the user says, or by common names where only one fits; units, missing values, limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from launcher.laws.form import FLOPS_PER_PARAMETER_TOKEN, LawError
from launcher.laws.table import Table


@dataclass(frozen=True)
class Role:
    """A measured quantity: what it is, names that files give it (letters and digits only), and the least a median can be."""

    text: str
    names: tuple[str, ...]
    least: float = 0.0


ROLES = {
    "params": Role(
        "parameters N",
        ("n", "params", "parameters", "modelsize", "nparams", "numparams", "numparameters", "parametercount",
         "modelparams", "modelparameters"), 1e3),
    "tokens": Role(
        "training tokens D",
        ("d", "tokens", "trainingtokens", "traintokens", "ntokens", "numtokens", "trainingdata", "datasetsize", "data"), 1e4),
    "flops": Role(
        "training FLOPs C",
        ("c", "flop", "flops", "trainingflop", "trainingflops", "trainflops", "compute", "trainingcompute"), 1e9),
    "loss": Role(
        "loss, nats",
        ("loss", "validationloss", "valloss", "validloss", "testloss", "evalloss", "finalloss", "smoothloss")),
    "batch": Role(
        "batch size", ("bs", "batch", "batchsize", "globalbatch", "globalbatchsize", "globalbs", "batchtokens")),
    "rate": Role("peak learning rate", ("lr", "learningrate", "peaklr", "maxlr", "peaklearningrate")),
    "steps": Role("optimizer steps", ("ti", "steps", "iterations", "trainsteps", "trainiterations", "iters")),
    "unique": Role(
        "unique tokens U", ("u", "unique", "uniquetokens", "uniquedata", "datasettokens", "datasize"), 1e4),
    "average": Role(
        "average parameters", ("average", "averageparams", "averageparameters", "avgparams", "meanparams"), 1e3),
    "active": Role("active parameters", ("active", "activeparams", "activeparameters", "nactive", "nact"), 1e3),
    "experts": Role("experts E", ("experts", "numexperts", "nexperts", "e", "expansion", "expansionrate")),
    "granularity": Role("granularity G", ("granularity", "g")),
    "sparsity": Role("share of weights that are zero", ("sparsity", "s", "weightsparsity")),
    "activation": Role(
        "share of neurons that are active", ("activation", "activationratio", "activationrate", "ratio")),
    "first": Role("tokens of the first modality", ("first", "d1", "di", "tokens1", "firsttokens"), 0.0),
    "second": Role("tokens of the second modality", ("second", "d2", "dj", "tokens2", "secondtokens"), 0.0),
    "profile": Role("budget that a run belongs to", ("budget", "isoflop", "flopsbudget", "flopbudget", "profile")),
    "run": Role("name of the run", ("run", "runid", "runname", "model", "name")),
}  # fmt: skip

DIRECTORY = "directory"  # the column that says where the curve of a run of ours lies
TEXTS = ("run", "profile")  # roles whose columns need hold no numbers
_UNITS = (
    (re.compile(r"\((m|mio|million|millions)\)|\bin millions\b|\bmillions?\b", re.I), 1e6),
    (re.compile(r"\((b|bn|billion|billions)\)|\bin billions\b|\bbillions?\b", re.I), 1e9),
    (re.compile(r"\((t|trillion|trillions)\)|\btrillions?\b", re.I), 1e12),
)


@dataclass(frozen=True)
class Measured:
    """Columns by role (n,), without the rows that lacked one. named: role -> column; notes: what was done to them."""

    columns: dict[str, np.ndarray]
    named: dict[str, str]
    notes: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def only(self, keep: np.ndarray) -> Measured:
        """The rows of a mask (n,)."""
        rows = tuple(row for row, kept in zip(self.rows, keep, strict=True) if kept)
        return Measured({role: values[keep] for role, values in self.columns.items()}, self.named, self.notes, rows)

    def __len__(self) -> int:
        return len(self.rows)


def measure(
    table: Table,
    needed: Sequence[str],
    given: Mapping[str, str],
    prefers: Mapping[str, Sequence[str]] | None = None,
    optional: Sequence[str] = (),
) -> Measured:
    """Columns for the roles that a law needs. LawError where one is missing, ambiguous, or not in plain units.

    given: role -> `column` or `column*factor`. Of parameters, tokens and FLOPs the third follows from two by C = 6 N D.
    """
    prefers, notes = prefers or {}, []
    columns: dict[str, np.ndarray] = {}
    named: dict[str, str] = {}
    core = ("params", "tokens", "flops")
    for role in dict.fromkeys((*needed, *optional, *(core if set(needed) & set(core) else ()))):
        name = column_of(table, role, given, prefers.get(role, ()), must=False)
        if name is not None:
            columns[role], named[role], note = _values(table, role, name, explicit=role in given)
            notes += [note] if note else []
    notes += _complete(columns, named)
    for role in needed:
        if role not in columns:
            column_of(table, role, given, prefers.get(role, ()), must=True)
    kept = [role for role in columns if role in needed or role in optional or role in core]
    whole = np.all([np.isfinite(columns[role]) for role in kept if role in needed], axis=0)
    if not whole.all():
        notes.append(f"{int((~whole).sum())} of {len(whole)} rows lack a value and are left out")
    rows = tuple(row for row, kept_ in zip(table.rows, whole, strict=True) if kept_)
    measured = Measured({role: columns[role][whole] for role in kept}, named, tuple(notes), rows)
    if not len(measured):
        raise LawError(f"{table.place}: no row has a number for each of {', '.join(needed)}")
    _check(table, measured, needed)
    return measured


def column_of(table: Table, role: str, given: Mapping[str, str], prefers: Sequence[str], must: bool) -> str | None:
    """The column of a role, by option or by name; None where there is none and it need not be."""
    option, names = f"--{role}", table.names
    if role in given:
        name = given[role]
        if name in names or (_factor(name)[0] in names):
            return name
        raise LawError(f"{option}={name}: {table.place} has no such column; there are {', '.join(names)}")
    plain = {name: re.sub(r"[^a-z0-9]", "", _bare(name).lower()) for name in names}
    for wish in prefers:
        if found := [name for name in names if plain[name] == re.sub(r"[^a-z0-9]", "", wish.lower())]:
            return found[0]
    found = [name for name in names if plain[name] in ROLES[role].names]
    found = [name for name in found if role in TEXTS or table.numeric(name)] or found[:1]
    if len(found) == 1:
        return found[0]
    if len(found) > 1 and len({table.numbers(name).tobytes() for name in found}) == 1:
        return found[0]  # the same numbers twice
    if found:
        raise LawError(f"{table.place}: {' and '.join(found)} could all be {ROLES[role].text}; say {option} NAME")
    if must:
        raise LawError(
            f"{table.place}: no column is called as {ROLES[role].text} usually are; say {option} NAME. There are "
            f"{', '.join(names)}"
        )
    return None


def _bare(name: str) -> str:
    """A column's name without its unit."""
    for pattern, _ in _UNITS:
        name = pattern.sub("", name)
    return name


def _factor(text: str) -> tuple[str, float]:
    """(column, factor) of `column*1e6`."""
    name, star, factor = text.rpartition("*")
    try:
        return (name.strip(), float(factor)) if star else (text, 1.0)
    except ValueError:
        return text, 1.0


def _values(table: Table, role: str, name: str, explicit: bool) -> tuple[np.ndarray, str, str]:
    """(values, name of the column, note on its unit)."""
    column, factor = (name, 1.0) if name in table.names else _factor(name)
    note = ""
    if factor == 1.0 and role in ("params", "tokens", "unique", "average", "active", "first", "second"):
        for pattern, unit in _UNITS:
            if pattern.search(column):
                factor, note = unit, f"{column}: taken times {unit:g}, as its name says"
                break
    values = table.numbers(column) * factor
    return values, column, note


def _complete(columns: dict[str, np.ndarray], named: dict[str, str]) -> list[str]:
    """Fill in the third of N, D, C where it is missing; say so."""
    if {"params", "tokens"} <= set(columns) and "flops" not in columns:
        columns["flops"] = FLOPS_PER_PARAMETER_TOKEN * columns["params"] * columns["tokens"]
        named["flops"] = f"6 x {named['params']} x {named['tokens']}"
    elif {"params", "flops"} <= set(columns) and "tokens" not in columns:
        columns["tokens"] = columns["flops"] / (FLOPS_PER_PARAMETER_TOKEN * columns["params"])
        named["tokens"] = f"{named['flops']} / (6 x {named['params']})"
        return [f"tokens are {named['tokens']}, since there is no column of them"]
    elif {"tokens", "flops"} <= set(columns) and "params" not in columns:
        columns["params"] = columns["flops"] / (FLOPS_PER_PARAMETER_TOKEN * columns["tokens"])
        named["params"] = f"{named['flops']} / (6 x {named['tokens']})"
        return [f"parameters are {named['params']}, since there is no column of them"]
    return []


def _check(table: Table, measured: Measured, needed: Sequence[str]) -> None:
    """Refuse what is no count in plain units, and what is no loss in nats."""
    for role in needed:
        values, name = measured.columns[role], measured.named.get(role, role)
        least, middle = ROLES[role].least, float(np.median(values))
        if least and middle < least and DIRECTORY not in table.names:  # our own runs count in units
            raise LawError(
                f"--{role}: {name} has a median of {middle:g}, too few for {ROLES[role].text}: it seems to count in "
                f"thousands, millions or billions; say --{role} '{name}*1e6', or the factor that it needs"
            )
        if role in (
            "params",
            "tokens",
            "flops",
            "rate",
            "batch",
            "unique",
            "average",
            "active",
            "loss",
            "experts",
        ) and (values.min() <= 0):
            raise LawError(
                f"--{role}: {name} has the value {values.min():g}; leave such rows out with --where '{name}>0'"
            )
    if "loss" in needed and (middle := float(np.median(measured.columns["loss"]))) > 30:
        raise LawError(
            f"--loss: {measured.named['loss']} has a median of {middle:g}: that is no loss in nats a token; a perplexity's "
            "logarithm is"
        )
