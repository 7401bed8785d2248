"""The random numbers of views: from one numpy generator an image or, the same numbers, for many images at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["STRONG", "WEAK", "uniforms", "view_generator"]

# The first word of every generator's seed keeps the kinds of randomness apart; the samplers have 1.
STRONG, WEAK = 2, 3

_Words = NDArray[np.uint32]
_Longs = NDArray[np.uint64]
_Long128 = tuple[_Longs, _Longs]  # upper and lower half

# numpy.random.SeedSequence, whose algorithm numpy guarantees.
_POOL = 4
_HASH_INIT, _HASH_MULTIPLIER = 0x43B0D7E5, 0x931E8875
_STATE_INIT, _STATE_MULTIPLIER = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
# numpy.random.PCG64: x -> x * multiplier + increment, modulo 2**128, in two halves.
_MULTIPLIER_HIGH, _MULTIPLIER_LOW = np.uint64(2549297995355413924), np.uint64(4865540595714422341)
_LOW_HALF, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ONE = np.uint64(1)


def view_generator(kind: int, seed: int, epoch: int, index: int, repetition: int) -> np.random.Generator:
    """The generator of one view of one image.

    Args:
        kind: :data:`STRONG` or :data:`WEAK`.
        seed: of the run, 0 ... 2**32 - 1.
        epoch: 0-based.
        index: of the image.
        repetition: how often this epoch has shown it before.
    """
    # Without a repetition the seed has four words, as in runs from before there were any.
    return np.random.default_rng((kind, seed, epoch, index, *([repetition] if repetition else [])))


def uniforms(
    kind: int, seed: int, epoch: int, indices: NDArray[np.int64], repetitions: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """The first ``count`` numbers of ``view_generator(...).random()`` for n images: float64 (n, count) in [0, 1).

    To make one generator takes numpy 30 times as long as this takes for an image of many.

    Args:
        kind: :data:`STRONG` or :data:`WEAK`.
        seed: of the run, 0 ... 2**32 - 1.
        epoch: 0-based.
        indices: int64 (n,) of the images.
        repetitions: int64 (n,), how often this epoch has shown each before.
        count: numbers an image.
    """
    words = [np.full(len(indices), word, np.uint32) for word in (kind, seed, epoch)]
    pool = _seed_pool([*words, indices.astype(np.uint32)], repetitions.astype(np.uint32))
    state, increment = _pcg64(_generated_state(pool))
    numbers = np.empty((len(indices), count))
    for place in range(count):
        state = _stepped(state, increment)
        numbers[:, place] = (_output(state) >> np.uint64(11)) * 2.0**-53
    return numbers


def _seed_pool(words: list[_Words], repetitions: _Words) -> list[_Words]:
    """The pool of SeedSequence(words), or of SeedSequence((*words, repetition)) where there is a repetition."""
    constant = _HASH_INIT

    def hashed(value: _Words) -> _Words:
        nonlocal constant
        value = value ^ np.uint32(constant)
        constant = constant * _HASH_MULTIPLIER & 0xFFFFFFFF
        return _shifted(value * np.uint32(constant))

    pool = [hashed(word) for word in words]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mixed(pool[target], hashed(pool[source]))
    if not repetitions.any():
        return pool
    again = [_mixed(word, hashed(repetitions)) for word in pool]
    return [np.where(repetitions > 0, new, old) for new, old in zip(again, pool, strict=True)]


def _mixed(left: _Words, right: _Words) -> _Words:
    return _shifted(_MIX_LEFT * left - _MIX_RIGHT * right)


def _shifted(value: _Words) -> _Words:
    shifted: _Words = value ^ (value >> _SHIFT)
    return shifted


def _generated_state(pool: list[_Words]) -> list[_Longs]:
    """SeedSequence.generate_state(4, uint64)."""
    constant, halves = _STATE_INIT, []
    for place in range(2 * _POOL):
        value = pool[place % _POOL] ^ np.uint32(constant)
        constant = constant * _STATE_MULTIPLIER & 0xFFFFFFFF
        halves.append(_shifted(value * np.uint32(constant)).astype(np.uint64))
    return [low | (high << _HALF) for low, high in zip(halves[::2], halves[1::2], strict=True)]


def _pcg64(words: list[_Longs]) -> tuple[_Long128, _Long128]:
    """State and increment that PCG64 starts from."""
    start, (high, low) = (words[0], words[1]), words[2:]
    increment = ((high << _ONE) | (low >> np.uint64(63)), (low << _ONE) | _ONE)
    return _stepped(_sum(increment, start), increment), increment


def _stepped(state: _Long128, increment: _Long128) -> _Long128:
    high, low = state
    upper = _upper_product(low, _MULTIPLIER_LOW) + high * _MULTIPLIER_LOW + low * _MULTIPLIER_HIGH
    return _sum((upper, low * _MULTIPLIER_LOW), increment)


def _sum(left: _Long128, right: _Long128) -> _Long128:
    low = left[1] + right[1]
    return left[0] + right[0] + (low < right[1]), low


def _upper_product(left: _Longs, right: np.uint64) -> _Longs:
    """The upper 64 of the 128 bits of a product."""
    high, low = left >> _HALF, left & _LOW_HALF
    right_high, right_low = right >> _HALF, right & _LOW_HALF
    middle = high * right_low + (low * right_low >> _HALF)
    other = low * right_high + (middle & _LOW_HALF)
    upper: _Longs = high * right_high + (middle >> _HALF) + (other >> _HALF)
    return upper


def _output(state: _Long128) -> _Longs:
    high, low = state
    mixed, turn = high ^ low, high >> np.uint64(58)
    turned: _Longs = (mixed >> turn) | (mixed << (-turn & np.uint64(63)))
    return turned
