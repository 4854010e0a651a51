"""A mixture's run through the command line: trained over an expert axis, told of, looked at, and gone on with elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from launcher.report.routing import MOST_LAYERS, read_routing, routing_picture
from launcher.report.theme import LIGHT
from launcher.routing import agreement, by_token
from tests.launcher.running import Triaxis, minute

EXPERTS = ["model.moe.experts=4", "model.moe.expert_size=16", "model.moe.capacity=1.0", "tracker.routing_every_steps=2"]
BALANCED = ["model.moe.aux_loss=0", "model.moe.bias_rate=0.01"]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run of 6 steps on two processes that share four experts; checkpoints at 4 and 6, gone on with by one process to 8."""
    triaxis = Triaxis(tmp_path_factory.mktemp("mixture"))
    recipe = minute(corpus, 8, *EXPERTS, *BALANCED, tracker__report=True, checkpoint__every_tokens=4 * 128)
    try:
        triaxis.run("train", *recipe, "parallel.expert=2", "train.max_steps=6")
        triaxis.run("train", *recipe)
    finally:
        triaxis.end()
    return triaxis.directory / "runs" / "run"


def test_routing_is_told_in_each_step_and_in_full_where_due(run: Path) -> None:
    steps = [line for line in lines_of(run / "metrics.jsonl") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 9))
    for line in steps:
        assert 0 < line["router_entropy"] <= 1.387 and line["router_largest_load"] >= 1
        assert 0 <= line["router_drop_share"] < 1
    told = lines_of(run / "routing.jsonl")
    assert [line["step"] for line in told] == [2, 4, 6, 8]
    for line in told:
        assert [layer["layer"] for layer in line["layers"]] == [0, 1]
        assert all(sum(layer["load"]) == pytest.approx(1, abs=1e-3) for layer in line["layers"])


def test_the_report_draws_it(run: Path) -> None:
    assert "<h2>Routing</h2>" in (run / "report.html").read_text()
    assert (run / "report_routing.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_are_compared_and_tokens_listed(run: Path) -> None:
    triaxis = Triaxis(run.parents[1])
    try:
        found = triaxis.run("checkpoint", "routing", str(run), "--tokens", "512", "--layer", "1").output
        for word in ("step 4 → step 6", "step 6 → step 8", "by token", "layer 1: tokens of each expert"):
            assert word in found, found
        refused = triaxis.start("checkpoint", "routing", str(run), "--layer", "7").wait(code=1).output
        assert "--layer 7: has no experts; choose one of 0, 1" in refused
        assert triaxis.run("sample", str(run), "the", "--length", "4").output.startswith("the")
    finally:
        triaxis.end()


def test_what_routers_remember_is_loaded_with_the_rest(run: Path) -> None:
    from launcher.generate import load_model

    model, _ = load_model(run)
    biases = [state.bias for state in model.model.blocks[2]._layers.routing.states.values()]
    assert len(biases) == 2 and all(float(bias.abs().max()) >= 0.01 for bias in biases)
    assert all(torch.equal((bias / 0.01).round(), bias / 0.01) or bias.abs().max() < 0.09 for bias in biases)


def test_agreement_and_what_a_token_foretells() -> None:
    one = torch.tensor([[[0, 1]], [[2, 3]]])
    assert agreement(one, one.flip(-1)) == 1.0
    assert agreement(one, torch.tensor([[[0, 2]], [[0, 1]]])) == 0.25
    tokens = torch.arange(4).repeat(8)[None]  # of four kinds, each with its own expert
    assert by_token((tokens.t()[..., None] + 1) % 4, tokens, 4) == (1.0, 0.25)
    assert by_token(torch.zeros(32, 1, 1, dtype=torch.int64), tokens, 4) == (1.0, 1.0)


def test_deep_models_and_long_runs_are_thinned_and_the_last_shape_is_drawn(tmp_path: Path) -> None:
    def line(step: int, layers: int, experts: int) -> str:
        told = {"load": [1 / experts] * experts, "drop_share": 0.1, "dropped": [0.1] * 16}
        return json.dumps(
            {"kind": "routing", "step": step, "tokens": step, "layers": [{"layer": i, **told} for i in range(layers)]}
        )

    path = tmp_path / "routing.jsonl"
    path.write_text("\n".join([line(1, 2, 4), *(line(step, MOST_LAYERS + 8, 8) for step in range(2, 900)), "{torn"]))
    found = read_routing(tmp_path)
    assert len(found) == 898 and len(found[0]["layers"]) == MOST_LAYERS + 8
    assert routing_picture(found, LIGHT, "png").startswith(b"\x89PNG")
