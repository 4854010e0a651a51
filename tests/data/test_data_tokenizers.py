from __future__ import annotations

import base64
import json
import random

import numpy as np
import pytest
import tokenizers as library

import data.tokenizers as tokenizers_module
import data.words as words_module
from data.config import EOD_TEXT, DataError, TokenizerConfig
from data.tokenizers import Tokenizer, load_corpus_tokenizer, make_tokenizer
from data.vocabularies import PATTERNS, ranks_of


def train_bpe(texts, vocab_size):
    return make_tokenizer(TokenizerConfig("bpe", vocab_size), texts)


@pytest.fixture(scope="module")
def bpe(documents):
    return train_bpe(documents, 300)


@pytest.fixture(scope="module")
def unigram(documents):
    return make_tokenizer(TokenizerConfig("unigram", 300), documents)


@pytest.fixture(scope="module")
def byte():
    return make_tokenizer(TokenizerConfig("byte"), [])


def random_text(draw: random.Random) -> str:
    """Any Unicode: all planes, controls, combining marks, mixed line ends, runs of spaces; no surrogates."""
    ranges = [(0, 127), (0, 31), (32, 32), (128, 0x7FF), (0x300, 0x36F), (0x800, 0xD7FF), (0xE000, 0x10FFFF)]
    return "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(0, 60)))


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
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
    assert np.array_equal(bpe.encode(text), whole)


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


NAMED = ("[MASK]", "<extra_0>")


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
def test_special_tokens_have_ids_of_their_own(kind, documents, tmp_path):
    size = {"byte": 0, "bpe": 300, "unigram": 300}[kind]
    plain = make_tokenizer(TokenizerConfig(kind, size), documents)
    tokenizer = make_tokenizer(TokenizerConfig(kind, size, special_tokens=NAMED), documents)
    assert tokenizer.vocab_size == plain.vocab_size + 2 and tokenizer.eod == plain.eod
    assert [tokenizer.special(name) for name in NAMED] == [plain.vocab_size, plain.vocab_size + 1]
    assert tokenizer.fingerprint != plain.fingerprint
    text = "a [MASK] is <extra_0> text"
    ids = tokenizer.encode_documents([text])[0]
    assert np.array_equal(ids, plain.encode_documents([text])[0])
    assert tokenizer.decode([*ids[:-1], tokenizer.special("[MASK]"), *ids[:-1]]) == f"{text}[MASK]{text}"
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).special("<extra_0>") == plain.vocab_size + 1
    with pytest.raises(DataError, match=r"there is no '<fim>' \(there is: \[MASK\], <extra_0>\).*special_tokens="):
        tokenizer.special("<fim>")
    if kind == "unigram":
        return
    exported = library.Tokenizer.from_str(tokenizer.huggingface_json())
    assert [exported.token_to_id(name) for name in NAMED] == [tokenizer.special(name) for name in NAMED]


def test_special_tokens_of_a_file_are_found(tmp_path):
    path = word_tokenizer(tmp_path / "t.json", ["<s>", "</s>"])
    tokenizer = make_tokenizer(TokenizerConfig("file", path=path, special_tokens=("<s>", "<new>")), [])
    assert (tokenizer.special("<s>"), tokenizer.special("<new>"), tokenizer.special("</s>")) == (3, 5, 4)
    assert tokenizer.vocab_size == 6


