"""`triaxis data order`, `stats` and `show`: what they print, write and refuse."""

from __future__ import annotations

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data.build import build
from data.config import CorpusConfig, TokenizerConfig
from data.documents import Documents
from data.orderings import load
from data.statistics import describe
from data.tokenizers import Tokenizer
from launcher.cli import main
from launcher.corpus.page import Origin, Shown, render
from launcher.corpus.pictures import pictures
from launcher.corpus.show import words_of
from launcher.help import completions
from tests.data.misbehaving import Server
from tests.launcher.running import minute


@pytest.fixture
def mine(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "mine"))


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        out, err = capfd.readouterr()
        assert "Traceback" not in err and (not code or err.count("\n") <= 1)
        return out + err

    return run


def test_order_makes_lists_and_leaves_alone(call, mine):
    assert "has no orderings" in call("data", "order", mine)
    told = call("data", "order", mine, "--by", "length", "--ratio=4", "--splits=train,validation", "--name", "short")
    assert "made" in told and "from tokens" in told and "validation by length" in told
    assert "is there already, unchanged" in call("data", "order", mine, "--by=length", "--ratio", "4", "--splits",
                                                  "train,validation", "--name=short")  # fmt: skip
    assert set(load(mine, "short").splits) == {"train", "validation"}
    clusters = call("data", "order", mine, "--by=clusters", "--clusters=3", "--dimensions=64", "--drop=1")
    assert "(left out)" in clusters and "nearest to its centre" in clusters
    listed = call("data", "order", mine)
    assert "short: train by length" in listed and "clusters: train by clusters" in listed
    assert "ordering   short: by length, " in call("data", "inspect", mine)
    assert "--exact-up-to=65536" in call("data", "order", "--help")


ORDER_MISTAKES = [
    ([], "takes one corpus"),
    (["nowhere"], "no corpus there"),
    (["https://host/corpus", "--by=shuffle"], "is elsewhere"),
    (["MINE", "--by=alphabet"], "choose one of shuffle, length"),
    (["MINE", "--by=length", "--drop=1"], "--drop: has no effect with --by=length; it has --ratio"),
    (["MINE", "--ratio=3"], "without --by"),
    (["MINE", "--name=x"], "--by: is required"),
    (["MINE", "--by=length", "--ratoi=3"], "did you mean --ratio?"),
    (["MINE", "--by=length", "--ratio=long"], "--ratio=long: must be a number"),
    (["MINE", "--by=length", "--ratio=2", "--ratio=3"], "given twice"),
    (["MINE", "--by=length", "--ratio"], "needs a value"),
    (["MINE", "--by=length", "--descending=perhaps"], "true or false"),
    (["MINE", "--by=shuffle", "--splits=train,test"], "no split 'test'"),
    (["MINE", "--by=shuffle", "--name=../x"], "--name=../x"),
]


@pytest.mark.parametrize(("arguments", "told"), ORDER_MISTAKES)
def test_mistakes_of_order(call, mine, arguments, told):
    words = [mine if word == "MINE" else word for word in arguments]
    assert told in call("data", "order", *words, code=1)


def test_stats_counts_and_draws(call, mine, tmp_path):
    told = call("data", "stats", mine, "--top=5")
    assert "bytes a token" in told and "ids never used" in told and "bytes/token" in told
    found = json.loads((mine / "stats" / "stats.json").read_text())
    assert found["tokens"] == Documents(mine).tokens and len(found["frequencies"]["most"]) == 5
    assert (mine / "stats" / "overview.png").read_bytes().startswith(b"\x89PNG")
    step = {
        "step": "rules",
        "before": 40,
        "after": 30,
        "changed": 0,
        "reasons": {"short": 10},
        "lines": {},
        "samples": [],
    }
    (mine / "cleaning.json").write_text(json.dumps([step]))
    call("data", "order", mine, "--by=clusters", "--clusters=3", "--dimensions=64")
    told = call("data", "stats", mine, "--columns", "clusters.to_centre,clusters.cluster,path", "--out", tmp_path / "s",
         "--split=train")  # fmt: skip
    assert "short 10" in told and (tmp_path / "s" / "cleaning.png").exists()
    found = json.loads((tmp_path / "s" / "stats.json").read_text())
    assert set(found["signals"]) == {"clusters.to_centre", "clusters.cluster"} and set(found["words"]) == {"path"}
    assert (tmp_path / "s" / "signals.png").read_bytes().startswith(b"\x89PNG")


