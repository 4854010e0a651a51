"""What a model must predict: options of the objectives, each documented by the string under it.

Imports neither torch nor numpy: the launcher is light.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from models.errors import ModelError

OBJECTIVE_NAMES = ("causal", "prefix_lm", "masked_lm", "span_corruption", "fill_in_the_middle", "mixture")
PAIRS = ("prefix_lm", "span_corruption")  # those that part a text in what is given and what is asked for
SPLITS = ("uniform", "fraction", "separator")


def _share(option: str, value: float, *, ends: bool) -> None:
    inside = 0 <= value <= 1 if ends else 0 < value < 1
    if not inside:
        raise ModelError(f"{option}={value}: must be {'from 0 to 1' if ends else 'above 0 and below 1'}")


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{option}={value}: choose one of {', '.join(choices)}")


def _refuse_changed(config: Any, section: str, why: str, cure: str) -> None:
    for option in fields(config):
        factory = option.default_factory
        plain = option.default if factory is MISSING else factory()
        if getattr(config, option.name) != plain:
            raise ModelError(f"{section}.{option.name}={getattr(config, option.name)}: has no effect: {why}; {cure}")


@dataclass(frozen=True)
class PrefixConfig:
    """Prefix LM: the loss counts only what comes after a split point."""

    split: str = "uniform"
    """Where the prefix ends: uniform, anywhere alike; fraction, at a fixed share; separator, after the first
    objective.tokens.separator of the text (without one, all of it is predicted)."""
    fraction: float = 0.5
    """split=fraction only: share of the tokens that are the prefix."""

    def __post_init__(self) -> None:
        """Refuse a fraction without effect."""
        _one_of("objective.prefix_lm.split", self.split, SPLITS)
        _share("objective.prefix_lm.fraction", self.fraction, ends=False)
        if self.split != "fraction" and self.fraction != PrefixConfig.fraction:
            raise ModelError(
                f"objective.prefix_lm.fraction={self.fraction}: has no effect with objective.prefix_lm.split={self.split}; "
                "leave it out or set split=fraction"
            )


@dataclass(frozen=True)
class MaskedConfig:
    """Masked LM (BERT, arXiv 1810.04805): hidden tokens are predicted where they stand, by a model that sees both ways."""

    rate: float = 0.15
    """Share of the tokens that are predicted; at the beginning, where final_rate says otherwise."""
    final_rate: float = 0.0
    """Rate that is reached linearly over rate_tokens; 0 for `rate` throughout."""
    rate_tokens: int = 0
    """Tokens of the run over which the rate goes from `rate` to `final_rate`."""
    mask_share: float = 0.8
    """Of the predicted tokens, the share that is replaced by objective.tokens.mask."""
    random_share: float = 0.1
    """Of the predicted tokens, the share that is replaced by any other token of the vocabulary; the rest stays."""
    whole_word: bool = False
    """Choose whole words instead of tokens (a word goes on where one token ends and the next begins inside of it)."""
    ngram_shares: tuple[float, ...] = (1.0,)
    """Shares of runs of 1, 2, 3, … tokens (or words) that are chosen together; MacBERT has 0.4, 0.3, 0.2, 0.1."""

    def __post_init__(self) -> None:
        """Refuse what is no share, and half of a schedule."""
        _share("objective.masked_lm.rate", self.rate, ends=False)
        if self.final_rate:
            _share("objective.masked_lm.final_rate", self.final_rate, ends=False)
        if (self.final_rate > 0) != (self.rate_tokens > 0) or self.rate_tokens < 0:
            raise ModelError(
                f"objective.masked_lm.final_rate={self.final_rate}: needs objective.masked_lm.rate_tokens={self.rate_tokens} "
                "above 0, and the other way round; set both or neither"
            )
        for option in ("mask_share", "random_share"):
            _share(f"objective.masked_lm.{option}", getattr(self, option), ends=True)
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ModelError(
                f"objective.masked_lm.random_share={self.random_share}: with objective.masked_lm.mask_share={self.mask_share} "
                "more than 1; lower one of them"
            )
        shares = self.ngram_shares
        if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ModelError(
                f"objective.masked_lm.ngram_shares={list(shares)}: must be shares of 1, 2, 3, … that add up to 1"
            )


@dataclass(frozen=True)
class SpanConfig:
    """Span corruption (T5, arXiv 1910.10683): spans are taken out, and told after the rest, each behind its sentinel."""

    rate: float = 0.15
    """Share of the tokens that are taken out."""
    final_rate: float = 0.0
    """Above 0: the rate of each text is drawn uniformly between `rate` and this."""
    mean_length: float = 3.0
    """Mean length of a span in tokens."""
    sentinels: int = 100
    """Sentinels in the vocabulary, which bound the number of spans of one text."""
    separator: bool = False
    """Put objective.tokens.separator between the text and what was taken out of it (CodeGen2)."""
    end_of_span: bool = False
    """End each span that was taken out with objective.tokens.end_of_span (CodeGen2)."""

    def __post_init__(self) -> None:
        """Refuse what leaves nothing."""
        _share("objective.span_corruption.rate", self.rate, ends=False)
        if self.final_rate:
            _share("objective.span_corruption.final_rate", self.final_rate, ends=False)
        for option in ("mean_length", "sentinels"):
            if getattr(self, option) < 1:
                raise ModelError(f"objective.span_corruption.{option}={getattr(self, option)}: must be at least 1")


@dataclass(frozen=True)
class MiddleConfig:
    """Fill in the middle (arXiv 2207.14255): of each document, the middle is moved to its end."""

    rate: float = 0.5
    """Share of the documents that are rearranged."""
    spm_rate: float = 0.5
    """Of these, the share told as suffix, prefix, middle; the others as prefix, suffix, middle."""
    level: str = "token"
    """Where a document may be cut: token, between tokens; character, anywhere in its text, which is then encoded anew."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for option in ("rate", "spm_rate"):
            _share(f"objective.fill_in_the_middle.{option}", getattr(self, option), ends=True)
        _one_of("objective.fill_in_the_middle.level", self.level, ("token", "character"))


