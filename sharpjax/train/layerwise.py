"""Single layers in a plan: what their weights say without data, and what replacing them costs.

Layers are named as in `geometry.layers`, so that these rows and those of `layer_curvature` share
one axis: `of` = {"layer": "Dense_0"}.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import linen as nn

from sharpjax import tree
from sharpjax.data import DataSpec, Splits, batch
from sharpjax.estimate import Estimate
from sharpjax.layerwise import criticality
from sharpjax.layerwise.data_free import WEIGHTWATCHER, Convention, data_free
from sharpjax.layerwise.data_free.layers import find
from sharpjax.train.evaluators import split_of
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import Results, exact, of

OF_OUTPUTS = ("accuracy", "loss", "activation_distance", "disagreement", "jsd")
_KERNEL = "/kernel"


def layers_with_spectra(
    model: nn.Module, input_shape: tuple[int, ...], least: int = WEIGHTWATCHER.min_evals
) -> dict[str, tuple[int, int, int]]:
    """The layers of a model whose kernel has at least `least` eigenvalues, in the order in which
    the model calls them, with the matrices (k, m, n) that each is read as. It needs shapes only.

    >>> from sharpjax.nn import MLP
    >>> layers_with_spectra(MLP(num_classes=10, width=12, depth=1), (8, 8, 1))
    {'Dense_0': (1, 64, 12), 'head': (1, 12, 10)}
    """
    called: list[str] = []

    def watch(call, args, kwargs, context):
        called.append("/".join(context.module.path))
        return call(*args, **kwargs)

    def run(image):
        with nn.intercept_methods(watch):
            return model.init(jax.random.key(0), image, train=False)["params"]

    shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *input_shape), np.float32))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    found = {
        layer.name.removesuffix(_KERNEL): layer.matrices
        for layer in find("layers_with_spectra", params, None, axes=0)
        if layer.name.endswith(_KERNEL) and layer.matrices[0] * min(layer.matrices[1:]) >= least
    }
    return {name: found[name] for name in dict.fromkeys(called) if name in found}


def columns_of(
    leaves: Mapping[str, Any],
    layers: tuple[str, ...],
    columns: tuple[str, ...],
    *,
    convention: Convention = WEIGHTWATCHER,
) -> dict[tuple[str, str], float]:
    """Data-free metrics by column and layer.

    It goes layer by layer, so that all layers of one shape, of any model, share one program.
    Compiling one takes some seconds, running it milliseconds.

    Args:
        leaves: kernels and biases of the layers, by the names of `tree.path_names`.
        layers: names of layers that have a kernel.
        columns: of `data_free.Metrics`.
    """
    found = {}
    for layer in layers:
        own = {name: leaf for name, leaf in leaves.items() if name.rpartition("/")[0] == layer}
        table = data_free(own, layers=[f"{layer}{_KERNEL}"], convention=convention)
        for column in columns:
            found[column, layer] = float(getattr(table.metrics, column)[0])
    return found


def leaves_of(params: Any) -> dict[str, Any]:
    """The leaves of a tree by their names."""
    return dict(zip(tree.path_names(params), jax.tree.leaves(params), strict=True))


@dataclasses.dataclass(frozen=True)
class DataFree:
    """What the weights of each layer say, as `layer/<column>`; also `layer/num_params` and
    `layer/depth`, its place among `layers`, which a comparison may hold fixed.

    Cost: a singular value decomposition of each matrix; no forward pass.

    Attributes:
        layers: names, of `layers_with_spectra`.
        columns: of `data_free.Metrics`.
    """

    when: When
    layers: tuple[str, ...]
    columns: tuple[str, ...]
    convention: Convention = WEIGHTWATCHER
    name: str = "data-free"
    kind: str = "geometry"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*(f"layer/{column}" for column in self.columns), "layer/num_params", "layer/depth")

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        params = subject.state.params
        found = columns_of(leaves_of(params), self.layers, self.columns, convention=self.convention)
        rows = {(f"layer/{m}", of(layer=name)): exact(x) for (m, name), x in found.items()}
        for depth, name in enumerate(self.layers):
            own, _ = tree.partition(params, tree.select(params, f"{name}/*"))
            rows["layer/num_params", of(layer=name)] = exact(float(tree.size(own)))
            rows["layer/depth", of(layer=name)] = exact(float(depth))
        return carry, Results(rows)


@dataclasses.dataclass(frozen=True)
class Replaced:
    """Replaces each layer alone (`criticality`), and measures the weights that are put in and the
    model with them. Rows of `{"layer": name}`, means over trials:

        layer/<column>                          of the layer that is put in
        layer/<column>/change, absolute_change  (after - before) / |before|, and its absolute value
        layer/accuracy, loss, accuracy_drop     on the first `num_examples` test examples
        layer/activation_distance, disagreement, jsd    to the trained model, on these
        layer/critical                          1 if the drop is `threshold` or more
        layer/decided                           1 if examples and trials suffice to decide this at
                                                95 per cent (`criticality.judge`)

    Each trial also has a row `trial/accuracy`. A layer is a kernel with its bias. Norm layers and
    their statistics stay as trained, because the columns are about the layer itself.

    Cost: a forward pass of the examples and a decomposition for each layer and trial.

    Attributes:
        replacement: 'initial', its values before the first step; 'fresh', a new draw of the initial
            weights by the evaluator's key.
        layers, columns, convention: as in `DataFree`.
        input_shape: of one example.
        num_examples: 0: all test examples.
        threshold: of accuracy, from 0 to 1.
        trials: number of draws for 'fresh', of which a single one has no standard error (NaN); 1
            for 'initial', whose standard errors are 0.
    """

    when: When
    replacement: Literal["initial", "fresh"]
    layers: tuple[str, ...]
    columns: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_examples: int
    threshold: float
    trials: int = 1
    batch_size: int = 500
    convention: Convention = WEIGHTWATCHER
    kind: str = "evaluation"

    counted: ClassVar[str] = "test"

    @property
    def name(self) -> str:
        return f"replaced-{self.replacement}"

    @property
    def metrics(self) -> tuple[str, ...]:
        own = [f"layer/{m}{end}" for m in self.columns for end in ("", "/change", _ABSOLUTE)]
        drops = ("accuracy_drop", "critical", "decided")
        return (*own, *(f"layer/{name}" for name in (*OF_OUTPUTS, *drops)), "trial/accuracy")

    def cost(self, spec: DataSpec) -> Cost:
        return Cost((len(self.layers) * self.trials + 1) * (self.num_examples or spec.num_test))

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        state = subject.state
        trained = criticality.Weights(state.params, state.variables)
        found = criticality.variants(
            trained, self._source(subject), names=self.layers, trials=self.trials, key=key
        )
        put_in: dict[str, list[Any]] = {}
        effects = criticality.evaluate(
            subject.model,
            trained,
            _watched(found, put_in),
            self._examples(data),
            batch_size=self.batch_size,
        )
        rows = dict(self._of_weights(trained.params, put_in))
        rows |= dict(self._of_outputs(effects))
        return carry, Results(rows)

    def _source(self, subject: Subject) -> criticality.Source:
        if self.replacement == "fresh":
            return criticality.Initialiser(subject.model, self.input_shape)
        start = subject.at("start")
        return criticality.Weights(start.params, start.variables)

    def _examples(self, data: Splits) -> Mapping[str, jax.Array]:
        test = split_of(data, "test")
        return batch(test, np.arange(self.num_examples or len(test.label)))

    def _mean(self, values: np.ndarray) -> Estimate:
        return over_trials(values, drawn=self.replacement == "fresh")

    def _of_weights(
        self, before: Any, put_in: Mapping[str, list[Any]]
    ) -> Iterator[tuple[tuple[str, Any], Estimate]]:
        options: Any = {"convention": self.convention}
        table = columns_of(leaves_of(before), self.layers, self.columns, **options)
        trials = [
            columns_of(leaves, self.layers, self.columns, **options)
            for t in range(self.trials)
            for leaves in [{name: draws[t] for name, draws in put_in.items()}]
        ]
        for (column, layer), old in table.items():
            after = np.array([found[column, layer] for found in trials])
            change = (after - old) / np.abs(old)
            kinds = {"": after, "/change": change, _ABSOLUTE: np.abs(change)}
            for end, values in kinds.items():
                yield (f"layer/{column}{end}", of(layer=layer)), self._mean(values)

    def _of_outputs(
        self, effects: criticality.Effects
    ) -> Iterator[tuple[tuple[str, Any], Estimate]]:
        for (layer, trial), effect in effects.of.items():
            yield ("trial/accuracy", of(layer=layer, trial=trial)), exact(effect.accuracy)
        for layer in self.layers:
            trials = [effect for (name, _), effect in effects.of.items() if name == layer]
            for name in (*OF_OUTPUTS, "accuracy_drop"):
                values = np.array([getattr(effect, name) for effect in trials])
                yield (f"layer/{name}", of(layer=layer)), self._mean(values)
            said = criticality.judge(effects, layer, threshold=self.threshold)
            if said.word != "undefined":
                yield ("layer/critical", of(layer=layer)), exact(float(said.critical))
                decided = said.word in ("critical", "robust")
                yield ("layer/decided", of(layer=layer)), exact(float(decided))


_ABSOLUTE = "/absolute_change"


def over_trials(values: np.ndarray, *, drawn: bool = True) -> Estimate:
    """The mean over trials and its standard error. For a single trial this is NaN if trials are
    `drawn` at random, else 0.

    >>> over_trials(np.array([1.0, 3.0])).value.item()
    2.0
    """
    count, single = len(values), np.nan if drawn else 0.0
    error = np.std(values, ddof=1) / np.sqrt(count) if count > 1 else single
    return Estimate(np.mean(values), np.float32(error), np.int32(count))


def _watched(
    found: Iterable[criticality.Variant], put_in: dict[str, list[Any]]
) -> Iterator[criticality.Variant]:
    """Passes the variants on, and keeps the leaves of their replaced layers by name."""
    for variant in found:
        for name, leaf in leaves_of(variant.weights.params).items():
            if name.rpartition("/")[0] == variant.layer:
                put_in.setdefault(name, []).append(np.asarray(leaf))
        yield variant
