"""Hydra, and only here: recipes and overrides in, one typed recipe out.

A base node with every field's default is registered with Hydra, so that any field can be overridden without `+` and the
YAML files need only say what they change.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config import PhaseConfig, Recipe, RecipeError
from launcher.schema import build, known_paths, recorded, to_plain, unknown_key

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
PROFILES = RECIPES.parent / "slurm" / "profiles"  # recipes of the group `cluster` that describe a site
ENTRY = "train"  # recipes/train.yaml


def register_base() -> None:
    """Tell Hydra every field and its default, and every profile of a site."""
    store = ConfigStore.instance()
    store.store(name="base", node=to_plain(Recipe()))
    for path in PROFILES.glob("*.yaml"):
        store.store(group="cluster", name=path.stem, node=yaml.safe_load(path.read_text()))


def groups(directories: Sequence[Path] = (RECIPES,)) -> dict[str, list[str]]:
    """Config groups and their options."""
    found: dict[str, list[str]] = {}
    for directory in directories:
        for path in sorted(directory.glob("*/*.yaml")):
            found.setdefault(path.parent.name, []).append(path.stem)
    found["cluster"] = sorted({*found.get("cluster", ()), *(path.stem for path in PROFILES.glob("*.yaml"))})
    return found


def check_overrides(overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Refuse unknown groups, options of groups and fields, with the nearest name, before Hydra composes."""
    known = groups((RECIPES, Path(config_dir)) if config_dir else (RECIPES,))
    paths = set(known_paths())
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise RecipeError(
                f"{text.lstrip('+')}: is not an override; write option=value, with quotes round what holds spaces or, in a "
                "list or map, ="
            ) from error
        key = override.key_or_group.split("@")[0]
        if key in known and "." not in key:
            value = override.value()
            if value is None and not override.is_delete():
                raise RecipeError(
                    f"{key}=null: a group needs a recipe; leave {key} out, or choose one of {', '.join(known[key])}"
                )
            if isinstance(value, str) and value not in known[key]:
                near = difflib.get_close_matches(value, known[key], n=1)
                cure = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known[key])}"
                raise RecipeError(f"{key}={value}: no such recipe; {cure}")
        elif not key.startswith(("hydra", "phases", *OPEN)) and key not in paths:
            raise RecipeError(unknown_key(key))


OPEN = ("sweep.axes.", "sweep.only.", "sweep.published.", "sweep.search.space.", "cluster.environment.")
"""Sections whose names are the recipe's own."""


def with_open(overrides: Sequence[str]) -> list[str]:
    """Overrides within open sections as Hydra has them, which else takes no name that no file has."""
    whole = tuple(f"{section[:-1]}=" for section in OPEN)
    return [f"++{text}" if text.startswith(OPEN + whole) else text for text in overrides]


_HOME = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?<=[=\[,:\s])~(?=/)""")


def at_home(overrides: Sequence[str]) -> list[str]:
    """Overrides with `~/` as a shell would write it out, were it the word's beginning: Hydra's grammar knows no `~` in values.
    What is quoted stays, and is expanded by whoever opens the path."""
    home = os.path.expanduser("~")
    return [_HOME.sub(lambda found: found[1] or home, text) for text in overrides]


def compose_tree(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """Compose recipes/train.yaml with overrides into plain data."""
    overrides = with_open(at_home(overrides))
    check_overrides(overrides, config_dir)
    register_base()
    extra = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(RECIPES), version_base="1.3"):
            tree = plain(compose(ENTRY, [*overrides, *extra]))
    except (HydraException, OmegaConfBaseException) as error:
        raise RecipeError(_first_lines(error)) from error
    refuse_decided(overrides, tree)
    return tree


DECIDED = {
    "train.tokens": ("train.epochs", "train.flops", "train.tokens_per_parameter"),
    "train.batch_tokens": ("train.batch_law",),
    "optimizer.learning_rate": ("optimizer.rate_law",),
}
"""Options that others decide where they are set."""


def refuse_decided(overrides: Sequence[str], tree: dict[str, Any]) -> None:
    """Refuse an override of what another option of the composed recipe decides: it would be ignored."""
    for text in overrides:
        for option in DECIDED.get(text.lstrip("+").partition("=")[0], ()):
            section, name = option.split(".")
            if value := tree.get(section, {}).get(name):
                off = f"{option}=''" if isinstance(value, str) else f"{option}=0"
                raise RecipeError(
                    f"{text}: has no effect with {option}={value}, which decides it; leave it out or set {off}"
                )


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolve interpolations and drop Hydra's own node."""
    try:
        tree = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(_first_lines(error)) from error
    assert isinstance(tree, dict)
    tree.pop("hydra", None)
    return {str(key): value for key, value in tree.items()}


def _first_lines(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def build_recipe(tree: dict[str, Any]) -> Recipe:
    """Plain data to the typed recipe; every phase is built too, so that none fails hours later."""
    data = dict(tree)
    if isinstance(data.get("phases"), list):
        data["phases"] = [_phase_data(entry, index) for index, entry in enumerate(data["phases"])]
    recipe = build(Recipe, data)
    for index, phase in enumerate(recipe.phases):
        if phase.tokens < 1:
            raise RecipeError(f"phases[{index}].tokens={phase.tokens}: must be at least 1")
        phase_recipe(recipe, index)
    return recipe


def _phase_data(entry: Any, index: int) -> dict[str, Any]:
    """A phase as PhaseConfig's fields: `name`, `tokens`, and everything else as overrides."""
    if not isinstance(entry, dict) or "tokens" not in entry:
        raise RecipeError(f"phases[{index}].tokens: is required; give each phase a budget in tokens")
    rest = {key: value for key, value in entry.items() if key not in ("name", "tokens", "overrides")}
    if not isinstance(entry.get("overrides", {}), dict):
        raise RecipeError(f"phases[{index}].overrides={entry['overrides']!r}: must be sections with fields")
    return {
        "name": entry.get("name", f"phase{index + 1}"),
        "tokens": entry["tokens"],
        "overrides": {**entry.get("overrides", {}), **rest},
    }


PHASE_SECTIONS = ("train", "data", "schedule", "precision", "parallel", "objective", "optimizer")


def phase_recipe(recipe: Recipe, index: int) -> Recipe:
    """The recipe as it stands in one phase: overrides applied, `phases` left as it is."""
    phase: PhaseConfig = recipe.phases[index]
    tree = to_plain(recipe)
    for section, values in phase.overrides.items():
        place = f"phases[{index}].{section}"
        if section not in PHASE_SECTIONS:
            raise RecipeError(f"{place}: a phase may override {', '.join(PHASE_SECTIONS)}; nothing else")
        if not isinstance(values, dict):
            raise RecipeError(f"{place}={values!r}: must be a section with fields")
        for key, value in values.items():
            if key not in tree[section]:
                raise RecipeError(f"phases[{index}]." + unknown_key(f"{section}.{key}"))
            if section == "train" and key in ("tokens", "max_steps"):
                raise RecipeError(
                    f"{place}.{key}={value}: has no effect in a phase; set phases[{index}].tokens, or train.max_steps of "
                    "the run"
                )
            tree[section][key] = value
    return build(Recipe, tree)


def phases_of(recipe: Recipe) -> list[Recipe]:
    """The recipe of every phase; one plain recipe is its own only phase."""
    return [phase_recipe(recipe, index) for index in range(len(recipe.phases))] or [recipe]


def load_recipe(path: Path) -> Recipe:
    """Read a frozen recipe (`config.yaml` of a run)."""
    return recorded(path, build_recipe)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a frozen recipe atomically."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True))
    partial.replace(path)
