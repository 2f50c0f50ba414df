"""Replaced layers in a plan: the models in which one layer is not the trained one."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax

from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.layerwise import criticality
from sharpjax.layerwise.criticality.layers import BATCH_NORM
from sharpjax.train.plan import At, Subject
from sharpjax.train.results import Of, of
from sharpjax.train.state import TrainState

Kind = Literal["initial", "fresh", "zeros", "snapshot"]
_KINDS = ("initial", "fresh", "zeros", "snapshot")


@dataclasses.dataclass(frozen=True)
class Replace:
    """A transform that makes the models in which one layer is replaced, for each trial and layer.

        layers = layers_of_model(model, (28, 28, 1))
        made = Replace("fresh", layers, (28, 28, 1), trials=10)
        Derive("rerandom", "base", made, evaluators, outputs=made.outputs)

    Everything else stays the same to the bit. `measures.ToReference(..., reference="base")`
    compares the results with the trained model. BatchNorm statistics are not recomputed, because a
    transform sees no data.

    Attributes:
        kind: what replaces a layer. 'initial': its values before the first step
            (re-initialisation); 'fresh': a new draw of the initial weights (re-randomisation), by
            the key of the stage, which depends on the seed and the stage's arm; 'zeros';
            'snapshot': its values after the step `at`, which `Train.snapshots` keeps (rewinding).
        layers: names, from `layers_of_model`; the coordinate `layer` of each model.
        input_shape: of one example, `input_shape` of the data.
        trials: number of draws for 'fresh'; 1 for the others.
        groups: names and globs, as in `criticality.layers_of`; none: one for each layer.
        batch_norm: 'stay', 'parameters' or 'all': what of the norm that reads a layer is replaced
            with the layer.
        at: the state of a 'snapshot'.
        input_dtype: 'float32' for images; 'int32' for tokens.

    Raises:
        UserError: an unknown kind or option; no layers, or one twice; no trials, or several of a
            kind that is not drawn; a step for another kind than 'snapshot', or none for that; zeros
            with batch_norm='all'. When it is called: an unknown layer.
    """

    kind: Kind
    layers: tuple[str, ...]
    input_shape: tuple[int, ...]
    trials: int = 1
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    batch_norm: Literal["stay", "parameters", "all"] = "stay"
    at: At | None = None
    input_dtype: str = "float32"

    def __post_init__(self) -> None:
        caller = "replacing.Replace"
        if self.kind not in _KINDS:
            raise unknown(f"kind ({caller})", str(self.kind), _KINDS)
        if self.batch_norm not in BATCH_NORM:
            raise unknown(f"batch_norm ({caller})", str(self.batch_norm), BATCH_NORM)
        if isinstance(self.layers, str) or not self.layers:
            raise UserError(f"{caller}: layers={self.layers!r}; give a tuple of names.")
        if len({*self.layers}) < len(self.layers):
            raise UserError(f"{caller}: layers={self.layers}; give each once.")
        if whole_number(caller, "trials", self.trials) > 1 and self.kind != "fresh":
            raise UserError(
                f"{caller}: trials={self.trials}, but of kind '{self.kind}' nothing is drawn: all "
                "would be the same; leave it out."
            )
        if (self.kind == "snapshot") == (self.at is None):
            raise UserError(
                f"{caller}: kind='{self.kind}' and at={self.at!r}; a 'snapshot' has a step that "
                "Train.snapshots keeps, and no other kind has."
            )
        if self.kind == "zeros" and self.batch_norm == "all":
            raise UserError(
                f"{caller}: zeros would be variances of BatchNorm; give batch_norm='parameters' or "
                "'stay'."
            )

    @property
    def outputs(self) -> tuple[Of, ...]:
        """The value for `Derive.outputs`: trial by trial, and in each the layers."""
        return tuple(self.of(name, t) for t in range(self.trials) for name in self.layers)

    def of(self, layer: str, trial: int = 0) -> Of:
        """The coordinates of one of its models.

        >>> Replace("zeros", ("head",), (8, 8, 1)).of("head")
        (('layer', 'head'), ('trial', 0))
        """
        return of(layer=layer, trial=trial)

    def __call__(self, subject: Subject, key: jax.Array) -> Iterator[tuple[Of, TrainState]]:
        state = subject.state
        trained = criticality.Weights(state.params, state.variables)
        layers = _layers(self, subject.model, trained)
        found = criticality.variants(
            trained, self._source(subject), layers, names=self.layers, trials=self.trials, key=key
        )
        for layer, trial, (params, variables) in found:
            made = dataclasses.replace(state, params=params, variables=variables)
            yield self.of(layer, trial), made

    def _source(self, subject: Subject) -> criticality.Source:
        match self.kind:
            case "zeros":
                return "zeros"
            case "fresh":
                return _initialiser(self, subject.model)
        there = subject.at("start" if self.at is None else self.at)
        return criticality.Weights(there.params, there.variables)


def layers_of_model(
    model, input_shape: tuple[int, ...], input_dtype: str = "float32", **options
) -> tuple[str, ...]:
    """The names of a model's layers for `Replace.layers`. It needs shapes only.

    Args:
        model: a Flax module.
        input_shape, input_dtype: of one example.
        options: `groups` and `batch_norm`, as in `Replace`.

    >>> from sharpjax.nn import MLP
    >>> layers_of_model(MLP(num_classes=10, width=4), (8, 8, 1))
    ('Dense_0', 'Dense_1', 'head')
    """
    own = Replace("initial", ("*",), input_shape, input_dtype=input_dtype, **options)
    drawn = jax.eval_shape(_initialiser(own, model), jax.random.key(0))
    return tuple(_layers(own, model, drawn))


def _initialiser(own: Replace, model) -> criticality.Initialiser:
    return criticality.Initialiser(model, own.input_shape, own.input_dtype)


def _layers(own: Replace, model, weights: criticality.Weights) -> dict[str, criticality.Layer]:
    norms = {}
    if own.batch_norm != "stay":
        example = jax.ShapeDtypeStruct((1, *own.input_shape), own.input_dtype)
        norms = criticality.norms_of(model, example)
    return criticality.layers_of(
        weights.params,
        dict(own.groups) or None,
        variables=weights.variables,
        norms=norms,
        batch_norm=own.batch_norm,
    )
