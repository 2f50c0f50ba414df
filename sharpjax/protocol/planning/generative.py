r"""Simulated samples with a known effect: what studies would see if the world were so.

One model for each kind of test in `protocol.tests.catalog`, in which an effect of d is a shift of d
standard deviations, always of the first group, upwards:

    one           truth values with chance sin^2(asin sqrt(p0) + d / 2), p0 the null (Cohen's h)
    independent   normal, standard deviation 1, the first group d higher (one group: d above the
                  null)
    paired        the same, units correlated by 0.5, so that differences have standard deviation 1
    many          the means fall in equal steps over a range of d ('ratio' tests: only the first
                  group is d higher)
    many-paired   the same, units correlated by 0.5
    correlation   the first and the last group bivariate normal with r = d / sqrt(d^2 + 4), which
                  is the correlation of a difference of d with membership of two equal groups; those
                  between are independent of both
    times         exponential times, all seen; those of the first group exp(d) times as long
    pairwise      (a_i + a_j) / 2 for models i, j, with a normal, standard deviation 1; d higher

All means are 5 standard deviations above 0, which matters to ratios alone. Power found in this way
holds for data like these. A pilot run's samples can take the place of the normal noise; then its
own means and standard deviations count.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from sharpjax.errors import UserError
from sharpjax.protocol.tests.result import Samples

LEVEL = 5.0
PAIR_CORRELATION = 0.5
Shift = Literal["first", "steps"]
SHIFTED = ("independent", "paired", "many", "many-paired")


class Batch(NamedTuple):
    """Many simulated studies: arrays with a leading axis of studies, one for each group."""

    groups: tuple[np.ndarray, ...]
    timed: bool = False

    def samples(self) -> Iterator[Samples]:
        """The samples of one study after the other."""
        for study in range(len(self.groups[0])):
            groups = tuple(group[study] for group in self.groups)
            seen = tuple(np.ones(len(g), bool) for g in groups) if self.timed else None
            yield Samples(groups, seen)


def draw(
    kind: str,
    effect: float,
    sizes: tuple[int, ...],
    *,
    num_studies: int,
    seed: int = 0,
    null: float = 0.5,
    shift: Shift = "steps",
    pilot: Samples | None = None,
) -> Batch:
    """Simulate studies. Those of one seed share their noise, whatever the effect.

    Args:
        kind: of the test.
        effect: d; negative for an effect of the other sign.
        sizes: number of units in each group (of models, for 'pairwise').
        null: for 'one': the proportion at no effect; of a single group: its mean at none.
        shift: which groups: the 'first' by d and the others not, or all by equal 'steps'
            from d down to 0. A single group shifts as all.
        pilot: samples whose units, centred and drawn with replacement, replace the normal noise.

    Raises:
        UserError: the pilot is of another kind or number of groups, or has no spread.

    >>> batch = draw("independent", 1.0, (2000, 2000), num_studies=1)
    >>> first, second = next(batch.samples()).groups
    >>> round(float(first.mean() - second.mean()), 1)
    1.0
    """
    rng = np.random.default_rng(seed)
    if pilot is not None:
        level, noise = _from_pilot(rng, kind, pilot, sizes, num_studies)
        return _shifted(level, noise, effect, shift)
    if kind == "one":
        chance = proportion(effect, null)
        return Batch(tuple((rng.random((num_studies, n)) < chance).astype(float) for n in sizes))
    if kind == "times":
        times = [rng.standard_exponential((num_studies, n)) for n in sizes]
        return Batch((times[0] * math.exp(effect), *times[1:]), timed=True)
    noise = [rng.standard_normal((num_studies, n)) for n in sizes]
    if kind == "pairwise":
        diagonals = [np.where(np.eye(n, dtype=bool), np.nan, 0.0) for n in sizes]
        noise = [(a[:, :, None] + a[:, None, :]) / 2 for a in noise]
        noise = [square + nan for square, nan in zip(noise, diagonals, strict=True)]
    if kind == "correlation":
        r = correlation(effect)
        return Batch((*noise[:-1], r * noise[0] + math.sqrt(1 - r**2) * noise[-1]))
    if kind in ("paired", "many-paired"):
        shared = math.sqrt(PAIR_CORRELATION) * rng.standard_normal((num_studies, sizes[0]))
        noise = [shared + math.sqrt(1 - PAIR_CORRELATION) * z for z in noise]
    level = null if len(sizes) == 1 else LEVEL
    return _shifted(level, noise, effect, shift)


def proportion(effect: float, null: float) -> float:
    """The proportion that lies Cohen's h = `effect` from `null`, kept within [0, 1].

    >>> round(proportion(0.5, 0.5), 3)
    0.74
    """
    angle = math.asin(math.sqrt(null)) + effect / 2
    return math.sin(min(max(angle, 0.0), math.pi / 2)) ** 2


def correlation(effect: float) -> float:
    """Pearson's r of an effect of d standard deviations: d / sqrt(d^2 + 4)."""
    return effect / math.hypot(effect, 2)


def spread(samples: Samples, *, paired: bool) -> float:
    """The standard deviation in which effects are measured; NaN where a group has one unit.

    Of the differences of the first two groups where `paired`, else of the groups, pooled.
    """
    groups = list(samples.groups)
    if min(len(g) for g in groups) < 2:
        return math.nan
    if paired:
        differences = groups[0] - groups[1] if len(groups) > 1 else groups[0]
        return float(np.std(differences, ddof=1))
    return math.sqrt(sum(float(np.var(g, ddof=1)) for g in groups) / len(groups))


def _shifted(level: float, noise: list[np.ndarray], effect: float, shift: Shift) -> Batch:
    place = np.arange(len(noise))
    steps = {
        "first": 1.0 * (place == 0),
        "steps": 1 - place / max(len(noise) - 1, 1),
    }[shift]
    pairs = zip(noise, steps, strict=True)
    return Batch(tuple([level + z + effect * float(step) for z, step in pairs]))


def _from_pilot(
    rng: np.random.Generator, kind: str, pilot: Samples, sizes: tuple[int, ...], num_studies: int
) -> tuple[float, list[np.ndarray]]:
    """The level and the noise, in units of the pilot's spread."""
    paired = kind in ("paired", "many-paired")
    if kind not in SHIFTED:
        raise UserError(
            f"power from a pilot: a test of kind '{kind}' has no shift to put into its samples; "
            f"leave the pilot out."
        )
    if len(pilot.groups) != len(sizes) or min(len(g) for g in pilot.groups) < 2:
        raise UserError(
            f"power from a pilot: {len(sizes)} groups of 2 or more units are needed, it has "
            f"{[len(g) for g in pilot.groups]}."
        )
    scale = spread(pilot, paired=paired)
    if not scale > 0:
        raise UserError("power from a pilot: its units are all alike, so effects have no unit.")
    picks = [
        rng.integers(len(g), size=(num_studies, n))
        for g, n in zip(pilot.groups, sizes, strict=True)
    ]
    picks = [picks[0]] * len(picks) if paired else picks
    noise = [(g - g.mean())[pick] / scale for g, pick in zip(pilot.groups, picks, strict=True)]
    return float(pilot.groups[-1].mean()) / scale, noise
