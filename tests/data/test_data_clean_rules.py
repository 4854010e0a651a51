"""Rules for documents, lines, languages and addresses, each on a document that it is about and on one that it is not."""

from __future__ import annotations

import json

import pytest

from data.clean.addresses import AddressList, host_and_path
from data.clean.gopher import GopherConfig
from data.clean.language import excerpt
from data.clean.lines import sentence_count
from data.clean.pipeline import Pipeline
from data.config import DataError
from data.document import Document

ENGLISH = "The history of the town begins with a small market that the farmers of the valley have held since then. "
WORDS = [
    f"{first}{second}en" for first in "abcdefghijklmnop" for second in ("l", "br", "st", "nd", "rk", "mp", "ft", "gl")
]


def sound() -> str:
    """A text that every rule of Gopher and C4 lets through: no two words twice beside each other, words of common lengths."""
    rows = [WORDS[start : start + 5] for start in range(0, 100, 5)]
    return "\n".join(f"The {a} {b} of {c} {d} have {e}." for a, b, c, d, e in rows)


def clean(steps: list[dict], *documents: Document):
    return Pipeline(steps).clean(documents)


def reasons(steps: list[dict], text: str) -> dict[str, int]:
    return clean(steps, Document(text, "s", "p"))[1][-1].reasons


GOPHER = [{"step": "signals"}, {"step": "gopher"}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (sound(), None),
        (ENGLISH, "token_count < 50"),
        (sound().replace(" ", " a "), "mean_token_length < 3.0"),
        (sound().replace("en", "enenenenenenen"), "mean_token_length > 10.0"),
        (sound().replace(" of", " # of"), "hash_ratio > 0.1"),
        (sound().replace(" of", " ... of"), "ellipsis_ratio > 0.1"),
        (sound().replace("The", "- The"), "bullet_line_share > 0.9"),
        (sound().replace(".", "…", 10), "ellipsis_line_share > 0.3"),
        (sound().replace("en ", "en 12345 "), "alphabetic_token_share < 0.8"),
        (
            sound().replace("The", "Der").replace("of", "von").replace("and", "und").replace("have", "habe"),
            "stop_word_count < 2",
        ),
        (sound() + "\n" + "\n".join(["The same."] * 20), "duplicate_line_share > 0.3"),
        (sound() + "\n" + "\n".join(sound().split("\n")[:8]), "duplicate_line_characters > 0.2"),
        (sound() + "\n\nthe same\n\nthe same", "duplicate_paragraph_share > 0.3"),
        (sound().replace("\n", " axxen bxxen cxxen ", 12), "top_3gram > 0.18"),
        (sound() + " " + " ".join(sound().split()[:40]), "duplicate_5grams > 0.15"),
    ],
)
def test_gopher_drops_by_its_published_limits(text, reason):
    assert reasons(GOPHER, text) == ({reason: 1} if reason else {})


def test_gopher_with_limits_of_ones_own():
    assert not reasons([{"step": "signals"}, {"step": "gopher", "min_words": 5}], ENGLISH)
    many = [{"step": "signals"}, {"step": "gopher", "min_words": 5, "max_words": 10}]
    assert reasons(many, ENGLISH) == {"token_count > 10": 1}
    with pytest.raises(DataError, match=r"\[1\].max_top_ngrams = \[0.2\]: it must hold 3 shares, for 2, 3, 4 words"):
        Pipeline([{"step": "signals"}, {"step": "gopher", "max_top_ngrams": [0.2]}])
    with pytest.raises(DataError, match=r"\[1\].min_words = -1: it must not be negative"):
        Pipeline([{"step": "signals"}, {"step": "gopher", "min_words": -1}])


def test_gopher_needs_the_signals_that_it_reads():
    with pytest.raises(
        DataError, match=r"clean\[0\].step = 'gopher': it reads column 'token_count'.*put {step: signals}"
    ):
        Pipeline([{"step": "gopher"}, {"step": "signals"}])
    with pytest.raises(DataError, match=r"it reads column 'mean_token_length'"):
        Pipeline([{"step": "signals", "only": ["token_count"]}, {"step": "gopher"}])
    assert len(GopherConfig().reads) == len(set(GopherConfig().reads)) == 21


