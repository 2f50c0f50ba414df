"""An evaluator that computes what the authors' code of papers 1 and 6 did; see `conventions`."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sharpjax import data, geometry, tree
from sharpjax.errors import UserError, unknown
from sharpjax.estimate import Estimate
from sharpjax.losses import Classification
from sharpjax.studies.papers import conventions
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import exact, results
from sharpjax.train.sharpness import Augmentation, as_measured, frozen_batch
from sharpjax.train.streams import stream

STATISTICS = ("largest", "mean_absolute")  # of paper 6, of paper 1


@dataclasses.dataclass(frozen=True)
class AuthorsSharpness:
    """The authors' numbers on the set that `train.sharpness` measures, `<set>`:

        <set>/authors/noise_sharpness       `max_k (L_k - L) / rho`, or `mean_k |L_k - L| / rho`;
                                            noise is added to the statistics of BatchNorm too
        <set>/authors/fisher_rao            with their factor
        <set>/authors/relative_flatness     summed over batches, the layer before the head divided

    With `resampled` there is only `train[a:b]/resampled/authors/noise_sharpness`. Each loss then
    uses images that are augmented anew, as their loader does, so the images differ too, not only
    the weights.

    Cost: one forward pass per draw and seven more; with `resampled`, three per draw and one more.

    Attributes:
        first, num_examples, augmentation: as in `Sharpness`.
        statistic: 'largest' (paper 6) or 'mean_absolute' (paper 1).
        num_layers: L of the factor L + 1; 0: the number of kernels of the net.
        num_batches: how many batches relative flatness is summed over.
    """

    when: When
    num_examples: int = 512
    first: int = 0
    augmentation: Augmentation | None = None
    resampled: bool = False
    statistic: str = "largest"
    rho: float = 0.05
    num_draws: int = 10
    num_layers: int = 5
    num_batches: int = 1
    head: str = "head/kernel"
    kind: str = "geometry"

    counted: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise unknown("statistic (papers.AuthorsSharpness)", self.statistic, STATISTICS)

    @property
    def set_name(self) -> str:
        kind = "/resampled" if self.resampled else "/augmented" * bool(self.augmentation)
        return f"train[{self.first or ''}:{self.first + self.num_examples}]{kind}/authors"

    @property
    def name(self) -> str:
        return self.set_name

    @property
    def metrics(self) -> tuple[str, ...]:
        names = ["noise_sharpness"]
        names += [] if self.resampled else ["fisher_rao", "relative_flatness"]
        return tuple(f"{self.set_name}/{name}" for name in names)

    def cost(self, spec: data.DataSpec) -> Cost:
        passes = 3 * self.num_draws + 1 if self.resampled else self.num_draws + 7
        return Cost(passes * self.num_examples)

    def init(self, subject: Subject, data: Any) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Any, key: jax.Array):
        params, variables = subject.state.params, subject.state.variables
        model = as_measured(subject.model)
        index = self.first + jnp.arange(self.num_examples)
        batch = functools.partial(frozen_batch, data, index, self.augmentation)
        state = {"params": params, "variables": variables}
        changes = self._changes(conventions.LossOfState(model), state, batch, key)
        found = {"noise_sharpness": Estimate(self._statistic(changes), np.nan, self.num_draws)}
        if not self.resampled:
            one = batch(stream(0, "frozen augmentation"))
            found |= dict(self._others(Classification(model, variables), params, one))
        return carry, results({f"{self.set_name}/{name}": x for name, x in found.items()})

    def _changes(self, loss: Any, state: Any, batch: Any, key: jax.Array) -> np.ndarray:
        how: Any = {"rho": self.rho, "num_params": tree.size(state["params"])}
        if not self.resampled:
            one, draws = batch(stream(0, "frozen augmentation")), self.num_draws
            found = conventions.noise_changes(loss, state, one, key=key, num_draws=draws, **how)
            return np.asarray(found, np.float64)
        # L(s + e_k) on images k less L(s) on the first images, as the sum of two differences.
        keys, changes = jax.random.split(key, self.num_draws + 1), []
        at_first = float(_value(loss, state, batch(keys[0])))
        for one in keys[1:]:
            draw, crops = jax.random.split(one)
            images = batch(crops)
            moved = conventions.noise_changes(loss, state, images, key=draw, num_draws=1, **how)
            changes.append(float(moved[0]) + float(_value(loss, state, images)) - at_first)
        return np.array(changes)

    def _statistic(self, changes: np.ndarray) -> np.ndarray:
        own = np.max(changes) if self.statistic == "largest" else np.mean(np.abs(changes))
        return np.asarray(own / self.rho)

    def _others(
        self, loss: Classification, params: Any, batch: Any
    ) -> Iterator[tuple[str, Estimate]]:
        logits, features = _outputs(loss, params, batch, self.head.split("/")[0])
        names = tree.path_names(params)
        layers = self.num_layers or sum(name.endswith("kernel") for name in names)
        yield "fisher_rao", exact(conventions.fisher_rao(logits, batch["label"], num_layers=layers))
        deviation = jnp.std(features, 0)
        divided = conventions.divided_by_deviation(
            params, deviation, head=self.head, before=before_head(names)
        )
        flatness = geometry.relative_flatness(loss, divided, batch, head=self.head)
        yield "relative_flatness", exact(self.num_batches * flatness.value)


def before_head(names: Iterable[str]) -> tuple[str, ...]:
    """The two parameters before the head, as the authors' code counts them.

    In a ResNet these are the last scale and bias inside the last block; otherwise those of the last
    normalisation; otherwise those of the last layer.

    >>> before_head(["BatchNorm_9/bias", "BatchNorm_10/bias", "BatchNorm_10/scale", "head/kernel"])
    ('BatchNorm_10/bias', 'BatchNorm_10/scale')
    """
    names = list(names)
    for pattern in (r"BasicBlock_(\d+)/BatchNorm_1/", r"(?:Batch|Layer)Norm_(\d+)/", r"\w+_(\d+)/"):
        found = {n: int(m[1]) for n in names if (m := re.match(pattern, n))}
        if found:
            return tuple(n for n, place in found.items() if place == max(found.values()))
    return ()


def check(params: Any, head: str, where: str = "papers.AuthorsSharpness") -> None:
    """Refuse a net, given its parameters or their shapes, that the authors' code cannot divide: the
    layer before the head must have one number per feature.

    Args:
        where: what the message begins with, as `config.model.name=mlp`.

    Raises:
        UserError: that layer has other sizes, or is not there; there is no such head.
    """
    shapes = dict(zip(tree.path_names(params), jax.tree.leaves(params), strict=True))
    tree.select(params, head)
    before = before_head(shapes)
    if not before or any(shapes[n].shape[-1] != shapes[head].shape[0] for n in before):
        raise UserError(
            f"{where}: {', '.join(before) or 'no layer'} before the head has not a number for each "
            f"of its {shapes[head].shape[0]} features, by whose deviations the authors' code "
            f"divides; take a net without a flattened image before its head."
        )


@jax.jit
def _value(loss: Any, state: Any, batch: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return loss(state, batch)


@functools.partial(jax.jit, static_argnums=3)
def _outputs(loss: Classification, params: Any, batch: Any, head: str) -> tuple[Any, Any]:
    """The logits, and the input of the layer `head`."""
    seen = []

    def spy(call, args, kwargs, context):
        if context.module.name == head and context.method_name == "__call__":
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(spy), jax.default_matmul_precision("highest"):
        logits = loss.logits(params, batch)
    return logits, seen[0]
