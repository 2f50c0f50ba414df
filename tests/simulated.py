"""Levels of tests, by simulation: how often a true null is rejected, and the truth is covered.

Each study has resamples of its own, a tenth of the usual number, which costs the level .003 at
most: a thousand studies are a second.
"""

import contextlib
import functools
from typing import NamedTuple
from unittest import mock

import numpy as np

from sharpjax.protocol.tests import bootstrap, catalog, shuffle

ALPHA = 0.05


def named(name):
    """A test of the catalog, as a function of samples and options."""
    return functools.partial(catalog.run, name)


def plain(result):
    """A result that can be compared: its 95 % interval in place of the function."""
    return result._replace(interval=result.interval(1 - ALPHA))


class Rates(NamedTuple):
    """Shares of studies with p <= .05 either way, and with the truth in the 95 % interval."""

    level: float
    opposite: float
    coverage: float


@contextlib.contextmanager
def few_resamples():
    with (
        mock.patch.object(bootstrap, "RESAMPLES", 999),
        mock.patch.object(shuffle, "NUM_ORDERS", 999),
    ):
        yield


def rates(test, draw, truth=0.0, *, studies=1000, null=None, alternative="greater"):
    """Of studies in which the effect is `truth`, and the null is true."""
    generator = np.random.default_rng(0)
    counted = []
    with few_resamples():
        for seed in range(studies):
            result = test(draw(generator), alternative=alternative, null=null, seed=seed)
            low, high = result.interval(1 - ALPHA)
            rejected = (result.p <= ALPHA, result.opposite_p <= ALPHA)
            counted.append((*rejected, low <= truth <= high))
    return Rates(*np.mean(counted, axis=0))


def level(test, draw, *, studies=1000, alternative="greater", null=None):
    """The share of simulated studies with p <= .05."""
    return rates(test, draw, studies=studies, alternative=alternative, null=null).level
