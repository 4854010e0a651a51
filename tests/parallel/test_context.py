"""The context axis: cuts, ring and Ulysses against attention written out in float64, and what travels when."""

from __future__ import annotations

import itertools

import pytest
import torch

from models.core import CoreSpec, mask_for, take_spans, visible
from models.random import Clock
from parallel.config import ParallelConfig
from parallel.context import SequenceCut
from parallel.ring import RingCore, _Turn, tasks
from tests.helpers.pool import Pools
from tests.models.naive_attention import made_up, made_up_prefix, naive
from tests.parallel import context_jobs

SPECS = [
    CoreSpec(causal=causal, window=window, documents=documents, prefix=prefix, heads=4)
    for causal, window, documents, prefix in (
        (True, 0, False, False),
        (True, 3, False, False),
        (True, 9, False, False),
        (True, 0, True, False),
        (True, 5, True, False),
        (False, 0, False, False),
        (False, 4, False, False),
        (False, 0, True, False),
        (False, 7, True, False),
        (True, 0, False, True),
        (True, 0, True, True),
        (True, 5, False, True),
        (True, 7, True, True),
    )
]
LAYOUTS = [("ring", 2), ("ring", 4), ("ring", 3), ("ulysses", 2), ("ulysses", 4)]


@pytest.mark.parametrize(("method", "degree"), LAYOUTS)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_cut_attention_is_attention_written_out(method: str, degree: int, groups: int, pools: Pools) -> None:
    """Output and all gradients in float64, for every mask, with as many key-value heads as queries, half and one."""
    config, length = ParallelConfig(context=degree, context_method=method), 24
    found = pools.run(
        degree, context_jobs.attend, config=config, specs=SPECS, groups=groups, length=length, dtype=torch.float64
    )
    for index, spec in enumerate(SPECS):
        query, key, value, documents, gradient = made_up(length, 2, spec.heads, groups)
        hidden = {
            "documents": documents if spec.documents else None,
            "prefix": made_up_prefix(length, 2) if spec.prefix else None,
        }
        expected = naive(query, key, value, causal=spec.causal, window=spec.window, **hidden)
        wanted = [expected.detach(), *torch.autograd.grad(expected, (query, key, value), gradient)]
        for rank in found:
            torch.testing.assert_close(rank[index], wanted, msg=lambda text, spec=spec: f"{spec}: {text}")


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_a_bfloat16_ring_is_merged_in_float32(method: str, pools: Pools) -> None:
    """Errors stay those of one rounding to bfloat16, whatever the number of blocks."""
    config, length = ParallelConfig(context=4, context_method=method), 64
    (found, *_) = pools.run(
        4, context_jobs.attend, config=config, specs=SPECS[:2], groups=4, length=length, dtype=torch.bfloat16
    )
    for index, spec in enumerate(SPECS[:2]):
        query, key, value, _, gradient = (
            part.bfloat16().double() if part.is_floating_point() else part for part in made_up(length, 2, 4, 4)
        )
        expected = naive(query, key, value, causal=True, window=spec.window)
        wanted = [expected.detach(), *torch.autograd.grad(expected, (query, key, value), gradient)]
        for ours, theirs in zip(found[index], wanted, strict=True):
            assert float((ours.double() - theirs).norm() / theirs.norm()) < 2.0**-7


@pytest.mark.parametrize(("method", "degree"), LAYOUTS)
def test_dropout_of_attention_weights_is_that_of_one_process(method: str, degree: int, pools: Pools) -> None:
    config, length = ParallelConfig(context=degree, context_method=method), 24
    spec = CoreSpec(window=9, documents=True, prefix=True, dropout=0.3, dropout_key=77, heads=4)
    found = pools.run(
        degree, context_jobs.attend, config=config, specs=[spec], groups=2, length=length, dtype=torch.float64
    )
    for rank in found:  # softmax is computed in float32 there
        torch.testing.assert_close(rank[0], context_jobs.with_dropout(spec, 2, length), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("degree", "zigzag"), itertools.product((1, 2, 3, 4), (True, False)))
