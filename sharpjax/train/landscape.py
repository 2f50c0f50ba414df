"""The loss along a line through a model, scaled by its filters."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import geometry
from sharpjax.data import DataSpec, Splits
from sharpjax.errors import UserError
from sharpjax.losses import Classification
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import Results
from sharpjax.train.sharpness import as_measured, frozen_batch


@dataclasses.dataclass(frozen=True)
class Landscape:
    """Stores the loss of the first training images, without augmentation, at `num_points` places
    from `-reach` to `reach` along one random direction, normalised by filter (Li et al., 2018,
    arXiv 1712.09913). The arrays are `x` and `loss`, [num_points]. The model is in eval mode with
    its own BatchNorm statistics; biases and normalisation parameters do not move.

    One picture shows one random direction. Each seed draws its own; models of a seed, of any arm,
    that are measured at the same step share its normal numbers. There are no rows: what is tested
    is measured by `train.sharpness`.

    Cost: a forward pass per point.

    Attributes:
        num_points: an odd number, so that 0 is one of them.
    """

    when: When
    num_examples: int = 256
    num_points: int = 21
    reach: float = 1.0
    name: str = "landscape"
    kind: str = "geometry"
    metrics: tuple[str, ...] = ()

    counted: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        if self.num_points < 3 or self.num_points % 2 == 0:
            raise UserError(
                f"train.Landscape: num_points={self.num_points}; give an odd number from 3 on, so "
                f"that the model itself is one of the points."
            )

    def cost(self, spec: DataSpec) -> Cost:
        return Cost(self.num_points * self.num_examples, stored=2 * 4 * self.num_points)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        loss: Any = Classification(as_measured(subject.model), subject.state.variables)
        params = subject.state.params
        batch = frozen_batch(data, jnp.arange(self.num_examples), None, key)
        batch.pop("true_label", None)
        direction = geometry.random_direction(key, params, per="filter")
        x = np.linspace(-self.reach, self.reach, self.num_points)
        found = geometry.landscape(loss, params, batch, direction, x=x)
        values = np.asarray(found.values, np.float32)
        return carry, Results({}, {"x": np.asarray(x, np.float32), "loss": values})


def profiles_of(stored: Any) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """The curves by member that `Landscape` stored for an arm, for `plots.profiles`."""
    return {member: (own["x"], own["loss"]) for member, own in stored.items() if "loss" in own}