@dataclass(frozen=True)
class TokenNames:
    """Names of special tokens, which the corpus's tokenizer must have where the objective uses them."""

    mask: str = "<|mask|>"
    """What masked LM writes over a token."""
    sentinel: str = "<|sentinel_{}|>"
    """Sentinels of span corruption; {} is their number, from 0."""
    separator: str = "<|sep|>"
    """Between a source and its target."""
    end_of_span: str = "<|end_of_span|>"
    """Ends a span that was taken out."""
    fim_prefix: str = "<|fim_prefix|>"
    """Before the prefix of a document whose middle was moved."""
    fim_middle: str = "<|fim_middle|>"
    """Before its middle."""
    fim_suffix: str = "<|fim_suffix|>"
    """Before its suffix."""

    def __post_init__(self) -> None:
        """Refuse one name for all sentinels."""
        if "{}" not in self.sentinel:
            raise ModelError(
                f"objective.tokens.sentinel={self.sentinel}: must hold {{}}, which becomes a sentinel's number"
            )


@dataclass(frozen=True)
class WeightConfig:
    """How much targets count, by metadata of their documents."""

    column: str = ""
    """Column of the corpus that decides how much a document's tokens count; empty for none."""
    table: dict = field(default_factory=dict)
    """Weight of each value of the column, e.g. {wiki: 2.0, web: 0.5}; empty takes the column's numbers as weights."""
    default: float = 1.0
    """Weight where the table has not the value, or the column is empty."""
    low: float = 0.0
    """Smallest weight that a number of the column can give."""
    high: float = 1.0
    """Largest weight that a number of the column can give."""
    by: str = "token"
    """token: each token has its document's weight; sample: all tokens of a sample have the mean of theirs."""

    def __post_init__(self) -> None:
        """Refuse options without effect."""
        _one_of("objective.weights.by", self.by, ("token", "sample"))
        if not self.column:
            _refuse_changed(self, "objective.weights", "objective.weights.column is empty", "name a column")
        elif self.table and (self.low, self.high) != (WeightConfig.low, WeightConfig.high):
            raise ModelError(
                f"objective.weights.low={self.low}, high={self.high}: bound a column's numbers, and have no effect with "
                "objective.weights.table; leave them out"
            )
        if (
            not 0 <= self.low < self.high
            or self.default < 0
            or any(float(weight) < 0 for weight in self.table.values())
        ):
            raise ModelError(
                f"objective.weights.low={self.low}, high={self.high}: weights must be at least 0, and high above low"
            )


