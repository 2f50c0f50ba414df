"""Models in fewer bits in a plan, and what each model takes."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sharpjax import compress, flops
from sharpjax.compress import size
from sharpjax.compress.scope import Scope
from sharpjax.data import DataSpec, Examples, Splits, batch
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.pruning import Prune
from sharpjax.train.results import Of, exact, of, results
from sharpjax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Quantise:
    """A transform: the model with its kernels rounded to so many bits, a step for each output
    channel; or one for each of several layers, whose kernel alone is rounded.

    Attributes:
        bits: from 2 to 8.
        layers: names of kernels, the coordinate `layer` of each model; none: all kernels together.
        min_numbers: kernels of fewer numbers are left alone; TFLite's 8 bits: 1024.
    """

    bits: int
    layers: tuple[str, ...] = ()
    min_numbers: int = 0

    @property
    def outputs(self) -> tuple[Of, ...]:
        """What `Derive.outputs` is."""
        return tuple(of(layer=name) for name in self.layers) or ((),)

    def held(self, params: Any) -> Any:
        """The parameters as integers, where they are; of no `layers`."""
        return compress.quantise_params(params, self.bits, min_numbers=self.min_numbers)

    def __call__(self, subject: Subject, key: jax.Array) -> Iterator[tuple[Of, TrainState]]:
        scopes: list[Scope] = [(name,) for name in self.layers] or ["kernels"]
        for own, scope in zip(self.outputs, scopes, strict=True):
            params = compress.fake_quantise_params(
                subject.state.params, self.bits, scope=scope, min_numbers=self.min_numbers
            )
            yield own, dataclasses.replace(subject.state, params=params)


@dataclasses.dataclass(frozen=True)
class Cast:
    """A transform: the model with all parameters rounded to a shorter type of `compress.cast`."""

    dtype: str

    def held(self, params: Any) -> Any:
        """The parameters in that type."""
        return compress.cast_params(params, self.dtype)

    def __call__(self, subject: Subject, key: jax.Array) -> Iterator[tuple[Of, TrainState]]:
        params = compress.fake_cast_params(subject.state.params, self.dtype)
        yield (), dataclasses.replace(subject.state, params=params)


Form = Quantise | Cast | Prune


@dataclasses.dataclass(frozen=True)
class Size:
    """What a model takes in the form in which it can be held; see `compress.size`.

        size/parameters     how many are not pruned
        size/bytes          of parameters and BatchNorm statistics, each array rounded up
        size/flops          of a forward pass of one example, as it is computed here

    Zeros are counted, and nothing is computed. FLOPs are those of matrix products and convolutions
    (`flops.count`) of dense arrays in floating point, whatever the form: a pruned model keeps its
    shapes, and is no faster.

    Attributes:
        form: the transform that made the models; of one that prunes, numbers that are 0 now and
            were not in the source are gone, and an array that lacks some is held with a bit mask.
    """

    when: When
    form: Form | None = None
    kind: str = "evaluation"

    @property
    def name(self) -> str:
        return "size"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("size/parameters", "size/bytes", "size/flops")

    def cost(self, spec: DataSpec) -> Cost:
        return Cost()

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        held, masks = self._held(subject)
        rows = size.layers(held, masks)
        kept = sum(row.kept for row in rows if row.name.startswith("params/"))
        values = kept, size.num_bytes(rows), _flops(subject.model, _image(data.train))
        found = {name: exact(x) for name, x in zip(self.metrics, values, strict=True)}
        return carry, results(found)

    def _held(self, subject: Subject) -> tuple[Any, Any]:
        """The variables in their form, and what of them is kept; None: all."""
        own = _variables(subject.state)
        if isinstance(self.form, Prune):
            before = _variables(subject.source.state) if subject.source else own
            return own, jax.tree.map(lambda w, b: (w != 0) | (b == 0), own, before)
        if self.form is None:
            return own, None
        return own | {"params": jax.eval_shape(self.form.held, own["params"])}, None


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "variables": state.variables}


def _image(examples: Examples) -> jax.ShapeDtypeStruct:
    """One example as the model takes it."""
    return jax.eval_shape(lambda: batch(examples, jnp.arange(1))["image"])


@functools.lru_cache(maxsize=16)
def _flops(model: nn.Module, image: jax.ShapeDtypeStruct) -> int:
    apply = functools.partial(model.apply, train=False)
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
    )
    return flops.count(apply, variables, image).flops
