from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.audit import Usage, audit
from data.open import open_stream
from data.order import UnitOrder
from data.stream import TokenStream
from data.stream_config import BucketsConfig, DataConfig, SourceConfig
from tests.data.synthetic import write_corpus

LENGTHS = {"a": [[30, 7, 64, 12], [50, 9, 200]], "b": [[16, 31, 90]]}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("audit")
    return {name: str(write_corpus(place / name, shards, name=name)) for name, shards in LENGTHS.items()}


def by_hand(stream: TokenStream, steps: list[tuple[int, int]], batch: int) -> list[Counter[int]]:
    """Tokens of each document that some batches predict, one row after another, per source."""
    found: list[Counter[int]] = [Counter() for _ in stream.sources]
    for place, length in steps:
        for row in range(batch // length):
            source, pieces = stream.pieces(place + row * length, length)
            for piece in pieces:
                for token in range(piece.start, piece.start + piece.size):
                    found[source][stream.sources[source].corpus.document_at(token)[0]] += 1
    return found


def counts(usage: Usage) -> Counter[int]:
    return Counter({document: int(tokens) for document, tokens in enumerate(usage.uses) if tokens})


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["cut", "best_fit", "document", "buckets"]),
    st.booleans(),
    st.integers(0, 120),
    st.sampled_from([(), ((16, 48),), ((0, 32), (64, 80))]),
    st.sampled_from([8, 16]),
)
def test_uses_equal_a_count_by_hand(corpora, packing, mixed, steps, skips, length):
    parts = (SourceConfig(corpora["a"], weight=2), SourceConfig(corpora["b"], weight=1)) if mixed else ()
    how = {"buckets": BucketsConfig((8, 16))} if packing == "buckets" else {"packing": packing, "span_tokens": 16}
    if packing in ("best_fit", "document"):
        how["span_tokens"] = length
    config = DataConfig(path=corpora["a"], sources=parts, skip=skips, **how)
    stream = open_stream(config, 3, length=length, longest=16, tokens=1000, batch_tokens=16)
    made = [(step * 16, stream.length_at(step * 16, length)) for step in range(steps)]
    wanted = by_hand(stream, made, 16)
    found = audit(stream, [str(i) for i in range(len(stream.sources))], steps * 16)
    assert [counts(usage) for usage in found] == wanted
    assert not any(usage.faults for usage in found)
    assert [usage.tokens for usage in found] == [sum(count.values()) for count in wanted]


def test_whole_epochs_use_every_document_equally(corpora):
    stream = open_stream(DataConfig(path=corpora["a"]), 3, length=16, tokens=1000)
    (usage,) = audit(stream, ["a"], 3 * stream.sources[0].units * 16)
    assert usage.whole == usage.times == 3 and usage.rates() == (3.0, 3.0) and not usage.faults
    (more,) = audit(stream, ["a"], (3 * stream.sources[0].units + 2) * 16)
    assert more.whole == 3 and more.times == 4 and more.rates()[0] == 3.0 < more.rates()[1] <= 4.0


def test_an_order_that_repeats_is_found(corpora, monkeypatch):
    stream = open_stream(DataConfig(path=corpora["a"]), 3, length=16, tokens=1000)
    monkeypatch.setattr(UnitOrder, "__call__", lambda self, epoch, positions: np.minimum(positions, self.units - 2))
    (usage,) = audit(stream, ["a"], stream.sources[0].units * 16)
    assert any("read more than once" in fault for fault in usage.faults)
    assert any("predicted twice" in fault for fault in usage.faults)


def test_a_synthetic_run_of_billions_is_counted_by_epochs(corpora):
    stream = open_stream(DataConfig(path=corpora["b"]), 3, length=16, tokens=1000)
    (usage,) = audit(stream, ["b"], 500 * stream.sources[0].units * 16)
    assert usage.rates() == (500.0, 500.0)
