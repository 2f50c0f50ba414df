"""Curvature and sharpness of each layer of a model."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

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
    """For each layer: trace and largest eigenvalue of its diagonal block of the Hessian, and how
    far the loss rises if only this layer moves. Measured on the first training examples in eval
    mode. The rows are `layer/trace`, `layer/lambda_1` and `layer/sharpness`, of `{"layer": name}`.

    Layers share their programs. All traces come from one set of probes (`Trace.block`). A block is
    M H M with a mask M whose numbers are arguments (`geometry.congruence`). The radii of the worst
    case are arguments, too (`geometry.layerwise_sharpness`).

    Cost: `probes` products for the traces; for each layer about 10 products, at most
    `max_products`, and `num_steps` gradients.

    Attributes:
        layers: names as in `geometry.layers`.
        num_examples: how many training examples, from the first.
        probes: products for the traces.
        tol, max_products: of the search for an eigenvalue.
        rho, num_steps: radius, in norms of the layer's arrays (`perturbation.layers`), and number
            of steps of the search for the worst case.
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

    counted: ClassVar[str] = "train"

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