def test_a_cut_gives_every_position_to_one_rank(degree: int, zigzag: bool) -> None:
    length = 48
    cuts = [SequenceCut(degree, rank, zigzag) for rank in range(degree)]
    x = torch.arange(3 * length).view(3, length)
    shares = [cut.take(x) for cut in cuts]
    assert all(share.shape == (3, length // degree) for share in shares)
    assert torch.equal(torch.cat(shares, 1).sort(1).values, x)
    for position in range(length):
        rank, row = cuts[0].find(position, length)
        assert shares[rank][0, row] == position
    if zigzag:
        seen = [visible(True, 0, cut.spans(length), ((0, length),), torch.device("cpu")).sum() for cut in cuts]
        assert len(set(map(int, seen))) == 1, "ranks have unequal work under a causal mask"


@pytest.mark.parametrize(
    "spec", [CoreSpec(causal=c, window=w) for c in (True, False) for w in (0, 1, 4, 7, 30)], ids=str
)
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_blocks_cover_what_is_seen_and_no_empty_one(spec: CoreSpec, degree: int) -> None:
    length, cpu = 24, torch.device("cpu")
    spans = [SequenceCut(degree, rank, True).spans(length) for rank in range(degree)]
    whole = visible(spec.causal, spec.window, ((0, length),), ((0, length),), cpu)
    for mine, theirs in itertools.product(spans, spans):
        rows, columns = (torch.tensor([p for span in found for p in range(*span)]) for found in (mine, theirs))
        expected = whole[rows][:, columns]
        covered = torch.zeros_like(expected)
        for task in tasks(spec, mine, theirs):
            place = covered[slice(*task.rows), slice(*task.columns)]
            assert not place.any(), "a pair is in two blocks"
            seen = visible(spec.causal, spec.window, task.row_spans, task.column_spans, cpu)
            assert seen.any(), "an empty block"
            if task.mask == "full":
                assert seen.all()
            elif task.mask == "causal":
                assert torch.equal(seen, torch.ones_like(seen).tril())
            place |= seen
        assert torch.equal(covered, expected)
        if mine == theirs:
            first = tasks(spec, mine, theirs)[0]
            assert set(first.row_spans) <= set(first.column_spans), "a row must see itself first"


@pytest.mark.parametrize("window", [0, 4, 30])
@pytest.mark.parametrize("degree", [2, 4])
def test_blocks_cover_what_is_seen_of_prefixes_too(window: int, degree: int) -> None:
    """Where columns are marked, later ones are seen; blocks of which none is marked stay those of a causal mask."""
    length, cpu, spec = 24, torch.device("cpu"), CoreSpec(window=window, prefix=True)
    spans = [SequenceCut(degree, rank, True).spans(length) for rank in range(degree)]
    prefix = torch.zeros(1, length, dtype=torch.bool)
    prefix[0, :5] = prefix[0, 13] = True
    whole = mask_for(spec, ((0, length),), ((0, length),), None, cpu, prefix)[0, 0]
    for mine, theirs in itertools.product(spans, spans):
        rows, columns = (torch.tensor([p for span in found for p in range(*span)]) for found in (mine, theirs))
        covered = torch.zeros(len(rows), len(columns), dtype=torch.bool)
        plain = tasks(CoreSpec(window=window), mine, theirs)
        for task in tasks(spec, mine, theirs, lambda spans: bool(take_spans(prefix, spans, 1).any())):
            seen = mask_for(spec, task.row_spans, task.column_spans, None, cpu, prefix)[0, 0]
            if task.mask == "full":
                assert seen.all()
            elif task.mask == "causal":
                assert torch.equal(seen, torch.ones_like(seen).tril())
            elif not take_spans(prefix, task.column_spans, 1).any():
                assert task in plain
            covered[slice(*task.rows), slice(*task.columns)] |= seen
        assert torch.equal(covered, whole[rows][:, columns])


def test_blocks_without_a_common_document_are_left_out() -> None:
    """Where every chunk of a zigzag is a document, each rank attends to its own two and to nothing that comes round."""
    degree, length = 4, 32
    documents = (torch.arange(length) // (length // (2 * degree))).expand(3, length)
    for rank in range(degree):
        core = RingCore(CoreSpec(documents=True), Clock(0), 0, SequenceCut(degree, rank, True), None)  # type: ignore[arg-type]
        turn = _Turn(torch.device("cpu"), core, documents, None, 0, False, length)
        kinds = [[task.mask for task, *_ in turn.tasks(step)] for step in range(degree)]
        assert kinds == [["causal", "causal"], [], [], []]
        one = documents.clone()
        one[2] = 0  # in one sequence of the micro-batch there is but one document
        turn = _Turn(torch.device("cpu"), core, one, None, 0, False, length)
        assert sum(len(list(turn.tasks(step))) for step in range(degree)) == len(
            [
                task
                for other in range(degree)
                for task in tasks(CoreSpec(), core.cut.spans(length), core.cut.spans(length, other))
            ]
        )


def test_a_zigzag_has_few_full_blocks() -> None:
    """A causal ring of 4: each rank's own positions in three blocks, every other rank's in at most two, none masked."""
    spans = [SequenceCut(4, rank, True).spans(32) for rank in range(4)]
    for mine, theirs in itertools.product(spans, spans):
        kinds = [task.mask for task in tasks(CoreSpec(), mine, theirs)]
        if mine == theirs:
            assert sorted(kinds) == ["causal", "causal", "full"]
        else:
            assert kinds in (["full"], ["full", "full"])
    assert [task.mask for task in tasks(CoreSpec(causal=False), spans[0], spans[3])] == ["full"]


def test_the_next_block_is_on_its_way_while_the_present_one_is_attended_to(pools: Pools) -> None:
    forward = ["send", "attend", "wait"] * 3 + ["attend"]
    for events in pools.run(4, context_jobs.order_of_events, config=ParallelConfig(context=4), length=16):
        assert events[: len(forward)] == forward
        backward = events[len(forward) :]
        for turn in range(3):  # keys and values leave before anything is computed in each turn but the last
            attends = [index for index, event in enumerate(backward) if event == "attend"]
            assert "send" in backward[: attends[turn]][-2:], (turn, backward)
