"""`triaxis data build` as a person or a SLURM array calls it, and its bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import launcher.bench.databuild as bench
from data.manifest import Manifest
from launcher.cli import _share_of, main
from launcher.config import RecipeError


def arguments(tmp_path: Path, *more: str) -> list[str]:
    source = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": f"document {number} " * (number % 7 + 1), "number": number}) for number in range(200)]
    rows[3] = "{broken"
    source.write_text("\n".join(rows))
    directory = tmp_path / "corpus"
    return [
        *("data", "build", "corpus=files", f"corpus.sources=[{source}]", f"corpus.directory={directory}"),
        *(f"data.path={directory}", "corpus.part_bytes=3000", "corpus.workers=1", *more),
    ]


def test_shares_by_hand_and_what_they_say(tmp_path, capsys):
    command = arguments(tmp_path, "tokenizer=byte", "tokenizer.special_tokens=['[MASK]']")
    assert main([*command, "--shard", "1/2"]) == 0
    assert "share 1 of 2 of" in capsys.readouterr().out and not (tmp_path / "corpus").exists()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "vocabulary 258 (byte)" in said and "1 not JSON" in said
    manifest = Manifest.load(tmp_path / "corpus")
    assert manifest.columns == {"number": "int"} and manifest.quarantined == {"not JSON": 1}
    assert main([*command, "--shard", "2/2"]) == 0
    assert "vocabulary 258 (byte)" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "2", "a/b", ""])
def test_a_share_that_is_none_is_refused(wrong):
    with pytest.raises(RecipeError, match="--shard: needs i/n with i from 1 to n"):
        _share_of(["--shard", wrong])


def test_a_slurm_array_is_shares(monkeypatch):
    assert _share_of(["corpus=files"]) == (None, ["corpus=files"])
    for name, value in {"ID": 7, "MIN": 3, "COUNT": 4, "STEP": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert _share_of(["corpus=files"]) == ((3, 4), ["corpus=files"])
    assert _share_of(["--shard", "1/2", "x"]) == ((1, 2), ["x"])


def test_the_bench_of_builds_runs_what_is_installed(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_text("".join(f"line {number} of some words\n" for number in range(3000)))
    peers = {"absent": ("no_such_module", "raise SystemExit(1)"), "another": ("json", ANOTHER)}
    monkeypatch.setattr(bench, "PEERS", peers)
    place = tmp_path / "figures.json"
    options = ["--text", str(tmp_path / "a.txt"), "--copies", "2", "--vocab", "300", "--rounds", "2"]
    assert bench.main([*options, "--json", str(place)]) == 0
    figures, said = json.loads(place.read_text()), capsys.readouterr().out
    assert figures["absent"] == ["absent"] and "absent: not installed" in said and "another" in said
    assert {name: len(turns) for name, turns in figures["turns"].items()} == {"Triaxis": 2, "another": 2}
    assert figures["ratios"]["another"] > 0 and figures["turns"]["Triaxis"][0]["tokens"] > 1000


ANOTHER = """
began = begin()
lines = [json.loads(line)["text"] for line in open(source)]
sum(range(3_000_000))
done(sum(map(len, lines)), began)
"""
