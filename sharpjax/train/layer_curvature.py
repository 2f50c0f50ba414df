"""Curvature and sharpness of the layers of a model, each by itself."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import data, geometry, perturbation, tree
from sharpjax.data import DataSpec, Splits
from sharpjax.estimate import Estimate
from sharpjax.losses import Classification
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import Of, Results, of
from sharpjax.train.sharpness import as_measured

MEASURES = ("trace", "lambda_1", "sharpness")


@dataclasses.dataclass(frozen=True)
class LayerCurvature:
    """Of the diagonal block of the Hessian of each layer its trace and largest eigenvalue, and how
    far the loss rises where the layer alone is moved, on the first training examples in eval mode:
    `layer/trace`, `layer/lambda_1` and `layer/sharpness`, rows of `{"layer": name}`.

    Layers share their programs: traces are of one set of probes by leaf (`Trace.block`), a block is
    M H M of a mask M whose numbers are arguments (`geometry.congruence`), and so are the radii of
    the worst case (`geometry.layerwise_sharpness`).

    Cost: `probes` products for the traces; for each layer some 10 products, `max_products` at the
    most, and `num_steps` gradients.

    Attributes:
        layers: as `geometry.layers` names them.
        num_examples: of the training set, first to last.
        probes: products of the traces.
        tol, max_products: of the search for an eigenvalue.
        rho, num_steps: radius, in norms of the layer's arrays (`perturbation.layers`), and steps of
            the worst case.
    """

    when: When
    layers: tuple[str, ...]
    num_examples: int
    probes: int
    max_products: int
    rho: float
    num_steps: int
    tol: float = 0.05
    name: str = "layer-curvature"
    kind: str = "geometry"

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"layer/{name}" for name in MEASURES)

    def cost(self, spec: DataSpec) -> Cost:
        each = 9 * self.max_products + 3 * self.num_steps
        return Cost((9 * self.probes + each * len(self.layers)) * self.num_examples)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        return carry, Results(dict(self._measured(subject, data.train, key)))

    def _measured(
        self, subject: Subject, train: data.Examples, key: jax.Array
    ) -> Iterator[tuple[tuple[str, Of], Estimate]]:
        params = subject.state.params
        loss = Classification(as_measured(subject.model), subject.state.variables)
        batch = data.batch(train, jnp.arange(self.num_examples))
        hessian = geometry.hessian(loss, params, batch)
        keys = jax.random.split(key, 3)
        traces = geometry.trace(hessian, key=keys[0], max_products=self.probes)
        worst = geometry.layerwise_sharpness(
            loss, params, batch, key=keys[2], rho=self.rho, num_steps=self.num_steps,
            groups={name: f"{name}/*" for name in self.layers}, scaling=perturbation.layers(),
        )  # fmt: skip
        for number, name in enumerate(self.layers):
            mask = jax.tree.map(jnp.float32, tree.select(params, f"{name}/*"))
            pairs = geometry.top_eigenpairs(
                geometry.congruence(hessian, mask), key=jax.random.fold_in(keys[1], number),
                tol=self.tol, max_products=self.max_products, vectors=False,
            )  # fmt: skip
            yield ("layer/trace", of(layer=name)), traces.block(f"{name}/*")
            yield ("layer/lambda_1", of(layer=name)), pairs.estimates()["lambda_1"]
            (rise,) = worst[name].estimates().values()
            yield ("layer/sharpness", of(layer=name)), rise