@pytest.mark.parametrize(
    ("kind", "normalizer"),
    [("bpe", "none"), ("bpe", "nfc"), ("bpe", "nfkc"), ("unigram", "none"), ("unigram", "nfkc")],
)
def test_normalizers(kind, normalizer, documents):
    import unicodedata

    tokenizer = make_tokenizer(TokenizerConfig(kind, 300, normalizer=normalizer), documents)
    text = "cafe\u0301 \ufb01 x\u00b2"
    expected = text if normalizer == "none" else unicodedata.normalize(normalizer.upper(), text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert (tokenizer.fast != "") == (normalizer == "none" and kind == "bpe")


def hard_text(draw: random.Random) -> str:
    """What patterns split in odd ways: quotes, runs of mixed white space and line ends, digits, punctuation, Unicode."""
    parts = [
        *(
            "'s",
            "'S",
            "'ll",
            "don't",
            "''",
            "'",
            " '",
            "\n'",
            "1'd",
            "it's",
            " x",
            "word",
            " Word",
            "12345",
            " 99",
            "\u0663",
        ),
        *(
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "\n\n",
            "   \n",
            "\n    ",
            "\x0b",
            "\u00a0",
            "\u3000",
            "\x85",
            "\x1c",
            "\u2028",
        ),
        *(
            ",",
            ".\n",
            "...\r\n",
            "(",
            "(x",
            "):\n",
            "\u00e9",
            "caf\u00e9",
            " \u65e5\u672c",
            "\U0001f600",
            "\u0301",
            "\x00",
        ),
        "averyveryverylongword" * 4,
    ]
    return "".join(draw.choice(parts) for _ in range(draw.randint(0, 25)))


@pytest.mark.parametrize("way", ["tiktoken", "words"])
@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "qwen2"])
def test_documents_by_words_have_the_same_ids(documents, pattern, way):
    """Every way to encode gives what tokenizers gives, whatever was seen before."""
    draw = random.Random(pattern)
    texts = [hard_text(draw) for _ in range(1500)] + [random_text(draw) for _ in range(300)] + ["", "\n", " "]
    made = make_tokenizer(TokenizerConfig("bpe", 700, pattern=pattern), documents + texts)
    assert made.fast == "tiktoken"
    tokenizer = Tokenizer("bpe", made._content, fast=way)
    expected = [[*ids.tolist(), tokenizer.eod] for ids in tokenizer.encode_batch(texts)]
    for _ in range(2):
        found = tokenizer.encode_documents(texts)
        assert [ids.tolist() for ids in found] == expected
        assert {ids.dtype for ids in found} == {np.dtype(np.uint16)}
    assert [tokenizer.encode_documents([text])[0].tolist() for text in texts[:200]] == expected[:200]


def test_words_beyond_what_is_remembered_have_the_same_ids(documents, monkeypatch):
    monkeypatch.setattr(words_module, "MOST_WORDS", 50)
    monkeypatch.setattr(words_module, "LONGEST", 12)
    monkeypatch.setattr(words_module, "BATCH_BYTES", 100)
    draw = random.Random(3)
    texts = [hard_text(draw) for _ in range(500)]
    tokenizer = train_bpe(documents + texts, 600)
    expected = [[*ids.tolist(), tokenizer.eod] for ids in tokenizer.encode_batch(texts)]
    assert [ids.tolist() for ids in tokenizer.encode_documents(texts)] == expected
    assert [ids.tolist() for ids in tokenizer.encode_documents(texts[::-1])] == expected[::-1]
    assert len(tokenizer._words._known) == 50


def test_a_vocabulary_that_tiktoken_cannot_run_is_not_given_to_it(documents):
    """A BPE whose ids do not follow its merges: by words all the same, and equal."""
    made = make_tokenizer(TokenizerConfig("bpe", 400), documents)
    body = json.loads(made.huggingface_json())
    names = sorted(body["model"]["vocab"], key=body["model"]["vocab"].get)
    body["model"]["vocab"] = {name: id_ for id_, name in enumerate([*names[:300], *names[:299:-1]])}
    made = Tokenizer("bpe", json.dumps(body))
    made.find_fast_way(documents)
    assert made.fast == "words"
    for text in documents[:20]:
        assert np.array_equal(made.encode_documents([text])[0][:-1], made.encode(text))


def test_a_way_that_gives_other_ids_is_not_taken(documents, monkeypatch):
    """What the checks of a vocabulary let through is still compared on text."""
    made = make_tokenizer(TokenizerConfig("bpe", 400), documents)
    ranks = ranks_of(made._content)
    frequent = next(token for token in ranks if token == b" of")
    monkeypatch.setattr(tokenizers_module, "ranks_of", lambda *_: {k: v for k, v in ranks.items() if k != frequent})
    made.find_fast_way(documents)
    assert made.fast == "words"
    monkeypatch.setattr(made, "encode_documents", lambda texts: [np.zeros(3, np.int64) for _ in texts])
    made.find_fast_way(documents)
    assert made.fast == ""


