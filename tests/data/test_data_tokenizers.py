from __future__ import annotations

import json
import random

import numpy as np
import pytest
import tokenizers as library

import data.tokenizers as tokenizers_module
from data.config import EOD_TEXT, DataError, TokenizerConfig
from data.tokenizers import Tokenizer, load_corpus_tokenizer, make_tokenizer, train_bpe


@pytest.fixture(scope="module")
def bpe(documents):
    return train_bpe(documents, 300)


@pytest.fixture(scope="module")
def byte():
    return make_tokenizer(TokenizerConfig("byte"), [])


def random_text(draw: random.Random) -> str:
    """Any Unicode: all planes, controls, combining marks, mixed line ends, runs of spaces; no surrogates."""
    ranges = [(0, 127), (0, 31), (32, 32), (128, 0x7FF), (0x300, 0x36F), (0x800, 0xD7FF), (0xE000, 0x10FFFF)]
    return "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(0, 60)))


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_decoding_gives_back_any_text(kind, request):
    tokenizer = request.getfixturevalue(kind)
    draw = random.Random(7)
    texts = [random_text(draw) for _ in range(500)] + ["", "\r\n\r \x00\ufeff", "<|endoftext|>", "a<|endoftext|>\n"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.int64 and ids.ndim == 1
        assert tokenizer.decode(ids) == text
        assert tokenizer.eod not in ids


def test_eod_is_shown_as_text(bpe, byte):
    for tokenizer in (bpe, byte):
        ids = [*tokenizer.encode("é one"), tokenizer.eod, *tokenizer.encode("two"), tokenizer.eod]
        assert tokenizer.decode(ids) == "é one<|endoftext|>two<|endoftext|>"


def test_bpe_training_repeats_itself_and_compresses(documents, bpe):
    assert train_bpe(documents, 300).fingerprint == bpe.fingerprint
    assert train_bpe(documents, 301).fingerprint != bpe.fingerprint
    assert bpe.vocab_size == 300
    assert len(bpe.encode(documents[0])) < 0.7 * len(documents[0].encode())


def test_bpe_vocabulary_larger_than_the_text_allows(documents):
    with pytest.raises(DataError, match="tokenizer.vocab_size = 5000.*lower it"):
        train_bpe(documents[:3], 5000)


def test_long_texts_are_encoded_in_pieces(bpe, documents, monkeypatch):
    text = "\n".join(documents[:20])
    whole = bpe.encode(text)
    monkeypatch.setattr(tokenizers_module, "PIECE_CHARACTERS", 100)
    assert len(tokenizers_module._pieces(text)) > 5
    assert bpe.decode(bpe.encode(text)) == text
    assert abs(len(bpe.encode(text)) - len(whole)) < 0.05 * len(whole)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_save_and_load(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.kind, loaded.vocab_size, loaded.eod) == (kind, tokenizer.vocab_size, tokenizer.eod)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert np.array_equal(loaded.encode("def f(): pass"), tokenizer.encode("def f(): pass"))


def test_loading_names_what_is_wrong(bpe, tmp_path):
    with pytest.raises(DataError, match="no tokenizer there"):
        Tokenizer.load(tmp_path)
    bpe.save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"add_prefix_space":false', '"add_prefix_space":true'))
    with pytest.raises(DataError, match="was changed after it was saved"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text[:100])
    with pytest.raises(DataError, match="damaged"):
        Tokenizer.load(tmp_path)


def test_lone_surrogates_are_refused(bpe, byte):
    for tokenizer in (bpe, byte):
        with pytest.raises(DataError, match="not valid Unicode"):
            tokenizer.encode("a\ud800")


def test_ids_outside_the_vocabulary_are_refused(bpe, byte):
    for tokenizer in (bpe, byte):
        with pytest.raises(DataError, match="does not fit"):
            tokenizer.decode([tokenizer.vocab_size])
        with pytest.raises(DataError, match="does not fit"):
            tokenizer.decode([-1])


def word_tokenizer(path, special: list[str]) -> str:
    words = {"[UNK]": 0, "one": 1, "two": 2}
    model = library.Tokenizer(library.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(special)
    if "<s>" in special:  # as Llama's files do: a special token before every text, which must not be added here
        model.post_processor = library.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 3)])
    model.save(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("special", "eod", "vocab_size"), [([], 3, 4), (["</s>"], 3, 4), (["<s>", "</s>"], 4, 5), (["<|odd|>"], 4, 5)]
)
def test_tokenizer_file(tmp_path, special, eod, vocab_size):
    path = word_tokenizer(tmp_path / "t.json", special)
    tokenizer = make_tokenizer(TokenizerConfig("file", path=path), [])
    assert (tokenizer.eod, tokenizer.vocab_size) == (eod, vocab_size)
    assert tokenizer.encode("two one </s>").tolist()[:2] == [2, 1]
    assert tokenizer.eod not in tokenizer.encode("two one </s>")
    assert make_tokenizer(TokenizerConfig("file", vocab_size, path), []).vocab_size == vocab_size
    with pytest.raises(DataError, match="tokenizer.vocab_size = 77"):
        make_tokenizer(TokenizerConfig("file", 77, path), [])


def test_a_bpe_file_is_as_good_as_the_tokenizer_it_came_from(bpe, tmp_path):
    bpe.save(tmp_path)
    again = make_tokenizer(TokenizerConfig("file", path=str(tmp_path / "tokenizer.json")), [])
    assert (again.eod, again.vocab_size) == (bpe.eod, bpe.vocab_size)
    assert np.array_equal(again.encode("the model reads"), bpe.encode("the model reads"))


def test_tokenizer_file_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer.path = .*absent.json: cannot read it"):
        make_tokenizer(TokenizerConfig("file", path=str(tmp_path / "absent.json")), [])
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(DataError, match="not a tokenizer.json"):
        make_tokenizer(TokenizerConfig("file", path=str(tmp_path / "other.json")), [])


def test_corpus_tokenizer_must_be_the_one_of_the_shards(corpus_copy, bpe):
    assert load_corpus_tokenizer(corpus_copy).kind == "byte"
    bpe.save(corpus_copy / "tokenizer")
    with pytest.raises(DataError, match="not the tokenizer that the shards were made with"):
        load_corpus_tokenizer(corpus_copy)


def test_large_vocabularies_are_stored_in_four_bytes(byte):
    assert byte.dtype == np.uint16
    byte_like = Tokenizer("byte")
    byte_like.vocab_size = 65537
    assert byte_like.dtype == np.uint32


def test_bytes_as_a_tokenizer_file(byte):
    """Every byte, as tokenizers and transformers read the file that an export writes."""
    found = library.Tokenizer.from_str(byte.huggingface_json())
    assert found.get_vocab_size() == byte.vocab_size and found.token_to_id(EOD_TEXT) == byte.eod
    text = "".join(map(chr, range(0x250))) + " \u20ac \U0001f600\n\n  tabs\t"
    assert found.encode(text).ids == byte.encode(text).tolist()
    assert found.decode(byte.encode(text).tolist()) == text
    assert sorted(found.get_vocab().values()) == list(range(257))
