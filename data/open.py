"""From what a recipe says of data to a stream: sources are opened, weighed, packed, put in order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from data.config import DataError
from data.corpus import Corpus
from data.mixture import Mixture, smooth
from data.plan import PlanSpec
from data.progress import Progress
from data.source import Source
from data.stream import BucketStream, Skips, Stream, TokenStream
from data.stream_config import BucketsConfig, CacheConfig, DataConfig, SourceConfig


def open_stream(
    config: DataConfig,
    seed: int,
    *,
    length: int,
    tokens: int,
    longest: int = 0,
    batch_tokens: int = 0,
    begin: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> TokenStream:
    """The training stream of a phase.

    length: tokens of its sequences; longest: of the run's longest, which text is cut for; tokens: its budget;
    batch_tokens: of the smallest batch, for buckets. begin: tokens that earlier phases used of each source, by
    fingerprint. DataError for what cannot be.
    """
    if config.buckets.lengths:
        return _buckets(config, seed, tokens, batch_tokens, begin or {}, progress)
    spec = PlanSpec(config.packing, _unit(config, length, longest or length))
    return _stream(config, seed, spec, tokens, begin or {}, progress)


def check_cache(config: DataConfig) -> None:
    """DataError for options of the cache where no corpus has shards elsewhere."""
    paths = dict.fromkeys([config.home, *(part.path for part in config.parts)])
    if config.cache != CacheConfig() and all(Corpus(path, "train", config.cache).local for path in paths):
        raise DataError(
            f"data.cache has no effect on {', '.join(paths)}, whose shards are on this machine; leave its options out, or name "
            "a URL (https://, s3://, gs://, …)"
        )


def ordered_stream(path: str, split: str, length: int, cache: CacheConfig | None = None) -> Stream:
    """A split in plain order, cut at `length`, the same every epoch: what validation reads."""
    return Stream([Source(Corpus(path, split, cache), PlanSpec("cut", length), 0, shuffle="none")])


def names_of(config: DataConfig, stream: TokenStream) -> list[str]:
    """What to call each source of a stream."""
    parts = [
        part.name or source.corpus.manifest.name
        for part, source in zip(_parts(config) * 64, stream.sources, strict=False)
    ]
    repeated = {name for name in parts if parts.count(name) > 1}
    found = []
    for number, (name, source) in enumerate(zip(parts, stream.sources, strict=True)):
        part = _parts(config)[number % len(_parts(config))]
        about = [part.where] * bool(part.where) + [str(source.size)] * bool(config.buckets.lengths)
        found.append(f"{name} ({', '.join(about) or number})" if name in repeated else name)
    return found


def _skips(config: DataConfig) -> Skips:
    return tuple((begin, end) for begin, end in config.skip)


def _unit(config: DataConfig, length: int, longest: int) -> int:
    unit = config.span_tokens or (longest if config.packing == "cut" else length)
    if unit % length:
        raise DataError(
            f"data.span_tokens = {unit}: it must be a multiple of every sequence length of the run, and one is {length}; set "
            f"it to {math.lcm(unit, length)}"
        )
    return unit


def _stream(
    config: DataConfig, seed: int, spec: PlanSpec, tokens: int, begin: Mapping[str, int], progress: Progress | None
) -> Stream:
    parts = _parts(config)
    sources = [_source(config, part, spec, seed, progress) for part in parts]
    used = [begin.get(source.fingerprint, 0) for source in sources]
    skips = _skips(config)
    mixture = None
    if len(sources) > 1 or _caps(parts, sources, used)[0] is not None:
        mixture = _mixture(config, parts, sources, used, seed)
        needed = -(-(tokens + sum(end - begin for begin, end in skips)) // spec.size)
        _refuse_spent(config, parts, sources, used, mixture, needed)
    return Stream(sources, mixture, begin=used, skips=skips)


def _source(config: DataConfig, part: SourceConfig, spec: PlanSpec, seed: int, progress: Progress | None) -> Source:
    whole = replace(spec, where=part.where, ordering=part.ordering)
    return Source(
        Corpus(part.path, "train", config.cache),
        whole,
        seed,
        shuffle=config.shuffle,
        window=config.window,
        progress=progress,
    )


def _parts(config: DataConfig) -> tuple[SourceConfig, ...]:
    """The sources; with long_share each is two, long documents and the others."""
    if not config.long_tokens:
        return config.parts
    found = []
    for part in config.parts:
        both = (
            (f"tokens >= {config.long_tokens}", config.long_share),
            (f"tokens < {config.long_tokens}", 1 - config.long_share),
        )
        for condition, share in both:
            where = f"({part.where}) and {condition}" if part.where else condition
            found.append(
                replace(
                    part,
                    where=where,
                    weight=part.weight * share,
                    weights=tuple((at, weight * share) for at, weight in part.weights),
                    tokens=round(part.tokens * share),
                )
            )
    return tuple(found)


def _mixture(
    config: DataConfig, parts: tuple[SourceConfig, ...], sources: list[Source], used: list[int], seed: int
) -> Mixture:
    mixture, size = Mixture(len(sources), seed), sources[0].size
    caps = _caps(parts, sources, used)
    if any(part.weights for part in parts):
        places = sorted({at for part in parts for at, _ in part.weights} | {0.0})
        knots = [(at, [_weight_at(part, at) for part in parts]) for at in places]
        stages = smooth(knots, 1 / size)
    else:
        stages = [(None, _weights(config, parts, sources))]
    for units, weights in stages:
        mixture.add(weights, units, caps)
    return mixture


def _weights(config: DataConfig, parts: tuple[SourceConfig, ...], sources: list[Source]) -> list[float]:
    if any(part.weight or part.tokens for part in parts):
        return [part.weight or part.tokens for part in parts]
    sizes = [source.corpus.tokens if config.long_tokens else source.tokens for source in sources]
    weights = [size ** (1 / config.temperature) for size in sizes]
    if not config.long_tokens:
        return weights
    shares = (config.long_share, 1 - config.long_share)
    return [weight * shares[number % 2] for number, weight in enumerate(weights)]


def _weight_at(part: SourceConfig, tokens: float) -> float:
    if not part.weights:
        return part.weight
    return float(np.interp(tokens, [at for at, _ in part.weights], [weight for _, weight in part.weights]))


def _caps(parts: tuple[SourceConfig, ...], sources: list[Source], used: list[int]) -> list[int | None]:
    """Units that each source may still give to the phase; None = no limit."""
    caps: list[int | None] = []
    for part, source, before in zip(parts, sources, used, strict=True):
        limits = [-(-part.tokens // source.size)] if part.tokens else []
        limits += [max(0, round(part.epochs * source.units) - -(-before // source.size))] if part.epochs else []
        caps.append(min(limits, default=None))
    return caps


def _refuse_spent(
    config: DataConfig,
    parts: tuple[SourceConfig, ...],
    sources: list[Source],
    used: list[int],
    mixture: Mixture,
    needed: int,
) -> None:
    """Refuse a phase that would run out of text."""
    size = sources[0].size
    if mixture.units < needed:
        raise DataError(
            f"data.sources: give {mixture.units * size:,} tokens until all are spent, and the phase asks for "
            f"{needed * size:,}; raise `epochs` or `tokens` of a source, add text, or shorten the phase"
        )
    # A budget that is spent with the phase's last units is as it should be.
    early = mixture.counts(max(0, needed - max(4, needed // 100)))
    for part, cap, count in zip(parts, _caps(parts, sources, used), early, strict=True):
        if config.when_spent == "refuse" and cap is not None and count >= cap:
            limit = f"epochs = {part.epochs}" if part.epochs else f"tokens = {part.tokens}"
            raise DataError(
                f"data.sources: {part.name or part.path} is spent ({limit}) after {cap * size:,} tokens, before a phase of "
                f"{needed * size:,} ends; raise the limit, lower its weight, or set data.when_spent=renormalise"
            )


def _buckets(
    config: DataConfig, seed: int, tokens: int, batch_tokens: int, begin: Mapping[str, int], progress: Progress | None
) -> BucketStream:
    lengths = config.buckets.lengths
    if batch_tokens % lengths[-1]:
        raise DataError(
            f"data.buckets.lengths = {list(lengths)}: the longest must divide train.batch_tokens = {batch_tokens}"
        )
    for place in (place for pair in config.skip for place in pair):
        if place % batch_tokens:
            raise DataError(
                f"data.skip: {place} is not a multiple of a batch of {batch_tokens} tokens, as buckets need"
            )
    streams = {
        length: _stream(replace(config, skip=()), seed, PlanSpec("bucket", length, lengths), 0, begin, progress)
        for length in lengths
    }
    held = [sum(source.units * length for source in stream.sources) for length, stream in streams.items()]
    mixture = bucket_mixture(config.buckets, held, -(-tokens // batch_tokens), seed)
    return BucketStream(streams, mixture, batch_tokens, skips=_skips(config))


def bucket_mixture(config: BucketsConfig, held: list[int], chunks: int, seed: int) -> Mixture:
    """Which bucket each chunk of a phase comes from. held: tokens of each bucket, from the shortest."""
    mixture, count = Mixture(len(held), seed), len(held)
    if config.curriculum == "natural":
        mixture.add(held)
        return mixture
    base = {"uniform": 1.0, "grow_p2": 2.0, "shrink_p2": 0.5, "grow_p100": 100.0, "shrink_p100": 0.01}.get(
        config.curriculum
    )
    odds = [float(count - i) if base is None else base ** (count - 1 - i) for i in range(count)]
    for cycle in range(config.cycles):
        end = chunks * (cycle + 1) // config.cycles
        caps = _divided(end, held)
        mixture.add(odds, end - mixture.units, caps)
    mixture.add(held)  # what a changed batch may need beyond the budget
    return mixture


def _divided(total: int, shares: list[int]) -> list[int | None]:
    """`total` cut in whole parts by shares, largest remainders first."""
    exact = [total * share / sum(shares) for share in shares]
    parts = [int(part) for part in exact]
    for number in sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])[: total - sum(parts)]:
        parts[number] += 1
    return list(parts)
