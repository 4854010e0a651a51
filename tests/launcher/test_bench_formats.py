"""`triaxis bench formats` measures what it says: bits and bytes are exact, time is a ratio."""

from __future__ import annotations

import pytest
from rich.console import Console

from launcher.bench.formats import PRESETS, main, run, show
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from parallel.config import ParallelError

SMALL = ["model.hidden_size=64", "model.heads=2", "model.ffn_size=128", "model.layers=2", "train.sequence_length=64"]
KEPT = {"bf16": 16, "fp8": 8, "mxfp8": 8.25, "mxint8": 8.25, "mxfp6": 6.25, "mxfp4_mxfp6": 6.25, "nvfp4": 4.5}
GATHERED = {"bf16": 4, "mxfp8": 2 * 8.25 / 8, "mxfp4_backward": 2 + 4.25 / 8, "mxfp6": 2 * 6.25 / 8}


def test_what_is_kept_and_gathered_is_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    presets = {name: build_recipe(compose_tree([f"precision={name}"])).precision.products for name in PRESETS}
    figures = run(presets, build_recipe(compose_tree(SMALL)), 1, 2, "bf16")
    found = {one["preset"]: one for one in figures["figures"]}
    assert set(found) == {"bf16", *PRESETS}
    for name, bits in KEPT.items():
        assert found[name]["kept_bits"] == pytest.approx(bits, abs=0.01), name
    for name, bytes_ in GATHERED.items():
        assert found[name]["gathered_bytes"] == pytest.approx(bytes_, abs=0.01), name
    assert all(one["model_share"] < 1 and one["factor"] > 0 for name, one in found.items() if name != "bf16")
    show(figures, Console(width=140))
    assert "mxfp4_backward" in capsys.readouterr().out


def test_beside_float32_a_format_saves_twice_as_much() -> None:
    presets = {"mxfp8": build_recipe(compose_tree(["precision=mxfp8"])).precision.products}
    figures = run(presets, build_recipe(compose_tree(SMALL)), 1, 2, "fp32")
    base, mxfp8 = figures["figures"]
    assert (base["preset"], base["kept_bits"], base["gathered_bytes"]) == ("fp32", 32, 8)
    assert (mxfp8["kept_bits"], mxfp8["gathered_bytes"]) == pytest.approx((8.25, 2 * 8.25 / 8), abs=0.01)


def test_bad_flags_are_refused() -> None:
    with pytest.raises(RecipeError, match="--presets=bf16: quantises nothing"):
        main(["--presets", "bf16"])
    with pytest.raises(RecipeError, match="--rounds=1: must be at least 2"):
        main(["--presets", "mxfp8", "--rounds", "1", *SMALL])
    with pytest.raises(ParallelError, match="model.ffn_size: .* a dimension of 112"):
        main(["--presets", "mxfp8", *SMALL, "model.ffn_size=112"])
