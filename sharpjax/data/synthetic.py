"""Sets of float inputs that are computed, not read: surfaces for regression, and two circles.

Draws come from NumPy's `RandomState`, a frozen stream. Results are computed in float64 and rounded
to float32. They are the same on every machine, except in about one of 10^8 cases, when the cosines
of two mathematical libraries round to different sides.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sharpjax.data import label_noise
from sharpjax.data.examples import Examples, Loaded, Splits, loaded
from sharpjax.errors import UserError, unknown, whole_number


def _rastrigin(x: Any, y: Any) -> Any:
    return 20 + x**2 - 10 * np.cos(2 * np.pi * x) + y**2 - 10 * np.cos(2 * np.pi * y)


def _beale(x: Any, y: Any) -> Any:
    return sum((c - x + x * y**i) ** 2 for i, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


SURFACES: Mapping[str, Callable[[Any, Any], Any]] = {
    "sphere": lambda x, y: x**2 + y**2,
    "rosenbrock": lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
    "rastrigin": _rastrigin,
    "beale": _beale,
    "booth": lambda x, y: (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2,
    "three_hump_camel": lambda x, y: 2 * x**2 - 1.05 * x**4 + x**6 / 6 + x * y + y**2,
    "himmelblau": lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
}


@dataclasses.dataclass(frozen=True)
class Surface:
    """Regression of a test function of optimisation, z = f(x, y), on points that are uniform in
    [-bound, bound]^2.

    Inputs are float32 [N, 2], targets float32 [N, 1], without scaling. Each split has its own
    random stream, and a smaller split is the first part of a larger one.

    Attributes:
        name: a key of `SURFACES`.
        num_train, num_test: number of points in each split.
        bound: half the side of the square, above 0 and at most 1000.
        seed: of the points.

    Raises:
        UserError: an unknown name; a number out of range.

    >>> train = Surface("sphere", num_train=3).load().splits.train
    >>> bool(np.allclose((train.input**2).sum(1, keepdims=True), train.label))
    True
    """

    is_per_seed = False
    num_classes = 0
    num_validation = 0
    input_shape = (2,)
    input_dtype = "float32"

    name: str
    num_train: int = 10_000
    num_test: int = 10_000
    bound: float = 3.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in SURFACES:
            raise unknown("surface", self.name, SURFACES)
        for field, least in (("num_train", 1), ("num_test", 1), ("seed", 0)):
            whole_number("data.Surface", field, getattr(self, field), least=least)
        if not 0 < self.bound <= 1e3:
            raise UserError(
                f"data.Surface: bound={self.bound}; give a number above 0 and at most 1000."
            )
        if self.seed > label_noise.MAX_SEED:
            raise UserError(
                f"data.Surface: seed={self.seed}; give a whole number up to {label_noise.MAX_SEED}."
            )

    def load(self, key: jax.Array | None = None) -> Loaded:
        """The points of both splits, with their heights as targets."""
        del key
        return loaded(Splits(self._draw(0, self.num_train), self._draw(1, self.num_test)), 0)

    def _draw(self, split: int, num: int) -> Examples:
        random = np.random.RandomState([self.seed, split])
        point = random.uniform(-self.bound, self.bound, (num, 2)).astype(np.float32)
        x, y = point.astype(np.float64).T
        height = SURFACES[self.name](x, y)
        return Examples(point, height[:, None].astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Circles:
    """Two concentric circles, two classes: the unit circle (0) and one of radius `factor` (1).

    The training points are those of scikit-learn's `make_circles` without noise: evenly spaced on
    each circle, starting at the angle 0. Here the two classes alternate. The test points lie
    half-way between them, and there are as many. Inputs are float32 [N, 2].

    Attributes:
        num_train: an even number.
        factor: in (0, 1).
        label_noise, noise_seed, noise_kind: of the training labels, as in `data.Images`.

    Raises:
        UserError: a number out of range.

    >>> Circles(num_train=4, factor=0.5).load().splits.train.input.round(3).tolist()
    [[1.0, 0.0], [0.5, 0.0], [-1.0, 0.0], [-0.5, 0.0]]
    """

    is_per_seed = False
    num_classes = 2
    num_validation = 0
    input_shape = (2,)
    input_dtype = "float32"

    num_train: int = 100
    factor: float = 0.5
    label_noise: float = 0.0
    noise_seed: int = 0
    noise_kind: str = "other"

    def __post_init__(self) -> None:
        whole_number("data.Circles", "num_train", self.num_train, least=2)
        if self.num_train % 2:
            raise UserError(f"data.Circles: num_train={self.num_train}; give an even number.")
        if not 0 < self.factor < 1:
            raise UserError(
                f"data.Circles: factor={self.factor}; give the radius of the inner circle, above 0 "
                "and below 1."
            )
        label_noise.check(
            self.label_noise, self.noise_seed, self.noise_kind, num_labels=self.num_train
        )

    @property
    def num_test(self) -> int:
        return self.num_train

    def load(self, key: jax.Array | None = None) -> Loaded:
        """The points of both splits, with their circles as classes."""
        del key
        train = label_noise.noisy(
            self._points(0.0),
            share=self.label_noise,
            num_classes=2,
            seed=self.noise_seed,
            kind=self.noise_kind,
        )
        return loaded(Splits(train, self._points(0.5)), 2)

    def _points(self, offset: float) -> Examples:
        which, label = np.divmod(np.arange(self.num_train), 2)
        angle = 2 * np.pi * (which + offset) / (self.num_train // 2)
        radius = np.where(label, self.factor, 1.0)
        point = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return Examples(point.astype(np.float32), label.astype(np.int32))