@dataclass(frozen=True)
class ReweightConfig:
    """Weights of samples by their losses while they are trained on (arXiv 2502.06733); losses of steps are told with them."""

    name: str = "none"
    """none; linupper, low losses count less; quadratic, low and high ones do; extremes, the middle does. The rule stands in
    parallel/engines/loss.py; it looks at the sequences of one micro-batch."""
    temperature: float = 1.0
    """Divides the scores, which lie between -1 and 1, before a softmax makes weights of them: the lower, the more uneven."""
    cap: float = 0.0
    """linupper only: place between the lowest loss (-1) and the highest (1) above which weights grow no more."""

    def __post_init__(self) -> None:
        """Refuse options without effect."""
        _one_of("objective.reweight.name", self.name, ("none", "linupper", "quadratic", "extremes"))
        if self.temperature <= 0:
            raise ModelError(f"objective.reweight.temperature={self.temperature}: must be above 0")
        if not -1 < self.cap <= 1:
            raise ModelError(f"objective.reweight.cap={self.cap}: must be above -1, the lowest loss, and at most 1")
        if self.name == "none":
            _refuse_changed(self, "objective.reweight", "objective.reweight.name=none", "set linupper or another")
        elif self.name != "linupper" and self.cap != ReweightConfig.cap:
            raise ModelError(
                f"objective.reweight.cap={self.cap}: has no effect with objective.reweight.name={self.name}; leave it out"
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the model must predict."""

    name: str = "causal"
    """causal: every next token; prefix_lm; masked_lm; span_corruption; fill_in_the_middle; mixture: of those in `mixture`,
    chosen anew for each sample."""
    mixture: tuple[ObjectiveConfig, ...] = ()
    """name=mixture only: objectives with their options and a `weight` each, e.g. [{name: causal, weight: 1}, …]."""
    weight: float = 1.0
    """In a mixture only: its share of the samples, relative to the other weights."""
    unit: str = "sample"
    """prefix_lm and span_corruption: what is split or corrupted as one: sample, all that was packed together; document, each
    document by itself."""
    mode: str = ""
    """prefix_lm and span_corruption: a special token before each unit that says what is asked (UL2's [R], [S], [X])."""
    prefix_lm: PrefixConfig = PrefixConfig()
    """Options of name=prefix_lm."""
    masked_lm: MaskedConfig = MaskedConfig()
    """Options of name=masked_lm."""
    span_corruption: SpanConfig = SpanConfig()
    """Options of name=span_corruption."""
    fill_in_the_middle: MiddleConfig = MiddleConfig()
    """Options of name=fill_in_the_middle."""
    tokens: TokenNames = TokenNames()
    """Names of special tokens."""
    weights: WeightConfig = WeightConfig()
    """How much targets count, by metadata."""
    reweight: ReweightConfig = ReweightConfig()
    """How much samples count, by their losses."""

    def __post_init__(self) -> None:
        """Refuse unknown objectives and options of others."""
        _one_of("objective.name", self.name, OBJECTIVE_NAMES)
        _one_of("objective.unit", self.unit, ("sample", "document"))
        for section in ("prefix_lm", "masked_lm", "span_corruption", "fill_in_the_middle"):
            if self.name != section and getattr(self, section) != type(getattr(self, section))():
                raise ModelError(
                    f"objective.{section}: has no effect with objective.name={self.name}; leave its options out or set "
                    f"objective.name={section}"
                )
        if self.name not in PAIRS:
            for option in ("unit", "mode"):
                if getattr(self, option) != getattr(ObjectiveConfig, option):
                    raise ModelError(
                        f"objective.{option}={getattr(self, option)}: has no effect with objective.name={self.name}; leave "
                        f"it out or choose one of {', '.join(PAIRS)}"
                    )
        if self.weight <= 0:
            raise ModelError(f"objective.weight={self.weight}: must be above 0; leave out what shall not be drawn")
        self._check_mixture()

    def _check_mixture(self) -> None:
        if (self.name == "mixture") != bool(self.mixture):
            raise ModelError(
                f"objective.mixture: has {len(self.mixture)} entries with objective.name={self.name}; a mixture needs "
                "objective.name=mixture and at least one entry"
            )
        for index, part in enumerate(self.mixture):
            place = f"objective.mixture[{index}]"
            if part.name == "mixture":
                raise ModelError(f"{place}.name=mixture: a mixture has no mixtures in it; list their parts")
            for option in ("tokens", "weights", "reweight"):
                if getattr(part, option) != getattr(ObjectiveConfig, option):
                    raise ModelError(f"{place}.{option}: is one for all parts of a mixture; set objective.{option}")

    @property
    def parts(self) -> tuple[ObjectiveConfig, ...]:
        """The objectives of a mixture, or the only one."""
        return self.mixture or (self,)

    def special_tokens(self) -> dict[str, str]:
        """Option -> name of every special token that the objective writes."""
        found: dict[str, str] = {}
        for part in self.parts:
            names = []
            if part.name == "masked_lm" and part.masked_lm.mask_share:
                names = ["mask"]
            if part.name == "fill_in_the_middle":
                names = ["fim_prefix", "fim_middle", "fim_suffix"]
            if part.name == "prefix_lm" and part.prefix_lm.split == "separator":
                names = ["separator"]
            if part.name == "span_corruption":
                spans = part.span_corruption
                names = ["separator"] * spans.separator + ["end_of_span"] * spans.end_of_span
                for number in range(spans.sentinels):
                    found[f"objective.tokens.sentinel[{number}]"] = self.tokens.sentinel.replace("{}", str(number))
            found.update({f"objective.tokens.{name}": getattr(self.tokens, name) for name in names})
            if part.mode:
                found[f"objective.mode={part.mode}"] = part.mode
        return found