PAGE = (
    "One line of five words. Another one.\nMenu | Home\n"
    'She said "this is the end of it"\nShort one.\n\nIt ends here, as it should![1]'
)


def test_c4_drops_lines_and_marks():
    (left,), (tally,) = clean([{"step": "c4"}], Document(PAGE, "s", "p"))
    assert (
        left.text
        == 'One line of five words. Another one.\nShe said "this is the end of it"\n\nIt ends here, as it should!'
    )
    assert tally.lines == {"few words": 1, "no terminal punctuation": 1} and tally.changed == 1
    assert {sample.text for sample in tally.samples} == {"Menu | Home", "Short one."}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PAGE + "\nint main() { return 0; }", "curly bracket"),
        (PAGE + "\nLorem Ipsum dolor sit amet.", "lorem ipsum"),
        ("Just these two sentences here. And that is all of it.", "few sentences"),
        ("Menu\nHome\nAbout us", "no line left"),
        (PAGE, None),
    ],
)
def test_c4_drops_pages(text, reason):
    assert reasons([{"step": "c4"}], text) == ({reason: 1} if reason else {})


def test_c4_drops_pages_with_banned_words(tmp_path):
    file = tmp_path / "words"
    file.write_text("Rude\nvery bad\n# nothing\n")
    step = {"step": "c4", "terminal": False, "min_words": 0, "min_sentences": 0, "banned_words": str(file)}
    texts = ["so RUDE!", "it is very, bad", "it is bad, very", "rudely nothing"]
    left, (tally,) = clean([step], *(Document(text, "s", "p", row) for row, text in enumerate(texts)))
    assert [document.row for document in left] == [2, 3] and tally.reasons == {"banned word": 2}
    assert {sample.detail for sample in tally.samples} == {"rude", "very bad"}
    with pytest.raises(DataError, match="step c4, banned_words = 'nowhere': cannot be read"):
        clean([{**step, "banned_words": "nowhere"}])


def test_c4_with_rules_switched_off():
    off = {"terminal": False, "min_words": 0, "max_word_characters": 0, "boilerplate": False, "citations": False}
    pages = {"curly_brackets": False, "lorem_ipsum": False, "min_sentences": 0}
    document = Document("{ lorem ipsum [1]", "s", "p")
    assert clean([{"step": "c4", **off, **pages}], document)[0] == [document]


@pytest.mark.parametrize(
    ("options", "reason", "left"),
    [
        ({"terminal": True}, "no terminal punctuation", "Stays.\n\nAlso this!"),
        ({"min_words": 2}, "few words", "a b ...\n\nAlso this!\nno mark"),
        ({"max_word_characters": 6}, "long word", "Stays.\na b ...\n\nAlso this!\nno mark"),
        ({"boilerplate": True}, "boilerplate", "Stays.\na b ...\n\nAlso this!\nno mark\nlongest-word"),
        ({"phrases": ["NO MARK", "(x"]}, "phrase", "Stays.\na b ...\n\nAlso this!\nlongest-word"),
        ({"repeats": 1}, "repeated", "Stays.\na b ...\n\nAlso this!\nno mark\nlongest-word"),
    ],
)
def test_line_rules(options, reason, left):
    text = "Stays.\na b ...\n\nAlso this!\nno mark\nlongest-word"
    extra = {"boilerplate": "\nEnable JavaScript.\nWe use of cookies!", "repeats": "\nno mark\n  no mark"}
    document = Document(text + extra.get(next(iter(options)), ""), "s", "p")
    (found,), (tally,) = clean([{"step": "lines", **options}], document)
    assert found.text == left and set(tally.lines) == {reason}


def test_lines_without_a_rule_are_refused():
    with pytest.raises(DataError, match=r"no rule is set, so the step has no effect"):
        Pipeline([{"step": "lines"}])


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("One. Two! Three?", 3), ("One... two", 2), ("?!", 0), ("None", 1)]
)
def test_sentences(text, count):
    assert sentence_count(text) == count


