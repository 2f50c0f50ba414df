"""Changes of the weights that leave the function as it is: how far each moves the metrics."""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from sharpjax import nn
from sharpjax.data import DataSpec, Splits
from sharpjax.data import batch as batch_of
from sharpjax.errors import UserError
from sharpjax.layerwise import criticality
from sharpjax.losses import Classification
from sharpjax.train.layerwise import columns_of, leaves_of
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import Of, Results, exact, of

# All changes, with what the kernel W becomes. In the order of the report.
CHANGES = {
    "units": "W D, units of a ReLU layer or channels before BatchNorm by a factor each",
    "factor": "c W, all of them by one",
    "absorption": "W D, BatchNorm absorbed into the layer before it",
    "permutation": "W P, units in another order",
}
LARGEST = 16.0  # factor; none is below 1, since a variance near 0 could then become negative


class Site(NamedTuple):
    """A layer whose units can be changed, and where.

    Attributes:
        layer: its name.
        out: the kernel that reads the units; '' if a norm reads them.
        norm: the BatchNorm that reads the layer; '' if there is none.
        relu: whether the units are positively homogeneous.
    """

    layer: str
    out: str = ""
    norm: str = ""
    relu: bool = False

    @property
    def changes(self) -> tuple[str, ...]:
        """The changes that leave the function as it is here."""
        if self.norm:
            return "units", "factor", "absorption"
        return ("units", "factor", "permutation") if self.relu else ("permutation",)


def sites_of(model: linen.Module, input_shape: tuple[int, ...]) -> tuple[Site, ...]:
    """Where a model's units can be changed: hidden layers of an MLP, layers that BatchNorm reads,
    GELU units of a ViT.

    >>> [site.layer for site in sites_of(nn.MLP(num_classes=10, depth=2), (8, 8, 1))]
    ['Dense_0', 'Dense_1']
    """
    if isinstance(model, nn.MLP):
        names = [*(f"Dense_{i}" for i in range(model.depth)), "head"]
        pairs = zip(names, names[1:], strict=False)
        return tuple(Site(name, f"{after}/kernel", relu=True) for name, after in pairs)
    if isinstance(model, nn.ViT):
        blocks = (f"Block_{i}" for i in range(model.depth))
        return tuple(Site(f"{block}/Dense_2", f"{block}/Dense_3/kernel") for block in blocks)
    norms = criticality.norms_of(model, jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    return tuple(Site(layer, norm=norm) for layer, norm in norms.items())


@dataclasses.dataclass(frozen=True)
class Preserved:
    """By how much each data-free metric of a layer moves while the function stays: rows of
    `{"layer": name, "change": one of CHANGES}`

        same/<column>/absolute_change   |after - before| / |before|
        same/off                        largest change of a logit on the first `num_examples`
                                        training images, relative to the largest logit

    A change is first tried on these images (`nn.apply_verified`). If it is off by more than
    rounding explains, it has no rows. Factors are drawn from 1 to `LARGEST`, evenly in logarithm;
    that of `factor` is `LARGEST`.

    Cost: two passes of the examples for each layer and change, and a decomposition.

    Attributes:
        sites: from `sites_of`, only of layers that have metrics.
        columns: of `data_free.Metrics`, by the convention of WeightWatcher.
    """

    when: When
    sites: tuple[Site, ...]
    columns: tuple[str, ...]
    num_examples: int
    name: str = "preserved"
    kind: str = "geometry"

    counted: ClassVar[str] = "train"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*(f"same/{column}/absolute_change" for column in self.columns), "same/off")

    def cost(self, spec: DataSpec) -> Cost:
        changes = sum(len(site.changes) for site in self.sites)
        return Cost(2 * changes * self.num_examples)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        state = subject.state
        batch = batch_of(data.train, jnp.arange(self.num_examples))
        outputs = functools.partial(_outputs, subject.model, batch=batch)
        statistics = dict(state.variables).get("batch_stats", {})
        epsilons = _epsilons(subject.model, data.train.input[:1])
        found: dict[tuple[str, Of], Any] = {}
        for number, site in enumerate(self.sites):
            own = jax.random.fold_in(key, number)
            before = self._columns(state.params, site.layer)
            for name in site.changes:
                change = functools.partial(
                    changed, site=site, change=name, key=own, epsilon=epsilons.get(site.norm, 0.0)
                )
                try:
                    done = nn.apply_verified(change, (state.params, statistics), outputs)
                except UserError:  # more than rounding: the function is not the same
                    continue
                where = of(layer=site.layer, change=name)
                found["same/off", where] = exact(done.off)
                for column, value in self._columns(done.params[0], site.layer).items():
                    moved = np.abs(value - before[column]) / np.abs(before[column])
                    found[f"same/{column}/absolute_change", where] = exact(moved)
        return carry, Results(found)

    def _columns(self, params: Any, layer: str) -> dict[str, float]:
        found = columns_of(leaves_of(params), (layer,), self.columns)
        return {column: value for (column, _), value in found.items()}


def _kernel(params: Any, layer: str) -> np.ndarray:
    own = functools.reduce(lambda tree, part: tree[part], layer.split("/"), params)
    return np.asarray(own["kernel"])


def _epsilons(model: linen.Module, example: jax.Array) -> dict[str, float]:
    """The epsilon of each BatchNorm, by name."""
    found = {}

    def watch(call, args, kwargs, context):
        if isinstance(context.module, linen.BatchNorm):
            found["/".join(context.module.path)] = context.module.epsilon
        return call(*args, **kwargs)

    def run(example):
        with linen.intercept_methods(watch):
            return model.init(jax.random.key(0), example, train=False)

    jax.eval_shape(run, example)
    return found


def changed(
    both: tuple[Any, Any], site: Site, change: str, key: jax.Array, *, epsilon: float
) -> tuple[Any, Any]:
    """Parameters and running statistics after one of `CHANGES`; `epsilon` is of `site.norm`."""
    params, statistics = both
    into = f"{site.layer}/*"
    count = _kernel(params, site.layer).shape[-1]
    if change == "absorption":
        return nn.absorb_norm(params, statistics, layer=site.layer, norm=site.norm, epsilon=epsilon)
    if change == "permutation":
        order = np.asarray(jax.random.permutation(key, count))
        return nn.permute_units(params, order, into=into, out=site.out), statistics
    factors = LARGEST ** jax.random.uniform(key, (count,))
    factors = jnp.full(count, LARGEST) if change == "factor" else factors
    if site.norm:
        return nn.scale_before_norm(
            params, statistics, factors, into=into, norm=site.norm, epsilon=epsilon
        )
    return nn.rescale_units(params, factors, into=into, out=site.out), statistics


def _outputs(model: linen.Module, both: tuple[Any, Any], batch: Any) -> jax.Array:
    params, statistics = both
    variables = {"batch_stats": statistics} if statistics else {}
    return _logits(Classification(model, variables), params, batch)


@jax.jit
def _logits(loss: Classification, params: Any, batch: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return loss.logits(params, batch)
