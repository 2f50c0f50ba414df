"""Teachers: the targets of a student's outputs, from a model or from a control.

The effect of distillation (Hinton et al., arXiv 1503.02531) on accuracy can only be explained in
comparison with teachers that know less. There is one kind for each thing that is taken away.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from sharpjax import loops, tree
from sharpjax.errors import UserError, unknown
from sharpjax.losses.classification import apply
from sharpjax.losses.divergences import DIVERGENCES, divergence
from sharpjax.losses.likelihood import Batch

KINDS: Mapping[str, str] = {
    "model": "a model's outputs",
    "ensemble": "the mean of several models' probabilities",
    "stored": "outputs that were computed before, by the number of the example",
    "shuffled": "a model's outputs for another example of the batch",
    "permuted": "a model's outputs, those of all classes but its first choice in random order",
    "entropy-matched": "a model's outputs in random order",
    "constant": "the same distribution for every example",
    "uniform": "random outputs, uniform in [0, 1)",
    "gaussian": "random outputs, standard normal",
}
"""The kinds of teachers."""

INPUTS = ("logits", "probabilities")
_WITH_MODEL = ("model", "ensemble", "shuffled", "permuted", "entropy-matched")
_RANDOM = ("shuffled", "permuted", "entropy-matched", "uniform", "gaussian")


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Teacher:
    """The source of a student's targets, in eval mode and without a gradient.

    With t_i the teacher's outputs for example i and z_i the student's, a student minimises

        weight T^2/B sum_i KL(softmax(t_i/T) || softmax(z_i/T)) + (1 - weight) cross-entropy

    The first term is `distillation`, or another divergence of `losses.divergences.DIVERGENCES`; the
    second is added by `Objective`. A weight of 1 is the teacher alone. Some papers and codes give
    the weight of the labels instead; here it is always that of the teacher.

        kind              t_i                                       keeps of the model
        model             f(x_i)                                    all
        ensemble          log 1/M sum_m softmax f_m(x_i)            all (arXiv 2106.05945)
        stored            a row of `params`, by batch["index"];     all, and costs nothing
                          NaN where there is no such row
        permuted          f(x_i), all classes but the first choice  choice, confidence, entropy
                          in random order (arXiv 1805.04770)
        entropy-matched   f(x_i) in random order of classes         entropy, at every temperature
        shuffled          f(x_j), j another example of the batch    its outputs as a set
        constant          log prior; a uniform one smooths labels   nothing
                          by `weight` (if T = 1)
        uniform           U[0, 1) for each class                    nothing
        gaussian          N(0, 1) for each class                    nothing

    For an untrained teacher, or one of an earlier epoch, use `model` with those parameters. Noise
    is drawn before the softmax; the papers that use such teachers do not state the distribution.

    Random kinds draw for each example by its position in the batch, or by batch["index"] if given.
    `at(step)` gives them another key at every step; with `fresh=False` an example has the same draw
    at every step. Both gradients of SAM use the same teacher. In m-SAM each chunk is a batch: it is
    shuffled within itself, so its size must be at least 2, and without an index all chunks have the
    same draws.

    A teacher model is evaluated on the same augmented batch as its student: the two cannot see
    different data. `stored` outputs are those of the images without augmentation.

    Cost: a forward pass of each of the teacher's models.

    Attributes:
        kind: a key of `KINDS`. Static.
        weight: in [0, 1].
        temperature: T, above 0.
        model: for the kinds that have one; its outputs are [B, K]. Static.
        params, variables: the model's parameters and its other collections. For an `ensemble` each
            leaf has a leading axis of its M members; for `stored`, `params` is an array [N, K].
        prior: [K] probabilities for `constant`; None: uniform.
        key: for random kinds.
        fresh: whether draws differ from step to step. Static.
        divergence: a key of `losses.divergences.DIVERGENCES`. Static.
        inputs: 'logits'; or 'probabilities': the outputs of both pass through a softmax before the
            division by T, and then through the divergence's own softmax, which leaves next to
            nothing of the teacher. The code of a published study does this. It applies to noise as
            well. Static.

    Raises:
        UserError: an unknown kind, divergence or input; a weight or temperature out of range, if it
            is a float; a model that is missing, or that the kind does not have; `shuffled` with
            `fresh=False`, whose partners depend on the batch; `stored` probabilities (the first 256
            rows are checked, if they are not traced). When called: missing params, key or index;
            members that are not stacked; a number of classes other than the student's; `shuffled`
            with one example.

    >>> teacher = Teacher(kind="constant", weight=0.1, temperature=1.0)
    >>> print(teacher(jnp.log(jnp.array([[0.5, 0.25, 0.25]])), {}))  # log(32 / 27) / 3
    0.05663301
    """

    kind: str = dataclasses.field(metadata={"static": True})
    weight: ArrayLike
    temperature: ArrayLike
    model: nn.Module | None = dataclasses.field(default=None, metadata={"static": True})
    params: Any = None
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prior: jax.Array | None = None
    key: jax.Array | None = None
    fresh: bool = dataclasses.field(default=True, metadata={"static": True})
    divergence: str = dataclasses.field(default="kl", metadata={"static": True})
    inputs: str = dataclasses.field(default="logits", metadata={"static": True})

    def __post_init__(self) -> None:
        # Only floats are checked: traced values are not known, and in a tree of axes for `vmap` the
        # leaves of a teacher are integers.
        weight, temperature = (
            value if isinstance(value, float) else 1.0 for value in (self.weight, self.temperature)
        )
        check_teacher(
            self.kind,
            weight=weight,
            temperature=temperature,
            fresh=self.fresh,
            divergence=self.divergence,
            inputs=self.inputs,
        )
        if (self.model is not None) != (self.kind in _WITH_MODEL):
            has = "has no model" if self.kind not in _WITH_MODEL else "needs model and params"
            raise UserError(f"losses.Teacher: one of kind '{self.kind}' {has}.")
        if self.kind == "stored" and are_probabilities(self.params):
            raise UserError(
                "losses.Teacher: the stored outputs are probabilities, rows of sum 1, which would "
                "pass a second softmax; give logits, or the logarithms of these."
            )

    def __call__(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The divergence of a student's outputs, [B, K], from the teacher's, without the weight, in
        at least float32."""
        logits = tree.widen(logits)
        targets = self.logits(batch, logits)
        if self.inputs == "probabilities":
            logits, targets = jax.nn.softmax(logits), jax.nn.softmax(targets)
        return divergence(self.divergence, logits, targets, self.temperature)

    def at(self, step: ArrayLike) -> "Teacher":
        """The teacher at one step of training. The step may be traced."""
        if self.key is None or not self.fresh:
            return self
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, step))

    def logits(self, batch: Batch, like: jax.Array) -> jax.Array:
        """The teacher's outputs for a batch, with the shape [B, K] and dtype of the student's."""
        if self.kind in (*_WITH_MODEL, "stored") and self.params is None:
            raise UserError(f"losses.Teacher: one of kind '{self.kind}' needs params.")
        if self.kind in _RANDOM and self.key is None:
            raise UserError(f"losses.Teacher: one of kind '{self.kind}' needs a key.")
        match self.kind:
            case "constant":
                outputs = jnp.zeros(like.shape[1]) if self.prior is None else jnp.log(self.prior)
                outputs = jnp.broadcast_to(outputs, (len(like), outputs.size))
            case "uniform" | "gaussian":
                draw = jax.random.uniform if self.kind == "uniform" else jax.random.normal
                outputs = jax.vmap(lambda key: draw(key, like.shape[1:], like.dtype))(
                    self._keys(batch, len(like))
                )
            case "stored":
                if "index" not in batch:
                    raise UserError(
                        "losses.Teacher: one of kind 'stored' needs batch['index'], the row of "
                        "each example in params."
                    )
                outputs = (
                    jnp.asarray(self.params)
                    .at[batch["index"]]
                    .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
                )
            case "ensemble":
                outputs = self._ensemble(batch)
            case _:
                outputs = apply(self, self.params, batch, train=False, mutable=False)
        if outputs.shape != like.shape:
            raise UserError(
                f"losses.Teacher: its outputs are {list(outputs.shape)} and the student's "
                f"{list(like.shape)}; give a teacher of the same classes."
            )
        match self.kind:
            case "shuffled":
                if len(outputs) < 2:
                    raise UserError(
                        "losses.Teacher: one of kind 'shuffled' got a batch, or a chunk of m-SAM, "
                        "of one example, which has no other to be taught by; give batches and "
                        "chunks of at least 2, or take 'entropy-matched'."
                    )
                outputs = outputs[_partners(self.key, len(outputs))]
            case "permuted":
                outputs = jax.vmap(_permute_others)(self._keys(batch, len(like)), outputs)
            case "entropy-matched":
                outputs = jax.vmap(jax.random.permutation)(self._keys(batch, len(like)), outputs)
        return jax.lax.stop_gradient(outputs.astype(like.dtype))

    def _ensemble(self, batch: Batch) -> jax.Array:
        # One member after another: on CPU a convolution batched over members is many times slower.
        members = (self.params, self.variables)
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(members)}
        if len(lengths) != 1 or () in lengths:
            raise UserError(
                "losses.Teacher: params and variables of an ensemble need one leading axis of its "
                "members; give `tree.stack([...])` of theirs."
            )
        count = lengths.pop()[0]
        logs = [
            jax.nn.log_softmax(apply(one, one.params, batch, train=False, mutable=False))
            for one in (
                dataclasses.replace(self, params=params, variables=variables)
                for params, variables in (tree.index(members, i) for i in range(count))
            )
        ]
        return jax.nn.logsumexp(jnp.stack(logs), axis=0) - math.log(count)

    def _keys(self, batch: Batch, count: int) -> jax.Array:
        """A key for each example."""
        if not self.fresh and "index" not in batch:
            raise UserError(
                "losses.Teacher: fresh=False needs batch['index'], a number of its own for each "
                "example, so that it has the same draw at every step."
            )
        key: Any = self.key
        index = batch["index"] if "index" in batch else jnp.arange(count)
        return jax.vmap(functools.partial(jax.random.fold_in, key))(index)