def test_stats_of_shuffles_tell_good_from_bad(call, mine):
    told = call("data", "stats", mine, "--shuffle", "--batch=16", "--sequence-length=16", "--buffer=20")
    last = next(line for line in told.splitlines() if "not mixed" in line)
    assert last.split("not mixed")[0].split() == ["mixed", "mixed", "mixed"], "a perfect one, global, a wide window"
    found = json.loads((mine / "stats" / "shuffle.json").read_text())["orders"]
    assert found["as stored"]["correlation"]["value"] == pytest.approx(1)
    assert found["global"]["spread"]["z"] < 4 < abs(found["buffer of 20"]["spread"]["z"])
    assert (mine / "stats" / "shuffle.png").read_bytes().startswith(b"\x89PNG")


STATS_MISTAKES = [
    ([], "takes one corpus"),
    (["nowhere"], "nowhere"),
    (["https://host/corpus"], "is elsewhere"),
    (["MINE", "--split=test"], "no split 'test'"),
    (["MINE", "--columns=sweet"], "--columns=sweet: no such column"),
    (["MINE", "--batch=3"], "--batch: has no effect without --shuffle"),
    (["MINE", "--shuffle", "--top=3"], "--top: has no effect with --shuffle"),
    (["MINE", "--shuffle"], "two batches are needed"),
    (["MINE", "--top=0"], "--top=0: must be at least 1"),
    (["MINE", "--out=MINE/manifest.json"], "cannot be written"),
]


@pytest.mark.parametrize(("arguments", "told"), STATS_MISTAKES)
def test_mistakes_of_stats(call, mine, arguments, told):
    assert told in call("data", "stats", *[word.replace("MINE", str(mine)) for word in arguments], code=1)


def test_pictures_of_signals_words_and_cleaning():
    values = np.linspace(0, 1, 300)
    found = {
        "corpus": "$x$ & <b>", "split": "train", "documents": 300, "tokens": 9000, "bytes": 9000,
        "lengths": describe(np.arange(1.0, 301), logarithmic=True, weights=np.ones(300)),
        "sources": [{"source": f"s{i}", "documents": 1, "tokens": i, "bytes": 1, "bytes_per_token": 1.0} for i in range(14)],
        "signals": {"quality": describe(values), "empty": describe(np.full(3, np.nan))},
        "words": {"language": {"different": 2, "missing": 0, "most": [{"value": "日本語", "documents": 1, "tokens": 5}]}},
        "frequencies": {"counted": 10, "vocabulary": 4, "never_used": 1, "ranks": [1, 2, 3], "curve": [6, 3, 1]},
        "cleaning": [
            {"step": "rules", "before": 400, "after": 320, "changed": 0, "reasons": {"short": 50, "odd": 30}},
            {"step": "copies", "before": 320, "after": 300, "changed": 0, "reasons": {"copy": 20}},
        ],
    }  # fmt: skip
    drawn = pictures(found)
    assert set(drawn) == {"overview", "signals", "cleaning"}
    assert all(body.startswith(b"\x89PNG") for body in drawn.values())
    again = pictures({**found, "signals": {}, "cleaning": []})
    assert again == {"overview": drawn["overview"]}, "the same bytes again"


