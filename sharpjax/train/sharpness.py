"""Sharpness of a model by several definitions, on a fixed set of training images."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sharpjax import data, geometry, tree
from sharpjax.data import DataSpec, Splits
from sharpjax.errors import UserError
from sharpjax.estimate import Estimate
from sharpjax.geometry import Status
from sharpjax.losses import Classification, CrossEntropy, normalised_logits, tempered_logits
from sharpjax.metrics import scores, temperature
from sharpjax.train.evaluators import logits_of, split_of
from sharpjax.train.plan import Cost, Subject, When
from sharpjax.train.results import exact, results
from sharpjax.train.streams import stream

_UNKNOWN = Estimate(np.float32(np.nan), np.float32(np.nan), np.int32(0))


class Augmentation(NamedTuple):
    """How images are cropped and mirrored; the fields are those of `steps.Steps`."""

    pad: int = 4
    flip: bool = True
    padding: str = "zero"


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """Sharpness of the loss at a model, on the training examples `first` to `first + num_examples`,
    without augmentation or with one fixed augmentation.

    It computes in float32, whatever the training precision, in eval mode with frozen BatchNorm
    statistics, which are never perturbed. The rows, with `<set>` for `train[first:last]`, followed
    by `/augmented`, `/true` and `/normalised` if these are asked for:

        <set>/nll, accuracy, mean_p             mean_p: the mean probability of the label
        <set>/noise_sharpness                   E L(w + e) - L(w), |e| = noise_rho
        <set>/noise_sharpness/slope, absolute   of the same draws: what the gradient adds, root mean
                                                square; the mean of |L(w + e) - L(w)|
        <set>/gradient_norm                     not of normalised logits
        <set>/sam_sharpness                     if `sam_rho` is above 0
        <set>/fisher_rao                        with the labels of the set, exact by one product
        <set>/relative_flatness, relative_flatness_normalised, head_norm
                                                if `head` is named, and not of normalised logits;
                                                head_norm: the square of its Frobenius norm
        <set>/information_sharpness, information_sharpness/known
                                                if `information_examples` is above 0: the mean of
                                                (1 - p) / p, which is the information sharpness if
                                                the matrix has its largest possible rank. `known`:
                                                the value computed with the matrix of the first
                                                `information_examples`, divided by this mean over
                                                them. Unless it is above .99 and the status is OK,
                                                there is no standard error
        <set>/hessian/lambda_1, ...             if `max_products` is above 0
        <set>/hessian/trace                     if `max_probes` is above 0
        <set>/temperature, scaled/nll, scaled/relative_flatness, scaled/relative_flatness_normalised
                                                if `scaled`: of logits / T, with T fitted on the
                                                validation split; NaN if there is no such T, as for
                                                a model without mistakes there

    Cost: some 20 forward passes, and two more per pair of `noise_pairs`. A call for a small
    convolutional net takes 3 s on a core with 5 pairs; the first call takes a minute of
    compilation.

    Attributes:
        augmentation: of the set, the same for all models; None: none.
        normalised: measure logits of one length, `losses.normalised_logits`.
        true_labels: use the labels from before `data.Images.label_noise`.
        sam_rho: of SAM's ascent step; 0: not measured.
        head: glob of the kernel of the last layer; '': there is none.
        stream: names the randomness; '': `<set>`.
    """

    when: When
    num_examples: int = 512
    first: int = 0
    augmentation: Augmentation | None = None
    normalised: bool = False
    head: str = "head/kernel"
    noise_rho: float = 0.05
    noise_pairs: int = 10
    sam_rho: float = 0.05
    information_examples: int = 0
    max_products: int = 0
    max_probes: int = 0
    scaled: bool = False
    microbatch_size: int | None = None
    stream: str = ""
    true_labels: bool = False
    kind: str = "geometry"

    counted: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        if self.normalised and (self.scaled or self.information_examples):
            raise UserError(
                "train.Sharpness: normalised logits have one scale, so that there is no "
                "temperature and no information sharpness of them; leave out normalised, or scaled "
                "and information_examples."
            )

    @property
    def set_name(self) -> str:
        own = f"train[{self.first or ''}:{self.first + self.num_examples}]"
        own += "/augmented" * bool(self.augmentation) + "/true" * self.true_labels
        return own + "/normalised" * self.normalised

    @property
    def name(self) -> str:
        return self.stream or self.set_name

    @property
    def split(self) -> str:
        """A split that the data must have; 'validation' if `scaled`."""
        return "validation" if self.scaled else "train"

    @property
    def metrics(self) -> tuple[str, ...]:
        names = ["nll", "accuracy", "mean_p", "noise_sharpness", "noise_sharpness/slope"]
        names += ["noise_sharpness/absolute", "fisher_rao"]
        names += ["sam_sharpness"] if self.sam_rho else []
        names += [] if self.normalised else ["gradient_norm"]
        flatness = ["relative_flatness", "relative_flatness_normalised"]
        if self._has_head:
            names += [*flatness, "head_norm"]
        if self.information_examples:
            names += ["information_sharpness", "information_sharpness/known"]
        if self.max_products:
            names += [f"hessian/{n}" for n in ("lambda_1", "lambda_1_residual", "num_products")]
        if self.max_probes:
            names += ["hessian/trace"]
        if self.scaled:
            names += ["temperature", "scaled/nll"]
            names += [f"scaled/{name}" for name in flatness if self._has_head]
        return tuple(f"{self.set_name}/{name}" for name in names)

    @property
    def _has_head(self) -> bool:
        return bool(self.head) and not self.normalised

    def cost(self, spec: DataSpec) -> Cost:
        """A gradient counts as three forward passes, a product as three gradients."""
        passes = 2 * self.noise_pairs + 2 + 9 + 3 * (not self.normalised)
        passes += 4 * (self.sam_rho > 0) + 3 * self._has_head * (1 + self.scaled)
        passes += 9 * (self.max_products + self.max_probes)
        known = self.information_examples**2 * max(spec.num_classes - 1, 0) * 3
        return Cost(passes * self.num_examples + known + self.scaled * spec.num_validation)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        loss, params, batch = self._problem(subject, data)
        found = dict(self._measured(loss, params, batch, jax.random.split(key, 3)))
        if self.scaled:
            found |= dict(self._scaled(subject, loss, params, batch, data))
        return carry, results({f"{self.set_name}/{name}": x for name, x in found.items()})

    def _problem(self, subject: Subject, splits: Splits) -> tuple[Any, Any, Any]:
        loss: Any = Classification(as_measured(subject.model), subject.state.variables)
        if self.normalised:
            loss = geometry.composed(normalised_logits(loss.model_fn), CrossEntropy())
        index = self.first + jnp.arange(self.num_examples)
        batch = frozen_batch(splits, index, self.augmentation, stream(0, "frozen augmentation"))
        true = batch.pop("true_label", batch["label"])
        batch |= {"label": true} if self.true_labels else {}
        return loss, subject.state.params, batch

    def _measured(
        self, loss: Any, params: Any, batch: Any, keys: jax.Array
    ) -> Iterator[tuple[str, Estimate]]:
        logits = _logits(loss.model_fn, params, batch)
        losses = scores.nll(logits, batch["label"])
        yield "nll", scores.mean(losses)
        yield "accuracy", scores.mean(jnp.argmax(logits, 1) == batch["label"])
        yield "mean_p", scores.mean(jnp.exp(-losses))
        size: Any = {"microbatch_size": self.microbatch_size}
        noise = geometry.average_sharpness(
            loss, params, batch, key=keys[0], rho=self.noise_rho, noise="sphere",
            max_pairs=self.noise_pairs, **size,
        )  # fmt: skip
        yield "noise_sharpness", noise.estimates()["average_sharpness"]
        for name, value in (("slope", noise.slope_part), ("absolute", noise.absolute)):
            yield f"noise_sharpness/{name}", _unknown_error(value, noise.num_pairs)
        if not self.normalised:
            yield "gradient_norm", exact(_gradient_norm(loss, params, batch))
        if self.sam_rho:
            sam = geometry.sam_sharpness(loss, params, batch, rho=self.sam_rho, **size)
            yield from sam.estimates().items()
        fisher = geometry.fisher_rao(loss, params, batch, labels="observed", **size)
        yield from fisher.estimates().items()
        if self._has_head:
            yield "head_norm", exact(_head_norm(params, self.head))
            yield from self._flatness(loss, params, batch)
        if self.information_examples:
            yield from self._information(loss, params, batch, losses)
        hessian = geometry.hessian(loss, params, batch, **size)
        if self.max_products:
            pairs = geometry.top_eigenpairs(
                hessian, key=keys[1], max_products=self.max_products, vectors=False
            )
            yield from ((f"hessian/{name}", x) for name, x in pairs.estimates().items())
        if self.max_probes:
            trace = geometry.trace(hessian, key=keys[2], max_products=self.max_probes)
            yield "hessian/trace", trace.estimates()["trace"]

    def _flatness(self, loss: Any, params: Any, batch: Any) -> Iterator[tuple[str, Estimate]]:
        size = self.microbatch_size
        found = geometry.relative_flatness(
            loss, params, batch, head=self.head, microbatch_size=size
        )
        yield from found.estimates().items()

    def _information(
        self, loss: Any, params: Any, batch: Any, losses: jax.Array
    ) -> Iterator[tuple[str, Estimate]]:
        few = jax.tree.map(lambda x: x[: self.information_examples], batch)
        found = geometry.information_sharpness(loss, params, few)
        known = found.value / jnp.where(found.upper > 0, found.upper, 1)
        odds: Any = np.expm1(np.asarray(losses, np.float64))
        mean = scores.mean(odds)
        is_known = found.status == Status.OK and known > 0.99
        error = mean.standard_error if is_known else np.nan
        yield "information_sharpness", mean._replace(standard_error=error)
        yield "information_sharpness/known", exact(known)

    def _scaled(
        self, subject: Subject, loss: Classification, params: Any, batch: Any, splits: Splits
    ) -> Iterator[tuple[str, Estimate]]:
        fit = fitted(loss, params, splits)
        yield "temperature", fit.temperature if fit else _UNKNOWN
        by_name = ("relative_flatness", "relative_flatness_normalised") if self._has_head else ()
        if fit is None:
            yield from ((f"scaled/{name}", _UNKNOWN) for name in ("nll", *by_name))
            return
        tempered = tempered_logits(loss.model_fn, jnp.float32(fit.temperature.value))
        scaled = geometry.composed(tempered, CrossEntropy())
        losses = scores.nll(_logits(scaled.model_fn, params, batch), batch["label"])
        yield "scaled/nll", scores.mean(losses)
        if self._has_head:
            yield from ((f"scaled/{n}", x) for n, x in self._flatness(scaled, params, batch))


def as_measured(model: nn.Module) -> nn.Module:
    """The model in float32 and with dropout 0, which changes nothing in eval mode. So arms that
    differ in these share their programs."""
    wanted = {"dtype": jnp.float32, "dropout": 0.0}
    differs = {n: x for n, x in wanted.items() if getattr(model, n, x) != x}
    return model.clone(**differs) if differs else model


def frozen_batch(
    splits: Splits, index: jax.Array, augmentation: Augmentation | None, key: jax.Array
) -> dict[str, jax.Array]:
    """Training examples as a batch. If augmented, the draws depend on `key` alone."""
    taken = data.take(splits.train, index)
    if augmentation is not None:
        pad, flip, padding = augmentation
        fill = 0 if padding == "zero" else data.padding_value(padding, taken.mean)
        image = data.augment(key, taken.input, pad=pad, flip=flip, fill=fill)
        taken = taken._replace(input=image)
    return data.as_batch(taken)


def fitted(loss: Classification, params: Any, splits: Splits) -> temperature.Fit | None:
    """The temperature of a model, fitted on the validation split; None if there is no best one."""
    split = split_of(splits, "validation")
    logits = logits_of(loss, params, split, batch_size=min(500, len(split.label)))
    try:
        return temperature.fit(jnp.asarray(logits), split.label)
    except UserError:  # no mistakes, nothing but mistakes, or no finite logits
        return None


@jax.jit
def _logits(model_fn: Any, params: Any, batch: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return model_fn(params, batch)


@jax.jit
def _gradient_norm(loss: Any, params: Any, batch: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return tree.norm(jax.grad(loss)(params, batch))


def _head_norm(params: Any, head: str) -> jax.Array:
    chosen, _ = tree.partition(params, tree.select(params, head))
    return tree.vdot(chosen, chosen)


def _unknown_error(value: Any, count: Any) -> Estimate:
    return Estimate(value, np.float32(np.nan), count)
