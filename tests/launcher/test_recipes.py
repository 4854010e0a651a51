"""Recipes: everything composes, every mistake is one message with the option, the value, the limit and the cure."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.check import check_budget, check_layout, check_recipe, check_same_run, phases_of, with_vocabulary
from launcher.compose import at_home, build_recipe, compose_tree, groups, load_recipe, phase_recipe, save_recipe
from launcher.config import Recipe, RecipeError, ScheduleConfig
from launcher.help import completions, train_help
from launcher.optim.schedule import Schedule
from launcher.schema import fields_of, to_plain

ROOT = Path(__file__).resolve().parents[2]


def recipe_of(*overrides: str) -> Recipe:
    return with_vocabulary(build_recipe(compose_tree(overrides)), 1024)


@pytest.mark.parametrize("name", groups()["experiment"])
def test_every_experiment_composes_and_is_checked(name: str) -> None:
    recipe = build_recipe(compose_tree([f"experiment={name}"]))
    recipe = with_vocabulary(recipe, recipe.model.vocab_size or recipe.tokenizer.vocab_size)
    parallel = recipe.parallel
    world = parallel.model_parallel * (parallel.data or 1)
    check_recipe(recipe, world, "cuda" if recipe.precision.name == "fp16" else "cpu")
    assert recipe.run.name == name


OTHERS = [(group, name) for group in groups() if group not in ("model", "experiment") for name in groups()[group]]


@pytest.mark.parametrize(("group", "name"), OTHERS)
def test_every_option_of_the_other_groups_composes(group: str, name: str) -> None:
    needed = {"corpus": ["corpus.sources=[text]"], "tokenizer": ["tokenizer.path=tokenizer.json"]}
    more = needed.get(group, []) if name in ("files", "file", "web", "c4") else []
    more += ["data.sources=[{path: corpora/x}]"] if name == "mixture" else []
    recipe = build_recipe(compose_tree([f"{group}={name}", *more]))
    if group in ("optimizer", "schedule"):
        assert getattr(recipe, group).name == name
    if group == "precision":
        assert recipe.precision.products.quantised == (recipe.precision.name != name), (
            "block formats leave the rest to auto"
        )


def test_a_directory_of_own_recipes_is_searched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("layers: 7\n")
    assert build_recipe(compose_tree(["model=mine"], str(tmp_path))).model.layers == 7
    with pytest.raises(RecipeError, match="model=mien: no such recipe; did you mean mine"):
        compose_tree(["model=mien"], str(tmp_path))
    (tmp_path / "model" / "wrong.yaml").write_text("layerz: 7\n")
    with pytest.raises(RecipeError, match="model.layerz: no such option; did you mean model.layers"):
        build_recipe(compose_tree(["model=wrong"], str(tmp_path)))


@pytest.mark.parametrize("name", groups()["model"])
def test_every_model_composes_with_an_experiment(name: str) -> None:
    pairs = ["objective=prefix_lm", "train.sequence_length=1024"] if name.startswith("t5") else []
    recipe = recipe_of("experiment=tiny", f"model={name}", "data.path=x", "train.micro_batch=1", *pairs)
    assert recipe.model.name == name
    assert recipe.run.name == "tiny"
    check_layout(recipe, 1)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.hiden_size=3"], ["model.hiden_size", "model.hidden_size"]),
        (["experiment=tny"], ["experiment=tny", "tiny"]),
        (["optimzer=adamw"], ["optimzer"]),
        (["optimizer.lr=1e-3"], ["optimizer.lr"]),
        (["train.tokens=abc"], ["train.tokens='abc'", "whole number"]),
        (["train.tokens=1.5"], ["train.tokens=1.5", "whole number"]),
        (["model.bias=7"], ["model.bias=7", "true or false"]),
        (["model.layers"], ["model.layers", "option=value"]),
        (["model.heads=3"], ["model.heads=3", "model.hidden_size=256"]),
        (["model.kv_heads=3"], ["model.kv_heads=3", "model.heads=4"]),
        (["model.norm=batchnorm"], ["model.norm=batchnorm", "rmsnorm"]),
        (["parallel.schedule=zbv"], ["parallel.schedule=zbv", "parallel.pipeline=1"]),
        (["parallel.zero_stage=4"], ["parallel.zero_stage=4", "0, 1, 2 or 3"]),
        (["parallel.sequence_parallel=true"], ["parallel.sequence_parallel=true", "parallel.tensor=1"]),
        (["parallel.offload_optimizer=true", "parallel.zero_stage=0"], ["offload_optimizer", "zero_stage"]),
        (["train.batch_tokens=1000"], ["train.batch_tokens=1000", "train.sequence_length=256", "nearest is 1024"]),
        (["run.name=a/b"], ["run.name", "plain name"]),
        (["run.init_what=everything"], ["run.init_what=everything", "run.init_from"]),
        (["schedule.decay_tokens=5"], ["schedule.decay_tokens=5", "wsd"]),
        (["schedule=constant", "schedule.final_ratio=0.5"], ["schedule.final_ratio=0.5", "constant"]),
        (["optimizer=sgd", "optimizer.beta2=0.5"], ["optimizer.beta2=0.5", "sgd"]),
        (["precision=bf16", "precision.loss_scale_window=7"], ["precision.loss_scale_window=7", "fp16"]),
        (["checkpoint.keep_last=0"], ["checkpoint.keep_last=0", "at least 1"]),
        (["tracker.wandb=maybe"], ["tracker.wandb=maybe", "offline"]),
        (["cluster.device=tpu"], ["cluster.device=tpu", "cuda"]),
        (["phases=[{name: a}]"], ["phases[0].tokens", "required"]),
        (["phases=[{tokens: 5, model: {layers: 2}}]"], ["phases[0].model", "train"]),
        (["phases=[{tokens: 5, train: {sequence_lenght: 2}}]"], ["phases[0].train.sequence_lenght", "sequence_length"]),
        (["phases=3"], ["phases=3", "must be a list"]),
        (["phases=[{tokens: 0}]"], ["phases[0].tokens=0", "at least 1"]),
        (["phases=[{tokens: 5, overrides: 3}]"], ["phases[0].overrides=3", "sections"]),
        (["phases=[{tokens: 5, train: 3}]"], ["phases[0].train=3", "section"]),
        (["phases=[{tokens: 5, train: {tokens: 3}}]"], ["phases[0].train.tokens=3", "no effect", "phases[0].tokens"]),
        (["phases=[{tokens: 5}, {tokens: 5, train: {max_steps: 3}}]"], ["phases[1].train.max_steps=3", "no effect"]),
        (["experiment=null"], ["experiment=null", "tiny"]),
        (["train.tokens=1e400"], ["train.tokens=inf", "whole number"]),
        (["optimizer.learning_rate=inf"], ["optimizer.learning_rate=inf", "a number"]),
        (["train.sample_prompts=abc"], ["train.sample_prompts='abc'", "a list"]),
        (["model.rope_scaling.factr=3"], ["model.rope_scaling.factr", "model.rope_scaling.factor"]),
        (["model.layers=${nope}"], ["nope", "model.layers"]),
        (["run.name=.."], ["run.name='..'", "plain name"]),
        (["corpus=files"], ["corpus.sources is empty"]),
        (["tokenizer=file"], ["tokenizer.path is empty"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_told_in_one_message(overrides: list[str], told: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        build_recipe(compose_tree(overrides))
    message = str(caught.value)
    assert all(part in message for part in told), message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("overrides", "world", "told"),
    [
        (["parallel.tensor=2"], 3, ["parallel.tensor=2", "3"]),
        (["parallel.tensor=2", "parallel.data=4"], 4, ["parallel.data=4", "8 processes", "4"]),
        (["parallel.tensor=8"], 8, ["model.heads=4", "parallel.tensor=8"]),
        (["parallel.tensor=4", "model.kv_heads=2"], 4, ["model.kv_heads=2", "parallel.tensor=4"]),
        (["parallel.tensor=4", "model.vocab_size=1030"], 4, ["vocab_size", "1030", "model.vocab_multiple"]),
        (["parallel.tensor=2", "model.ffn_size=703"], 2, ["model.ffn_size=703", "parallel.tensor=2"]),
        (["parallel.pipeline=5"], 5, ["parallel.pipeline=5", "model.layers=4"]),
        (["train.micro_batch=3"], 1, ["train.batch_tokens=8192", "micro-batches of 3"]),
        (["parallel.data=3"], 3, ["train.batch_tokens=8192", "3 data ranks"]),
        (["parallel.context=3"], 3, ["train.sequence_length=256", "parallel.context=3", "6 pieces"]),
        (["model.causal=false"], 1, ["model.causal=false", "objective.name=causal"]),
        (["train.sequence_length=2048", "train.batch_tokens=16384"], 1, ["train.sequence_length=2048", "1024"]),
        (
            [
                "parallel.tensor=2",
                "parallel.sequence_parallel=true",
                "train.sequence_length=255",
                "train.batch_tokens=8160",
            ],
            2,
            ["train.sequence_length=255", "parallel.sequence_parallel"],
        ),
        (["parallel.zero_stage=2", "parallel.pipeline=2"], 2, ["parallel.zero_stage=2", "limit is 1"]),
        (
            ["parallel.pipeline=2", "parallel.schedule=zbv", "train.micro_batch=16"],
            2,
            ["parallel.schedule=zbv", "train.micro_batch"],
        ),
        (["parallel.engine=torch", "parallel.zero_stage=2"], 1, ["parallel.zero_stage=2", "parallel.engine=torch"]),
        (["precision=fp16", "parallel.engine=deepspeed"], 1, ["precision.name=fp16", "CPU"]),
        (["precision=bf16", "parallel.data=2", "parallel.zero_stage=0"], 2, ["parallel.zero_stage=0", "bf16"]),
        (["schedule.warmup_tokens=2000000"], 1, ["schedule.warmup_tokens=2000000", "1000000"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_layouts_that_do_not_fit_are_refused(overrides: list[str], world: int, told: list[str]) -> None:
    recipe = recipe_of(*overrides)
    with pytest.raises(ValueError) as caught:
        check_recipe(recipe, world, "cpu")
    assert all(part in str(caught.value) for part in told), str(caught.value)


def test_a_batch_message_names_a_batch_that_fits() -> None:
    recipe = recipe_of("train.micro_batch=3")
    with pytest.raises(RecipeError, match="the nearest is 7680"):
        check_layout(recipe, 1)
    check_layout(replace(recipe, train=replace(recipe.train, batch_tokens=7680)), 1)


def test_phases_override_their_sections_and_nothing_else() -> None:
    recipe = recipe_of(
        "phases=[{name: short, tokens: 1e6, train: {sequence_length: 128}}, {tokens: 2_000_000, precision: {name: bf16}}]"
    )
    first, second = phases_of(recipe)
    assert (first.train.sequence_length, second.train.sequence_length) == (128, 256)
    assert (first.precision.name, second.precision.name) == ("auto", "bf16")
    assert [phase.tokens for phase in recipe.phases] == [1_000_000, 2_000_000]
    assert recipe.phases[1].name == "phase2"
    assert phase_recipe(recipe, 0).model == recipe.model


def test_a_frozen_recipe_comes_back_the_same(tmp_path: Path) -> None:
    recipe = recipe_of("experiment=tiny_3d", "phases=[{tokens: 5e5, schedule: {span: phase, warmup_tokens: 100}}]")
    save_recipe(recipe, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == recipe


def test_a_resumed_recipe_may_change_its_layout_but_not_its_model() -> None:
    recipe = recipe_of("experiment=tiny")
    saved = to_plain(recipe)
    assert check_same_run(recipe, saved, "here") == []
    other = replace(recipe, parallel=replace(recipe.parallel, tensor=2))
    assert check_same_run(other, saved, "here") == ["parallel.tensor: 1 -> 2"]
    wider = replace(recipe, model=replace(recipe.model, hidden_size=512))
    with pytest.raises(RecipeError, match=r"model.hidden_size=512: here was made with 256"):
        check_same_run(wider, saved, "here")
    with pytest.raises(RecipeError, match="seed=2"):
        check_same_run(replace(recipe, seed=2), saved, "here")


def test_an_option_younger_than_the_checkpoint_was_at_its_default() -> None:
    recipe = recipe_of("experiment=tiny")
    saved = to_plain(recipe)
    del saved["model"]["attention_window"], saved["parallel"]["context"]
    assert check_same_run(recipe, saved, "here") == []
    with pytest.raises(RecipeError, match=r"model.attention_window=8: here was made with 0"):
        check_same_run(replace(recipe, model=replace(recipe.model, attention_window=8)), saved, "here")


def test_a_document_mask_takes_the_end_of_the_corpus() -> None:
    recipe = build_recipe(compose_tree(["model.document_mask=true"]))
    assert with_vocabulary(recipe, 1024, 7).model.document_end == 7
    assert recipe_of("model.document_mask=true", "model.document_end=5").model.document_end == 5
    assert recipe_of().model.document_end == -1


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"model.vocab_size=500.*1024"):
        recipe_of("model.vocab_size=500")
    assert recipe_of().model.vocab_size == 1024
    assert recipe_of("model.vocab_size=2000").model.vocab_size == 2000


def test_every_field_is_documented_and_shown_by_help() -> None:
    text = train_help()
    for path, _, documentation in fields_of():
        assert len(documentation) > 12, f"{path} has no docstring under it"
        assert f"  {path}=" in text, path
    for group in groups():
        assert f"  {group}=" in text


def test_the_launcher_refuses_without_importing_torch() -> None:
    code = "import sys, launcher.submit, launcher.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_completion_knows_commands_recipes_and_options() -> None:
    assert completions("triaxis tr") == ["train"]
    assert completions("triaxis checkpoint ver") == ["verify"]
    assert completions("triaxis train experiment=tiny_") == ["experiment=tiny_3d", "experiment=tiny_documents"]
    assert "optimizer.learning_rate=" in completions("triaxis train optimizer.l")


def schedule(name: str, total: int = 1000, **options: object) -> Schedule:
    return Schedule(ScheduleConfig(name=name, **options), 2.0, total)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
def test_schedules_warm_up_stay_continuous_and_end_where_they_say(name: str) -> None:
    found = schedule(name, warmup_tokens=100)
    assert found.at(50) == pytest.approx(1.0)
    assert found.at(100) == pytest.approx(2.0)
    assert found.at(1000) == pytest.approx(2.0 if name == "constant" else 0.2)
    assert found.at(5000) == found.at(1000), "past its end a schedule stays where it ended"
    rates = [found.at(tokens) for tokens in range(1, 1001)]
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= 0.0201
    assert all(a >= b for a, b in itertools.pairwise(rates[99:]))


def test_schedule_shapes_at_their_middles() -> None:
    assert schedule("cosine").at(500) == pytest.approx(2 * 0.55)
    assert schedule("linear").at(500) == pytest.approx(2 * 0.55)
    assert schedule("wsd").at(900) == 2.0
    assert schedule("wsd").at(950) == pytest.approx(2 * 0.55)
    assert schedule("wsd", decay_tokens=400).at(600) == 2.0
    assert schedule("wsd", decay_tokens=400).at(800) == pytest.approx(2 * 0.55)


def test_a_schedule_longer_than_its_span_is_refused() -> None:
    recipe = recipe_of(
        "schedule.warmup_tokens=600",
        "schedule.span=phase",
        "phases=[{tokens: 500}, {tokens: 5000}]",
        "train.tokens=5500",
    )
    with pytest.raises(RecipeError, match="warmup_tokens=600: longer than the 500 tokens"):
        check_budget(recipe)
    check_budget(replace(recipe, phases=recipe.phases[1:]))


def test_paths_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the README writes them; Hydra's grammar has no `~`."""
    monkeypatch.setenv("HOME", "/home/me")
    sources = "corpus.sources=[~/text, \"dump/*.zst\", '~/quoted', /a/b]"
    recipe = build_recipe(compose_tree(["corpus=files", "corpus.name=mine", sources, "data.path=~/corpora/mine"]))
    assert recipe.corpus.sources == ("/home/me/text", "dump/*.zst", "~/quoted", "/a/b")
    assert recipe.data.path == "/home/me/corpora/mine"
    assert at_home(["~model.bias", "a=b~c", "a={path: ~/x}"]) == ["~model.bias", "a=b~c", "a={path: /home/me/x}"]
