"""How a model of the study is compressed: transforms that make one model, or one for each layer."""

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Any, Literal

import jax

from sharpjax import compress
from sharpjax.compress import prune
from sharpjax.train.plan import Subject
from sharpjax.train.results import Of, of
from sharpjax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Compressed:
    """One compressed model of each.

    Attributes:
        method: 'pruned', the share `amount` in per cent of the smallest weights of all kernels;
            'everything', of all numbers, BatchNorm statistics included, as the authors do; 'bits',
            kernels held in so many bits, a step for each output channel; 'type', all parameters in
            a shorter floating point type.
    """

    method: Literal["pruned", "everything", "bits", "type"]
    amount: int | str

    def __call__(self, subject: Subject, key: jax.Array) -> Iterator[tuple[Of, TrainState]]:
        state, amount = subject.state, self.amount
        params, variables = state.params, state.variables
        match self.method:
            case "pruned":
                params = prune.apply_mask(params, prune.mask(params, int(amount) / 100))
            case "everything":
                params, variables, _ = prune.prune_variables(params, variables, int(amount) / 100)
            case "bits":
                params = compress.fake_quantise_params(params, int(amount))
            case "type":
                params = compress.fake_cast_params(params, str(amount))
        yield (), dataclasses.replace(state, params=params, variables=variables)


@dataclasses.dataclass(frozen=True)
class OneLayer:
    """Of each model one for each layer, whose kernel alone is held in so many bits.

    Attributes:
        layers: names of kernels.
    """

    bits: int
    layers: tuple[str, ...]

    @property
    def outputs(self) -> tuple[Of, ...]:
        return tuple(of(layer=name) for name in self.layers)

    def __call__(self, subject: Subject, key: jax.Array) -> Iterator[tuple[Of, TrainState]]:
        for own, name in zip(self.outputs, self.layers, strict=True):
            params = compress.fake_quantise_params(subject.state.params, self.bits, scope=(name,))
            yield own, dataclasses.replace(subject.state, params=params)


def kernels(params: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the arrays of two axes or more, among all names of a tree's leaves."""
    shapes = [leaf.ndim for leaf in jax.tree.leaves(params)]
    found = zip(names, shapes, strict=True)
    return tuple(n for n, ndim in found if ndim >= 2 and fnmatch.fnmatch(n, "*kernel"))
