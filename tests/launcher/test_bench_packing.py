from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from launcher.bench.packing import WAYS, main, recipe_of, run, show
from launcher.budget import Budget
from launcher.config import RecipeError
from tests.launcher.running import minute


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_train_on_as_many_tokens(way: str, tmp_path: Path) -> None:
    recipe = recipe_of(way, 100_000, 3, tmp_path, [])
    assert Budget(recipe).total_tokens == 98_304 and recipe.seed == 3
    assert recipe.run.dir == str(tmp_path)


def test_ways_that_are_none_are_refused() -> None:
    with pytest.raises(RecipeError, match="choose among cut;"):
        main(["--ways", "sideways"])
    with pytest.raises(RecipeError, match="whole numbers"):
        main(["--seeds", "one"])


@pytest.mark.slow
def test_the_table_has_every_way(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [part for part in minute(corpus, 3) if part.startswith(("model.", "data.path", "cluster."))]
    small += ["model.max_sequence=256"]
    ways = ["cut", "best_fit", "grow_length"]
    figures = run(ways, 12_288, [1], [part for part in small if "max_sequence=32" not in part], Console())
    assert set(figures["ways"]) == set(ways) and all(found["loss"][0] < 6 for found in figures["ways"].values())
    show(figures, Console(width=120))
    assert "+0.0000" in capsys.readouterr().out