def test_languages_are_told_and_chosen():
    german = (
        "Die Geschichte der Stadt beginnt mit einem kleinen Markt, den die Bauern seither jedes Jahr gehalten haben. "
    )
    documents = [Document(text, "s", "p", row) for row, text in enumerate([ENGLISH * 3, german * 3, "12 34 !"])]
    left, _ = clean([{"step": "language"}], *documents)
    assert [document.columns["language"] for document in left] == ["en", "de", "und"]
    assert (
        all(document.columns["language_score"] > 0.9 for document in left[:2])
        and left[2].columns["language_score"] == 0
    )
    left, (tally,) = clean([{"step": "language", "keep": ["de"]}], *documents)
    assert [document.row for document in left] == [1] and tally.reasons == {"other language": 2}
    assert {sample.detail for sample in tally.samples} == {"en", "und"}
    _, (tally,) = clean([{"step": "language", "min_score": 0.5}], *documents)
    assert tally.reasons == {"language unsure": 1}
    with pytest.raises(DataError, match="'english' is none of the"):
        clean([{"step": "language", "keep": ["english"]}], *documents)


def test_long_texts_are_looked_at_in_pieces():
    text = "a" * 100 + "b" * 100 + "c" * 100
    assert excerpt(text, 0) == excerpt(text, 300) == text
    assert excerpt(text, 30) == "a" * 10 + "\n" + "b" * 10 + "\n" + "c" * 10


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://example.com/a", "example.com"),
        ("http://user@WWW.Example.com:8080/a?b=c", "example.com"),
        ("example.com", "example.com"),
        ("https://badexample.com/", ""),
        ("https://example.com.evil.org/", ""),
        ("https://news.org/sport/1", ""),
        ("https://news.org/shop/1", "news.org/shop"),
        ("https://www.news.org/shopping", "news.org/shop"),
        ("https://[broken", ""),
    ],
)
def test_an_entry_covers_its_subdomains_and_nothing_else(url, entry):
    assert AddressList(["Example.com", "https://news.org/shop", "a.b.example.org"]).match(url) == entry


def test_addresses_are_blocked_and_allowed_from_lists_and_files(tmp_path):
    file = tmp_path / "domains"
    file.write_text("# a comment\nspam.net\n\nads.org # another\n")
    urls = ["https://x.spam.net/1", "https://good.edu/1", "https://good.edu/private/1", "https://ads.org", None]
    documents = [Document("x", "s", "p", row, {"url": url} if url else {}) for row, url in enumerate(urls)]
    left, (tally,) = clean([{"step": "urls", "block_files": [str(file)], "block": ["good.edu/private"]}], *documents)
    assert [document.row for document in left] == [1, 4] and tally.reasons == {"blocked": 3}
    assert {sample.detail for sample in tally.samples} == {"spam.net", "ads.org", "good.edu/private"}
    left, (tally,) = clean([{"step": "urls", "allow": ["good.edu"], "missing": "drop"}], *documents)
    assert [document.row for document in left] == [1, 2] and tally.reasons == {"no address": 1, "not allowed": 2}
    assert host_and_path("//x.org/a?b") == ("x.org", "/a?b")
    with pytest.raises(DataError, match="no list is given"):
        Pipeline([{"step": "urls"}])
    with pytest.raises(DataError, match="block_files = 'nowhere': cannot be read"):
        clean([{"step": "urls", "block_files": ["nowhere"]}])


def test_the_contents_of_lists_are_part_of_what_a_corpus_was_made_from(tmp_path):
    file = tmp_path / "domains"
    steps = [{"step": "urls", "block_files": [str(file)]}]
    file.write_text("a.org\n")
    before = Pipeline(steps).contents()
    assert list(before) == [str(file)] and before == Pipeline(steps).contents()
    file.write_text("b.org\n")
    assert before != Pipeline(steps).contents()
    (spec,) = Pipeline(steps).spec()
    assert spec["missing"] == "keep" and spec["allow"] == [] and json.loads(json.dumps(spec)) == spec
    with pytest.raises(DataError, match="'nowhere' cannot be read"):
        Pipeline([{"step": "urls", "block_files": ["nowhere"]}]).contents()
