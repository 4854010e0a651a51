"""Folders of Hugging Face and runs of ours: bitwise there and back, the same logits on both sides, clear refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from data.config import TokenizerConfig
from data.tokenizers import make_tokenizer
from launcher.beside import bring
from launcher.config import RecipeError
from launcher.convert import INDEX, convert_command, import_folder
from launcher.generate import load_model
from models.config import ModelError
from parallel.checkpoint.errors import CheckpointError
from parallel.checkpoint.store import resolve
from tests.launcher.running import Triaxis, assert_same_curve, minute
from tests.models.helpers import random_tokens
from tests.models.test_oracle_transformers import DIALECTS
from tests.models.transformers_models import transformers_model


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, from however many files."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_folder_becomes_a_run_and_a_folder_again(dialect: str, tmp_path: Path) -> None:
    config = DIALECTS[dialect]
    theirs = transformers_model(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert convert_command([str(tmp_path / "theirs"), str(tmp_path / "run")]) == 0

    ours, recipe = load_model(tmp_path / "run")
    tokens = random_tokens(config, 2, 40)
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours.model(tokens).transpose(0, 1)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert recipe.model.max_sequence == config.max_sequence
    assert (recipe.model.dropout, recipe.model.norm_eps) == (config.dropout, config.norm_eps)

    assert convert_command([str(tmp_path / "run"), str(tmp_path / "back"), "--shard-gb=0.00005"]) == 0
    before, after = weights_in(tmp_path / "theirs"), weights_in(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        reached = slice(2, None) if "embed_positions" in name else slice(None)  # OPT's first two rows no token reaches
        assert torch.equal(tensor[reached], after[name][reached]), name
    index = json.loads((tmp_path / "back" / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 1, "several files"
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    with torch.no_grad():
        assert torch.equal(
            again.eval()(tokens).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")(tokens).logits
        )


def test_narrow_numbers_are_the_rounded_ones(straight: Path, tmp_path: Path) -> None:
    assert convert_command([str(straight), str(tmp_path / "wide")]) == 0
    assert convert_command([str(straight), str(tmp_path / "narrow"), "--dtype", "bf16"]) == 0
    wide, narrow = weights_in(tmp_path / "wide"), weights_in(tmp_path / "narrow")
    assert all(torch.equal(tensor.bfloat16(), narrow[name]) for name, tensor in wide.items())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", dtype="auto").dtype == torch.bfloat16


def test_a_run_goes_out_with_its_tokenizer_and_comes_back_to_train_on(triaxis: Triaxis, corpus: Path) -> None:
    """The page of the README: train, export, load with transformers, import, go on."""
    here = triaxis.directory
    text = here / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"the model number {number} reads a token and writes another\n" * 9)
    words = [
        "tokenizer=bpe",
        "tokenizer.vocab_size=300",
        "corpus=files",
        "corpus.name=words",
        f"corpus.sources=[{text}]",
    ]
    recipe = [part for part in minute(corpus, 4, *words) if not part.startswith("data.path")]
    triaxis.run("train", *recipe)
    triaxis.run("checkpoint", "convert", "runs/run", "out")
    tokenizer = AutoTokenizer.from_pretrained(here / "out")
    sentence = "the model reads a token"
    ids = tokenizer(sentence)["input_ids"]
    assert tokenizer.decode(ids) == sentence
    assert tokenizer.eos_token_id == AutoModelForCausalLM.from_pretrained(here / "out").generation_config.eos_token_id
    assert convert_command([str(here / "out"), str(here / "imported")]) == 0
    assert convert_command([str(here / "imported"), str(here / "again")]) == 0
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "config.json",
        "model.safetensors",
    ):
        assert (here / "out" / name).read_bytes() == (here / "again" / name).read_bytes(), name
    again = [part for part in recipe if not part.startswith(("model.", "run.name"))]
    preset = ["--config-dir", "imported/recipes", "model=imported", "run.init_from=imported", "run.name=again"]
    triaxis.run("train", *preset, *again)
    triaxis.run("train", *recipe, "run.init_from=runs/run", "run.name=direct")
    assert_same_curve(here / "runs" / "again", here / "runs" / "direct")


def test_bytes_come_with_a_tokenizer_too(straight: Path, tmp_path: Path) -> None:
    assert convert_command([str(straight), str(tmp_path / "out")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("dé\n")["input_ids"] == list("dé\n".encode())
    assert (tokenizer.eos_token_id, tokenizer.decode(list("dé\n".encode()))) == (256, "dé\n")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 256


def test_what_lies_beside_the_weights_comes_along(tmp_path: Path) -> None:
    """Through import, conversion and export; with names that our own corpora never have."""
    config = DIALECTS["llama-grouped"]
    transformers_model(config).save_pretrained(tmp_path / "theirs")
    words = {"</s>": 0, "<s>": 1, **{f"w{index}": index for index in range(2, config.vocab_size)}}
    model = Tokenizer(WordLevel(words, unk_token="w2"))
    model.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="</s>", bos_token="<s>", chat_template="{{ 'w5' }}"
    )
    fast.save_pretrained(tmp_path / "theirs")
    kept = {"eos_token_id": [0, 7], "bos_token_id": 1, "temperature": 0.3, "do_sample": True}
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(kept))
    for source, target, *options in (
        ("theirs", "run"),
        ("run", "half", "--first-layers=1"),
        ("half", "out"),
    ):
        assert convert_command([str(tmp_path / source), str(tmp_path / target), *options]) == 0
        shutil.rmtree(tmp_path / source)
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("w9 w3").input_ids == fast("w9 w3").input_ids == [9, 3]
    assert (again.eos_token, again.bos_token, again.chat_template) == ("</s>", "<s>", "{{ 'w5' }}")
    generation = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert {key: getattr(generation, key) for key in kept} == kept
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [0, 7]


def test_a_corpus_of_a_named_end_keeps_its_name(straight: Path, tmp_path: Path) -> None:
    words = {"</s>": 0, **{chr(97 + index): index + 1 for index in range(26)}}
    Tokenizer(WordLevel(words, unk_token="a")).save(str(tmp_path / "file.json"))
    made = make_tokenizer(TokenizerConfig("file", path=str(tmp_path / "file.json"), vocab_size=0), [])
    made.save(tmp_path / "corpus" / "tokenizer")
    recipe = load_model(straight)[1]
    (tmp_path / "out").mkdir()
    recipe = replace(recipe, data=replace(recipe.data, path=str(tmp_path / "corpus")))
    ids, _ = bring(recipe, resolve(straight), {"counters": {}}, tmp_path / "out")
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (found.eos_token, found.eos_token_id, ids["eos_token_id"]) == ("</s>", 0, 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "mamba"}, "model_type=mamba"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "tanh"}, "activation tanh"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type=yarn"),
        ({"intermediate_size": 44}, "gate_proj"),
        ({"num_hidden_layers": 3}, "missing"),
    ],
)
def test_what_cannot_be_taken_over_is_named(change: dict, told: str, tmp_path: Path) -> None:
    transformers_model(DIALECTS["llama"]).save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=told):
        import_folder(tmp_path / "theirs", tmp_path / "run", {})
    assert not (tmp_path / "run").exists(), "nothing half-made is left"


def test_targets_sources_and_options_are_checked(straight: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, told in (
        ([str(straight), str(tmp_path / "full")], "is there already"),
        ([str(straight)], "takes a source and a target"),
        ([str(straight), str(tmp_path / "out"), "--dtype=fp8"], "--dtype=fp8"),
        ([str(straight), str(tmp_path / "out"), "--shard-gb=0"], "--shard-gb=0"),
        ([str(straight), str(tmp_path / "out"), "--to=x"], "--to=x"),
    ):
        with pytest.raises(RecipeError, match=told):
            convert_command(arguments)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        convert_command([str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