class Reader(HTMLParser):
    """Text, classes and titles of the tokens of a page; complains of tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tokens: list[tuple[list[str], str]] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "span" and "t" in (dict(attributes).get("class") or "").split() and dict(attributes).get("title"):
            self.tokens.append((dict(attributes)["class"].split(), dict(attributes)["title"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def text_of(page: str) -> str:
    """The text of the first sample as the page shows it, marks of white space apart."""
    row = re.search(r'<div class="row">(.*?)</div>', page, re.S)
    assert row
    shown = re.sub(r'<span class="n">.</span>|<span class="s".*?</span>|<span class="z".*?</span>', "", row.group(1))
    return html.unescape(re.sub(r"<[^>]*>", "", shown))


def test_show_is_what_is_trained_on(call, mine, tmp_path):
    recipe = [argument for argument in minute(mine, 4) if not argument.startswith("data.span_tokens")]
    path = call("data", "show", *recipe, "--samples=2:5", "--out=page.html").strip()
    page = Path(path).read_text()
    reader = Reader(page)
    assert page.count('<section class="sample"') == 3 and 'id="sample-2"' in page and "script" not in reader.tags
    assert len(reader.tokens) == 3 * 16
    from data.open import open_stream
    from launcher.compose import build_recipe, compose_tree

    typed = build_recipe(compose_tree(recipe))
    tokens = open_stream(typed.data, typed.seed, length=16, tokens=512).batch(32, 1, 16).tokens[0]
    assert text_of(page) == Tokenizer("byte").decode(tokens[:-1])
    ids = [int(re.match(r"id (\d+) ", title).group(1)) for _, title in reader.tokens[:16]]
    assert ids == tokens[:-1].tolist()
    documents = Documents(mine)
    place = re.search(r"token ([\d,]+) of .*?: (\S+) \(document ([\d,]+) of the corpus\)", reader.tokens[5][1])
    assert place
    offset, number = (int(place.group(i).replace(",", "")) for i in (1, 3))
    assert documents.document(number)[offset] == tokens[5]
    codes, names = documents.labels("path")
    assert names[codes[number]] == place.group(2)


def test_a_corpus_elsewhere_is_looked_at_as_one_here(call, mine, monkeypatch, tmp_path):
    files = {str(path.relative_to(mine)): path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    monkeypatch.setenv("TRIAXIS_CACHE", str(tmp_path / "cache"))
    server, options = Server(files), [part for part in minute(mine, 4, "data.packing=document") if "span_" not in part]
    try:
        told = call("data", "inspect", server.url)
        assert f"at {server.url} (" in told
        assert told.replace(server.url, str(mine)) == call("data", "inspect", mine)
        pages = [
            Path(call("data", "show", place, *options, f"--out={name}.html").strip()).read_text()
            for place, name in ((server.url, "there"), (mine, "here"))
        ]
        assert pages[0] == pages[1]
        missing = call("data", "show", f"{server.url}/missing", *options, code=1)
        assert "missing/manifest.json" in missing and "404" in missing
    finally:
        server.close()


@pytest.mark.parametrize("packing", ["best_fit", "document"])
def test_show_of_other_packings(call, mine, packing):
    recipe = [argument for argument in minute(mine, 4, f"data.packing={packing}") if "span_tokens" not in argument]
    page = Path(call("data", "show", mine, *recipe, "--samples=0:40").strip()).read_text()
    reader = Reader(page)
    assert len(reader.tokens) > 0 and packing in page
    padding = sum(int(found.replace(",", "")) for found in re.findall(r"padding × ([\d,]+)<", page))
    assert len(reader.tokens) + padding == 40 * 16


def test_show_of_a_later_phase_reads_on(call, mine):
    recipe = [argument for argument in minute(mine, 4) if "span_tokens" not in argument]
    phases = "phases=[{name: a, tokens: 256}, {name: b, tokens: 256, train: {sequence_length: 8}}]"
    whole = call("data", "show", *recipe, "--samples=16:32", "--out=whole.html").strip()
    later = call("data", "show", *recipe, phases, "--phase=1", "--samples=0:32", "--out=later.html").strip()
    one, two = (Reader(Path(path).read_text()) for path in (whole, later))
    ids = [[title.split()[1] for _, title in reader.tokens] for reader in (one, two)]
    assert len(ids[0]) == 256 and ids[0] == ids[1], "the same tokens in samples of half the length"
    assert "phase b" in Path(later).read_text()


def test_a_stream_reads_an_ordering(call, mine):
    call("data", "order", mine, "--by=length", "--ratio=1", "--name=short")
    options = ["data.ordering=short", "data.shuffle=none", "data.packing=cut"]
    recipe = [argument for argument in minute(mine, 4, *options) if "span_tokens" not in argument]
    page = Path(call("data", "show", *recipe, "--samples=0:30").strip()).read_text()
    documents, numbers = Documents(mine), load(mine, "short").numbers("train")
    seen = [re.search(r"document ([\d,]+) of the corpus", title) for _, title in Reader(page).tokens]
    read = list(dict.fromkeys(int(found.group(1).replace(",", "")) for found in seen if found))
    assert read == numbers[: len(read)].tolist() and len(read) > 1
    assert documents.lengths()[read].tolist() == sorted(documents.lengths())[: len(read)]


def test_show_of_an_objective_with_prefixes(call, mine):
    options = ["objective=prefix_lm", "model.prefix_mask=true"]
    recipe = [argument for argument in minute(mine, 4, *options) if "span_tokens" not in argument]
    reader = Reader(Path(call("data", "show", *recipe, "--samples=0:8").strip()).read_text())
    prefixed = [names for names, _ in reader.tokens if "x" in names]
    assert prefixed and len(prefixed) < len(reader.tokens)
    assert sum("w0" in names for names in prefixed) >= len(prefixed) - 8, "but for its last, a prefix is not predicted"


def test_show_of_masks_tells_what_they_hide(call, text, tmp_path):
    corpus = tmp_path / "special"
    tokenizer = TokenizerConfig("byte", special_tokens=("<|mask|>",))
    build(CorpusConfig("special", (str(text),), str(corpus), validation_fraction=0.2, workers=1), tokenizer)
    options = ["objective=masked_lm", "model.causal=false"]
    recipe = [argument for argument in minute(corpus, 4, *options) if "span_tokens" not in argument]
    page = Path(call("data", "show", *recipe, "--samples=0:8").strip()).read_text()
    hidden = re.findall(r'<span class="[^"]*\be\b[^"]*" title="([^"]*)">&lt;\|mask\|&gt;<i>([^<]*)</i>', page)
    assert hidden and all(f"predicts {target} " in title for title, target in hidden)


def test_show_of_buckets(call, mine):
    buckets = ["data.buckets.lengths=[8,16]", "data.buckets.curriculum=uniform"]
    recipe = [argument for argument in minute(mine, 400, *buckets) if "span_tokens" not in argument]
    page = Path(call("data", "show", *recipe, "--samples=0:320").strip()).read_text()
    lengths = {len(Reader(f"<p>{part}</p>").tokens) for part in re.findall(r'<div class="row">(.*?)</div>', page, re.S)}
    assert max(lengths) == 16 and 8 in lengths and "buckets" in page


def rows_of(text: str, **changes: object) -> Shown:
    ids = np.array([*text.encode(), 256, *b"second", 256, 256, 256, 256], np.int64)
    size = len(ids) - 1
    padding = np.arange(size) >= size - 2
    ends = ids[:-1] == 256
    settings: dict = {
        "index": 7, "inputs": ids[:-1], "targets": ids[1:], "weights": (~padding).astype(np.float32),
        "documents": np.cumsum(ends) - ends, "prefix": np.zeros(size, bool), "padding": padding,
    }  # fmt: skip
    return Shown(**(settings | changes))


WORDS = words_of(Tokenizer("byte"))


def test_pages_are_escaped_and_readable():
    text = "<script>alert('x')</script> & \"é\" 日 \x00\x1b\ttab\n"
    origin = Origin(0, 5, 3, 9, '<img src="x">', "a&b.txt")
    page = render("<title>", [("<fact>", "&")], [rows_of(text, origins=(origin,))], WORDS)
    reader = Reader(page)
    assert not {"script", "img"} & reader.tags
    shown = text_of(page).replace("<|endoftext|>", "|")
    assert shown == text.replace("\x00\x1b", "⟨0000⟩⟨001b⟩") + "|second|"
    assert '<span class="z">padding × 2</span>' in page
    assert page.count('<span class="s"') == 3, "two documents begin, and the key"
    assert 'token 9 of <img src="x">: a&b.txt (document 3 of the corpus)' in reader.tokens[0][1]


def test_weights_prefixes_and_other_targets_are_told():
    size = len(rows_of("abcdefgh").inputs)
    weights, prefix = np.zeros(size, np.float32), np.zeros(size, bool)
    weights[2:5], prefix[:3] = (0.5, 1, 2), True
    reader = Reader(render("x", [], [rows_of("abcdefgh", weights=weights, prefix=prefix)], WORDS))
    classes = [names for names, _ in reader.tokens]
    assert ["w0" in names for names in classes[:6]] == [True, True, False, False, False, True]
    assert "wl" in classes[2] and "wh" in classes[4] and not {"wl", "wh", "w0"} & set(classes[3])
    assert ["x" in names for names in classes[:5]] == [True, True, True, False, False]
    assert "predicts e (101), weight 1" in reader.tokens[3][1] and reader.tokens[0][1].endswith("prefix")
    masked = rows_of("abcdefgh")
    only = (np.arange(size) == 2).astype(np.float32)
    page = render("x", [], [rows_of("ab#defgh", targets=masked.inputs, weights=only)], WORDS)
    assert ">#<i>c</i></span>" in page and page.count("<i>") == 2, "one token, and the key"


def test_positions_begin_anew_with_each_document():
    reader = Reader(render("x", [], [rows_of("a" * 20)], WORDS))
    octaves = [next(name for name in names if re.fullmatch(r"p\d", name)) for names, _ in reader.tokens]
    assert octaves[:8] == ["p0"] * 8 and octaves[8:16] == ["p1"] * 8 and octaves[16:21] == ["p2"] * 5
    assert octaves[21] == "p0" and "position 0 of document 1" in reader.tokens[21][1]


SHOW_MISTAKES = [
    (["nowhere"], "no corpus there"),
    (["MINE", "--samples=5"], "must be a:b"),
    (["MINE", "--samples=5:5"], "must be a:b"),
    (["MINE", "--samples=0:100000"], "at most 4,096 samples"),
    (["MINE", "--samples=0:4000"], "too much for a page"),
    (["MINE", "--phase=2"], "--phase=2"),
    (["MINE", "--sample=0:1"], "did you mean --samples?"),
    (["MINE", "data.pcking=cut"], "data.packing"),
]


@pytest.mark.parametrize(("arguments", "told"), SHOW_MISTAKES)
def test_mistakes_of_show(call, mine, arguments, told):
    assert told in call("data", "show", *[mine if word == "MINE" else word for word in arguments], code=1)


def test_completion_knows_the_options(monkeypatch, mine, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("corpora").mkdir()
    shutil.copytree(mine, "corpora/one")
    assert "--exact-up-to" in completions("triaxis data order corpora/one --e")
    assert completions("triaxis data stats corp") == ["corpora/one"]
    assert "--shuffle" in completions("triaxis data stats corpora/one --s")
    assert "--samples" in completions("triaxis data show --s") and "data.packing=" in completions(
        "triaxis data show data.pa"
    )
    assert "order" in completions("triaxis data o")


def test_difficulty_by_a_run(call, mine, straight):
    told = call("data", "order", mine, "--by=difficulty", f"--run={straight}", "--splits=validation", "--name=hard")
    assert "made" in told and "quartiles" in told
    documents = Documents(mine, "validation")
    scores = documents.numbers("hard.bits_per_byte")
    assert np.isfinite(scores).all() and 3 < scores.min() <= scores.max() < 10
    found = load(mine, "hard")
    assert (np.diff(scores[found.numbers("validation")]) >= 0).all()
    assert found.options["checkpoint"]["step"].startswith("step_")
    easy_first = scores[found.numbers("validation")]
    call(
        "data",
        "order",
        mine,
        "--by=difficulty",
        f"--run={straight}",
        "--splits=validation",
        "--name=easy",
        "--descending",
    )
    assert np.array_equal(scores[load(mine, "easy").numbers("validation")], easy_first[::-1])
    assert "is there already" in call(
        "data", "order", mine, "--by=difficulty", f"--run={straight}", "--splits=validation", "--name=hard"
    )
    assert "--run=nowhere" in call("data", "order", mine, "--by=difficulty", "--run=nowhere", "--name=no", code=1)
