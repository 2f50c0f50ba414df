"""The evaluators of a net that regresses a surface: its errors, and its sharpness by the authors'
statistic and by the definitions, side by side.

Everything is measured on the whole training set, test errors apart. The authors' statistic uses the
mean squared error; the definitions use half of it, which is what training minimises.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sharpjax import geometry, tree
from sharpjax.data import DataSpec, Splits, as_batch
from sharpjax.estimate import Estimate
from sharpjax.losses import Logits, SquaredError
from sharpjax.studies.papers import conventions
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import Results, exact, of, results

# Lengths of the authors' noise, as in the rows; the third is also the radius of the worst case.
RADII = ("0.0005", "0.005", "0.05", "0.5")
STATISTICS = ("mean", "std", "median", "max", "min")
WORST_CASE = "0.05"
HEAD = "head/kernel"


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MeanSquaredError:
    """The authors' loss, as a function of what noise is added to: here the parameters."""

    model: nn.Module = dataclasses.field(metadata={"static": True})

    def __call__(self, params: Any, batch: Any) -> jax.Array:
        return 2 * SquaredError()(Logits(self.model)(params, batch), batch)


_value = jax.jit(lambda loss, params, batch: loss(params, batch))
_gradient_norm = jax.jit(lambda loss, params, batch: tree.norm(jax.grad(loss)(params, batch)))


@dataclasses.dataclass(frozen=True)
class Errors:
    """The mean squared error on both sets, and that of the test set over the variance of its
    heights, which differs ten thousandfold between surfaces. A constant reaches 1."""

    when: When
    name: str = "errors"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = ("fit/train_mse", "fit/test_mse", "fit/test_relative")

    def cost(self, spec: DataSpec) -> Cost:
        return Cost(spec.num_train + spec.num_test)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        loss, params = MeanSquaredError(subject.model), subject.state.params
        train, test = (_value(loss, params, as_batch(s)) for s in (data.train, data.test))
        relative = np.asarray(test) / np.var(np.asarray(data.test.label, np.float64))
        found = (train, test, np.float32(relative))
        return carry, results(dict(zip(self.metrics, map(exact, found), strict=True)))


@dataclasses.dataclass(frozen=True)
class Noise:
    """The authors' SAM-sharpness: statistics of `|L(w + e) - L(w)| / rho` over draws of noise, by
    `rho`. Also what its mean is to first order, `sqrt(2 / pi) |g| / sqrt(P)`.

    The standard error of the mean is that over the draws.
    """

    when: When
    num_draws: int
    name: str = "noise"
    kind: str = "geometry"
    metrics: tuple[str, ...] = (
        *(f"authors/{name}" for name in STATISTICS),
        "authors/first_order",
    )

    def cost(self, spec: DataSpec) -> Cost:
        return Cost((len(RADII) * (1 + self.num_draws) + 3) * spec.num_train)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        loss, params = MeanSquaredError(subject.model), subject.state.params
        batch, count = as_batch(data.train), tree.size(params)
        rows: dict[Any, Estimate] = {}
        for i, radius in enumerate(RADII):
            changes = conventions.noise_changes(
                loss,
                params,
                batch,
                key=jax.random.fold_in(key, i),
                rho=float(radius),
                num_draws=self.num_draws,
                num_params=count,
            )
            values = np.abs(np.asarray(changes, np.float64)) / float(radius)
            for name in STATISTICS:
                found = exact(np.float32(getattr(np, name)(values)))
                if name == "mean":
                    error = np.float32(values.std(ddof=1) / np.sqrt(len(values)))
                    found = Estimate(found.value, error, np.int32(len(values)))
                rows[f"authors/{name}", of(rho=radius)] = found
        slope = np.asarray(_gradient_norm(loss, params, batch)) * np.sqrt(2 / np.pi / count)
        rows["authors/first_order", ()] = exact(np.float32(slope))
        return carry, Results(rows)


@dataclasses.dataclass(frozen=True)
class Definitions:
    """Sharpness by its definitions, of half the mean squared error.

    defined/lambda_1, lambda_1_residual, num_products, trace    of the Hessian
    defined/average_sharpness       by rho, at random points of the sphere: the mean rise, which
                                    comes from curvature
    defined/average_slope           at the same points, the part of the gradient
    defined/worst_case_sharpness    within 0.05
    defined/fisher_rao              `sqrt(w'Fw)`
    defined/relative_flatness, relative_flatness_normalised    of the last layer
    """

    when: When
    num_pairs: int
    tol: float
    max_products: int
    trace_error: float
    max_probes: int
    ascent_steps: int
    name: str = "definitions"
    kind: str = "geometry"
    metrics: tuple[str, ...] = tuple(
        f"defined/{name}"
        for name in (
            *("lambda_1", "lambda_1_residual", "num_products", "trace", "average_sharpness"),
            *("average_slope", "worst_case_sharpness", "fisher_rao", "relative_flatness"),
            "relative_flatness_normalised",
        )
    )

    def cost(self, spec: DataSpec) -> Cost:
        gradients = 3 * (self.max_products + self.max_probes + 2) + self.ascent_steps + 1
        values = len(RADII) * (1 + 2 * self.num_pairs)
        return Cost((3 * gradients + values) * spec.num_train)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        loss = geometry.composed(Logits(subject.model), SquaredError())
        problem = loss, subject.state.params, as_batch(data.train)
        keys = jax.random.split(key, 4)
        hessian = geometry.hessian(*problem)
        found = (
            geometry.top_eigenpairs(
                hessian, key=keys[0], tol=self.tol, max_products=self.max_products, vectors=False
            ),
            geometry.trace(
                hessian,
                key=keys[1],
                relative_error=self.trace_error,
                max_products=self.max_probes,
            ),
            geometry.worst_case_sharpness(
                *problem, key=keys[2], rho=float(WORST_CASE), num_steps=self.ascent_steps
            ),
            geometry.fisher_rao(*problem),
            geometry.relative_flatness(*problem, head=HEAD),
        )
        rows: dict[Any, Estimate] = {
            (f"defined/{n}", ()): x for one in found for n, x in one.estimates().items()
        }
        for radius in RADII:
            average = geometry.average_sharpness(
                *problem,
                key=keys[3],
                rho=jnp.float32(radius),
                noise="sphere",
                max_pairs=self.num_pairs,
            )
            rows["defined/average_sharpness", of(rho=radius)] = average.estimates()[
                "average_sharpness"
            ]
            rows["defined/average_slope", of(rho=radius)] = exact(average.slope_part)
        return carry, Results(rows)
