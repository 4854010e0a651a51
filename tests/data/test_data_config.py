from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
import yaml

import data.config
import data.stream_config
from data.config import CorpusConfig, DataError, TokenizerConfig
from data.stream_config import DataConfig

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (TokenizerConfig, {"kind": "wordpiece"}, "tokenizer.kind = 'wordpiece'"),
        (TokenizerConfig, {"kind": "bpe", "vocab_size": 256}, "tokenizer.vocab_size = 256"),
        (TokenizerConfig, {"kind": "byte", "vocab_size": 300}, "tokenizer.vocab_size = 300"),
        (TokenizerConfig, {"kind": "file"}, "tokenizer.path is empty"),
        (TokenizerConfig, {"kind": "file", "path": "x", "vocab_size": -1}, "tokenizer.vocab_size = -1"),
        (TokenizerConfig, {"kind": "bpe", "vocab_size": 300, "path": "x"}, "tokenizer.path = 'x' has no effect"),
        (TokenizerConfig, {"kind": "unigram", "vocab_size": 256}, "tokenizer.vocab_size = 256: unigram"),
        (TokenizerConfig, {"kind": "byte", "pattern": "gpt2"}, "tokenizer.pattern = 'gpt2' has no effect"),
        (TokenizerConfig, {"kind": "bpe", "vocab_size": 300, "pattern": "x"}, "tokenizer.pattern = 'x'"),
        (TokenizerConfig, {"kind": "unigram", "vocab_size": 300, "pattern": "gpt2"}, "has no effect on unigram"),
        (TokenizerConfig, {"kind": "unigram", "vocab_size": 300, "normalizer": "nfc"}, "normalizer = 'nfc': Sentence"),
        (TokenizerConfig, {"kind": "byte", "normalizer": "nfc"}, "tokenizer.normalizer = 'nfc' has no effect"),
        (TokenizerConfig, {"kind": "bpe", "vocab_size": 300, "normalizer": "x"}, "tokenizer.normalizer = 'x'"),
        (TokenizerConfig, {"kind": "byte", "special_tokens": ("a", "a")}, "tokenizer.special_tokens"),
        (TokenizerConfig, {"kind": "byte", "special_tokens": ("<|endoftext|>",)}, "tokenizer.special_tokens"),
        (CorpusConfig, {"name": ""}, "corpus.name"),
        (CorpusConfig, {"directory": ""}, "corpus.directory"),
        (CorpusConfig, {"sources": ()}, "corpus.sources is empty"),
        (CorpusConfig, {"sources": "stdlib"}, "corpus.sources = 'stdlib'"),
        (CorpusConfig, {"text_field": ""}, "corpus.text_field"),
        (CorpusConfig, {"validation_fraction": 0.0}, "corpus.validation_fraction = 0.0"),
        (CorpusConfig, {"validation_fraction": 0.51}, "corpus.validation_fraction = 0.51"),
        (CorpusConfig, {"max_document_bytes": 10}, "corpus.max_document_bytes = 10"),
        (CorpusConfig, {"block_tokens": 0}, "corpus.block_tokens = 0"),
        (CorpusConfig, {"shard_tokens": 100, "block_tokens": 200}, "corpus.block_tokens = 200"),
        (CorpusConfig, {"workers": -1}, "corpus.workers = -1"),
        (CorpusConfig, {"part_bytes": -1}, "corpus.part_bytes = -1"),
        (CorpusConfig, {"max_bad_records": -0.1}, "corpus.max_bad_records = -0.1"),
        (DataConfig, {"path": ""}, "data.path"),
        (DataConfig, {"prefetch": -1}, "data.prefetch = -1"),
        (DataConfig, {"span_tokens": -1}, "data.span_tokens = -1"),
    ],
)
def test_impossible_values_are_refused_by_name(kind, options, named):
    fine = {
        TokenizerConfig: {"kind": "byte"},
        CorpusConfig: {"name": "x", "sources": ("stdlib",), "directory": "corpora/x"},
        DataConfig: {"path": "corpora/x"},
    }
    kind(**fine[kind])
    with pytest.raises(DataError) as caught:
        kind(**{**fine[kind], **options})
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (data.config, "TokenizerConfig"),
        (data.config, "CorpusConfig"),
        *((data.stream_config, name) for name in ("SourceConfig", "BucketsConfig", "CacheConfig", "DataConfig")),
    ],
)
def test_every_field_is_documented(module, name):
    tree = ast.parse(Path(module.__file__).read_text())
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
    fields = [i for i, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    assert len(fields) == len(dataclasses.fields(getattr(module, name)))
    for i in fields:
        following = body[i + 1]
        assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), ast.unparse(body[i])


@pytest.mark.parametrize("file", sorted(RECIPES.glob("corpus/*.yaml")) + sorted(RECIPES.glob("tokenizer/*.yaml")))
def test_recipes_are_valid_configurations(file):
    text = file.read_text()
    values = yaml.safe_load(text)
    for name in values.pop("defaults", []):
        values = {**yaml.safe_load((file.parent / f"{name}.yaml").read_text()), **values}
    assert text.startswith("# ")
    for name in values.pop("defaults", []):  # what a recipe builds on
        values = yaml.safe_load((file.parent / f"{name}.yaml").read_text()) | values
    filled = {"sources": ["stdlib"], "path": "tokenizer.json"}  # what a person must give
    values = {key: value or filled.get(key, value) for key, value in values.items()}
    if "sources" in values:
        values["sources"] = tuple(values["sources"])
    if "special_tokens" in values:
        values["special_tokens"] = tuple(values["special_tokens"])
    (CorpusConfig if file.parent.name == "corpus" else TokenizerConfig)(**values)
