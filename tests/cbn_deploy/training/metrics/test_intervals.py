from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from cbn_deploy.training.metrics import wilson_interval
from tests.reference.tolerances import tolerance


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_against_scipy(pair, level):
    successes, trials = pair
    expected = binomtest(successes, trials).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(wilson_interval(successes, trials, level), tuple(expected), **tolerance("float64"))


def test_against_the_formula_by_hand():
    # 8 of 10, z = 1.959964: (0.8 + 0.19207 -+ 1.959964 sqrt(0.016 + 0.0096036)) / 1.384146
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.4901625, abs=1e-7)
    assert high == pytest.approx(0.9433178, abs=1e-7)


def test_certainty_is_never_claimed():
    assert wilson_interval(0, 5)[0] == 0.0
    assert 0.4 < wilson_interval(0, 5)[1] < 0.5
    assert wilson_interval(5, 5)[1] == 1.0
    assert math.isclose(wilson_interval(5, 5)[0], 1 - wilson_interval(0, 5)[1])


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 3), (4, 3), (1, 3, 0.0), (1, 3, 1.0)])
def test_impossible_arguments(arguments):
    with pytest.raises(ValueError, match="must"):
        wilson_interval(*arguments)
