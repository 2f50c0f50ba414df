"""Models in fewer bits as part of a plan, and how much space and time each model takes."""

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
    """A transform that rounds kernels to few bits, with one step size per output channel. Without
    `layers` it gives one model with all kernels rounded. With `layers` it gives one model per
    layer, in which only the kernel of that layer is rounded.

    Attributes:
        bits: from 2 to 8.
        layers: names of kernels, the coordinate `layer` of each model; none: all kernels together.
        min_numbers: kernels with fewer numbers are not rounded; 1024 for TFLite's 8 bits.
    """

    bits: int
    layers: tuple[str, ...] = ()
    min_numbers: int = 0

    @property
    def outputs(self) -> tuple[Of, ...]:
        """The value for `Derive.outputs`."""
        return tuple(of(layer=name) for name in self.layers) or ((),)

    def held(self, params: Any) -> Any:
        """The parameters, with the quantised kernels as integers. `layers` is ignored."""
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
    """A transform that rounds all parameters to a shorter type of `compress.cast`."""

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
    """The size of a model in the form in which it can be stored; see `compress.size`.

        size/parameters     how many are not pruned
        size/bytes          of parameters and BatchNorm statistics, each array rounded up
        size/flops          of a forward pass of one example, as it is computed here

    It only counts; it runs no model. FLOPs are those of matrix products and convolutions
    (`flops.count`) of dense floating-point arrays, whatever the form: a pruned model keeps its
    shapes and is not faster.

    Attributes:
        form: the transform that made the models. With a `Prune`, numbers that are 0 now and were
            not 0 in the source count as removed, and an array with removed numbers is stored with a
            bit mask. All other zeros count as parameters.
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
        """The variables in their form, and a mask of what is kept of them; None: all."""
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
    """One example in the form that the model takes."""
    return jax.eval_shape(lambda: batch(examples, jnp.arange(1))["image"])


@functools.lru_cache(maxsize=16)
def _flops(model: nn.Module, image: jax.ShapeDtypeStruct) -> int:
    apply = functools.partial(model.apply, train=False)
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
    )
    return flops.count(apply, variables, image).flops
