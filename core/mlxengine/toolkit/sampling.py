"""Samplers and logits processors for continuous batches on mlx.

A sampler takes log-probabilities of shape (rows, vocabulary) and returns token ids of shape (rows,). Rows
that sample alike must share one *object*, because a batch generator samples all of them in a single call
only then; so samplers are interned by their settings. A seeded row has a sampler of its own, whose key
depends on the seed and on the position in the answer and on nothing else: the same seed gives the same
text alone and in any batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import mlx.core as mx
from attrs import field, frozen

Sampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


@frozen
class SamplerSettings:
    """How to choose a token: 0 (``top_p`` and ``temperature``: 1 and 0) turns a filter off.

    Filters apply to the untempered distribution, in the order top-p, min-p, top-k, as mlx-lm's do.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


def greedy(logprobs: mx.array) -> mx.array:
    """The most probable token of each row."""
    return mx.argmax(logprobs, axis=-1)


@functools.lru_cache(maxsize=512)
def sampler_for(settings: SamplerSettings) -> Sampler:
    """The sampler of these settings: always the same object for equal settings.

    Unseeded rows draw from mlx's global random state.
    """
    if settings.temperature == 0:
        return greedy

    def sample(logprobs: mx.array) -> mx.array:
        return mx.random.categorical(_tempered(logprobs, settings))

    return sample


class SeededSampler:
    """A sampler for one row whose draws depend on ``seed`` and ``position`` alone.

    ``position`` is the number of tokens drawn so far; set it when a row is put back into a batch.
    """

    def __init__(self, settings: SamplerSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self.position = 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        key = mx.random.key(_mix(self._seed, self.position))
        self.position += 1
        return mx.random.categorical(_tempered(logprobs, self._settings), key=key)


def _mix(seed: int, position: int) -> int:
    # SplitMix64 (Steele, Lea, Flood 2014): neighbouring seeds and positions give unrelated keys.
    value = (seed + (position + 1) * _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _tempered(logprobs: mx.array, settings: SamplerSettings) -> mx.array:
    if settings.top_p < 1:
        logprobs = _top_p(logprobs, settings.top_p)
    if settings.min_p > 0:
        best = mx.max(logprobs, axis=-1, keepdims=True)
        logprobs = mx.where(logprobs < best + math.log(settings.min_p), -mx.inf, logprobs)
    if 0 < settings.top_k < logprobs.shape[-1]:
        worst = mx.min(mx.topk(logprobs, settings.top_k, axis=-1), axis=-1, keepdims=True)
        logprobs = mx.where(logprobs < worst, -mx.inf, logprobs)
    return logprobs / settings.temperature


def _top_p(logprobs: mx.array, mass: float) -> mx.array:
    # Nucleus sampling (Holtzman et al. 2019): a token stays if the tokens before it hold less than `mass`.
    ordered = -mx.sort(-logprobs, axis=-1)
    probs = mx.softmax(ordered.astype(mx.float32), axis=-1)
    before = mx.cumsum(probs, axis=-1) - probs
    kept = mx.maximum(mx.sum(before < mass, axis=-1, keepdims=True), 1)
    worst = mx.take_along_axis(ordered, kept - 1, axis=-1)
    return mx.where(logprobs < worst, -mx.inf, logprobs)


@frozen
class PenaltySettings:
    """What is done to the logits of a row before sampling; the defaults do nothing."""

    repetition: float = 1.0
    repetition_context: int = 20
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = field(default=())


def processors_for(settings: PenaltySettings, prompt_length: int) -> list[LogitsProcessor]:
    """Logits processors of one row, in the order bias, repetition, presence and frequency.

    Each takes the row's tokens so far, shape (length,), of which the first ``prompt_length`` are the
    prompt, and its logits, shape (1, vocabulary). The repetition penalty (Keskar et al. 2019) looks at
    the last ``repetition_context`` tokens, prompt included; presence and frequency count generated
    tokens only, as OpenAI's API does.
    """
    found: list[LogitsProcessor] = []
    if settings.bias:
        found.append(_bias(settings.bias))
    if settings.repetition != 1.0:
        found.append(_repetition(settings.repetition, settings.repetition_context))
    if settings.presence or settings.frequency:
        found.append(_counts(settings.presence, settings.frequency, prompt_length))
    return found


def _bias(pairs: Sequence[tuple[int, float]]) -> LogitsProcessor:
    indices = mx.array([token for token, _ in pairs])
    values = mx.array([value for _, value in pairs], dtype=mx.float32)

    def process(_tokens: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, indices].add(values.astype(logits.dtype))

    return process


def _repetition(penalty: float, context: int) -> LogitsProcessor:
    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        recent = tokens[-context:]
        seen = logits[:, recent]
        logits[:, recent] = mx.where(seen < 0, seen * penalty, seen / penalty)
        return logits

    return process


def _counts(presence: float, frequency: float, prompt_length: int) -> LogitsProcessor:
    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        generated = tokens[prompt_length:]
        if generated.size == 0:
            return logits
        counts = mx.zeros((logits.shape[-1],), dtype=mx.float32).at[generated].add(1.0)
        return logits - (presence * (counts > 0) + frequency * counts).astype(logits.dtype)

    return process


def guarded(processor: LogitsProcessor, failed: Callable[[Exception], None]) -> LogitsProcessor:
    """The processor with its failure reported instead of raised.

    An exception inside a shared step would leave the other rows' caches advanced and their answers
    wrong, so the row gets its logits back unchanged and ``failed`` is told.
    """

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        try:
            found = processor(tokens, logits)
            if found.shape != logits.shape:
                raise ValueError(f"a logits processor changed the shape {logits.shape} to {found.shape}")
        except Exception as error:
            failed(error)
            return logits
        return found

    return process


__all__ = [
    "LogitsProcessor",
    "PenaltySettings",
    "Sampler",
    "SamplerSettings",
    "SeededSampler",
    "greedy",
    "guarded",
    "processors_for",
    "sampler_for",
]