def num_models(kind: str) -> tuple[int, float]:
    """The smallest and largest number of models that a teacher of this kind has or is made of."""
    if kind in ("ensemble", "stored"):
        return 1, math.inf
    return (1, 1) if kind in _WITH_MODEL else (0, 0)


def check_teacher(
    kind: str,
    *,
    weight: float,
    temperature: float,
    fresh: bool = True,
    divergence: str = "kl",
    inputs: str = "logits",
) -> None:
    """Checks the settings of a teacher before it is built.

    Raises:
        UserError: an unknown kind, divergence or input; a weight outside [0, 1]; a temperature that
            is not above 0; `shuffled` with `fresh=False`.
    """
    if kind not in KINDS:
        raise unknown("teacher", kind, KINDS)
    if divergence not in DIVERGENCES:
        raise unknown("divergence (losses.Teacher)", divergence, DIVERGENCES)
    if inputs not in INPUTS:
        raise unknown("inputs (losses.Teacher)", inputs, INPUTS)
    if not 0 <= weight <= 1:
        raise UserError(
            f"losses.Teacher: weight={weight}; give a number in [0, 1], 1 for the teacher alone."
        )
    if not 0 < temperature < math.inf:
        raise UserError(f"losses.Teacher: temperature={temperature}; give a number above 0.")
    if kind == "shuffled" and not fresh:
        raise UserError(
            "losses.Teacher: one of kind 'shuffled' is shuffled within each batch; give "
            "fresh=True, or take 'entropy-matched', whose draws can be fixed."
        )


def are_probabilities(outputs: Any) -> bool:
    """Whether the first 256 rows of [N, K] have sum 1 and no negative entry; False if traced."""
    if not isinstance(outputs, jax.Array | np.ndarray) or loops.is_traced(outputs):
        return False
    if outputs.ndim != 2 or not outputs.size:
        return False
    rows = np.asarray(outputs[:256], np.float64)
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < 1e-3).all())


def _partners(key: Any, count: int) -> jax.Array:
    """A partner for each example, never itself and each used once: a random cycle through all."""
    order = jax.random.permutation(key, count)
    return jnp.zeros_like(order).at[order].set(jnp.roll(order, 1))


def _permute_others(key: jax.Array, outputs: jax.Array) -> jax.Array:
    """Outputs [K] in random order, except for the largest, which stays in place."""
    mixed = jax.random.permutation(key, outputs)
    first, place = jnp.argmax(outputs), jnp.argmax(mixed)
    return mixed.at[place].set(mixed[first]).at[first].set(outputs[first])