def test_unigram_training_repeats_itself(documents):
    one, other = (make_tokenizer(TokenizerConfig("unigram", 300), documents) for _ in range(2))
    assert one.fingerprint == other.fingerprint and (one.eod, one.vocab_size, one.eod_text) == (0, 300, EOD_TEXT)
    assert len(one.encode(documents[0])) < 0.7 * len(documents[0].encode())
    with pytest.raises(DataError, match="tokenizer.vocab_size = 5000: SentencePiece cannot.*too high"):
        make_tokenizer(TokenizerConfig("unigram", 5000), documents)


def write_tiktoken(path, tokenizer: Tokenizer) -> str:
    ranks = ranks_of(tokenizer._content)
    order = sorted(ranks, key=ranks.get)  # tiktoken's files begin at 0, ours have eod there
    path.write_bytes(b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(order)))
    return str(path)


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
def test_tiktoken_files(tmp_path, documents, pattern):
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    texts = [*documents, "It's 12345 of\n\n  them: caf\u00e9's"]
    path = write_tiktoken(tmp_path / "v.tiktoken", make_tokenizer(TokenizerConfig("bpe", 400, pattern=pattern), texts))
    tokenizer = make_tokenizer(TokenizerConfig("file", path=path, pattern=pattern), texts)
    theirs = tiktoken.Encoding(
        "t", pat_str=PATTERNS[pattern][1], mergeable_ranks=load_tiktoken_bpe(path), special_tokens={"<eod>": 399}
    )
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.fast) == (400, 399, "tiktoken")
    for text in texts:
        assert tokenizer.encode(text).tolist() == theirs.encode_ordinary(text)
        assert tokenizer.encode_documents([text])[0].tolist() == [*theirs.encode_ordinary(text), 399]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(DataError, match="tokenizer.pattern is empty: .*v.tiktoken does not say"):
        make_tokenizer(TokenizerConfig("file", path=path), texts)
    (tmp_path / "v.tiktoken").write_bytes(b"no tiktoken")
    with pytest.raises(DataError, match="v.tiktoken, line 1: not a tiktoken file"):
        make_tokenizer(TokenizerConfig("file", path=path, pattern=pattern), texts)


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory, documents):
    import sentencepiece

    path = tmp_path_factory.mktemp("sp") / "t.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents), model_writer=path.open("wb"), vocab_size=300, minloglevel=2,
        byte_fallback=True, hard_vocab_limit=False, control_symbols=["[MASK]"],
    )  # fmt: skip
    return path


def test_sentencepiece_files(sentencepiece_file, documents, tmp_path):
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    config = TokenizerConfig("file", path=str(sentencepiece_file), special_tokens=("[MASK]", "<new>"))
    tokenizer = make_tokenizer(config, documents)
    size = theirs.get_piece_size()
    assert (tokenizer.eod, tokenizer.vocab_size) == (theirs.eos_id(), size + 1)
    assert (tokenizer.special("[MASK]"), tokenizer.special("<new>")) == (theirs.piece_to_id("[MASK]"), size)
    for text in [*documents[:10], "</s> caf\u00e9"]:
        ids = tokenizer.encode_documents([text])[0].tolist()
        assert ids == [*theirs.encode(text), tokenizer.eod] and tokenizer.eod not in ids[:-1]
        assert tokenizer.decode(ids[:-1]) == theirs.decode(ids[:-1])
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode("the model").tolist() == theirs.encode("the model")
    assert loaded.huggingface_files() == ({"tokenizer.model": sentencepiece_file.read_bytes()}, "LlamaTokenizer")
    (tmp_path / "no.model").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"no.model: not a SentencePiece .model"):
        make_tokenizer(TokenizerConfig("file", path=str(tmp_path / "no.model")), documents)


def test_an_id_that_the_vocabulary_does_not_have_is_refused(bpe, monkeypatch):
    plain = Tokenizer("bpe", bpe._content)
    monkeypatch.setattr(plain, "encode", lambda text: np.array([3, 70_000]))
    with pytest.raises(DataError, match="token 70000 is not of this tokenizer, which has 300 ids"):
        plain.encode_documents(["a", "b"])


def test_a_pattern_where_a_file_has_its_own_is_refused(bpe, tmp_path):
    bpe.save(tmp_path)
    with pytest.raises(DataError, match="tokenizer.pattern = 'gpt2' has no effect on .*tokenizer.json"):
        make_tokenizer(TokenizerConfig("file", path=str(tmp_path / "tokenizer.json"), pattern="gpt2"), [])
