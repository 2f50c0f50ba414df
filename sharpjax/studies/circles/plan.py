"""The concentric circles of paper 1 as a study (arXiv 2510.12451, journal version; T1.11 to T1.23).

Arms `factor_<per cent>` differ in the radius of the inner circle, and so in how tight the boundary
must be. Arms `labels_true` and `labels_<n>` differ in the labels: the true ones, or draw n of
random ones. Arms of one seed share initial weights and the order of examples. A model is trained
for all epochs, whatever it has learnt.

The `step` of a row is an epoch. Besides the metrics of `train.epochs`, the following are measured
at the end and at a few epochs before it, on the whole training set with the labels that the model
is trained on:

    data/factor
    train/nll, train/fitted            loss and accuracy of the state after the epoch
    train/fisher_rao                   by its definition: one product with the Fisher matrix
    train/relative_flatness, train/relative_flatness_normalised
    train/lambda_1                     of the Hessian
    train/average_sharpness            mean rise of the loss on a sphere: the part of curvature
    authors/fisher_rao                 by the formula with the factor number of layers + 1
    authors/relative_flatness          features normalised, a sum over the training batches
    authors/noise_sharpness            mean of |L(w + e) - L(w)| / rho, |e| about rho
    perfect/<measure>                  the measures of `MEASURES`, of models with test accuracy 1
    fitted/<measure>                   the same, of models with training accuracy 1
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import geometry, nn, schema, tree
from sharpjax.data import Circles, DataSpec, Examples, Splits, as_batch
from sharpjax.estimate import Estimate
from sharpjax.losses import Classification
from sharpjax.optim import OptimizerSpec
from sharpjax.runs.study import Study
from sharpjax.schema import Config
from sharpjax.studies.circles import asks, shows
from sharpjax.studies.papers import conventions
from sharpjax.train.epochs import Epochs
from sharpjax.train.plan import Cost, Member, Plan, Subject, Train, When
from sharpjax.train.results import Results, exact, results


def plan(config: Config) -> Plan:
    """The data and the training stage of each arm."""
    members = tuple(map(Member, config.seeds))
    specs, stages = {}, []
    arms = schema.complete_arms(config)
    for name in asks.in_order(_factors(arms)):
        specs[name] = Circles(**arms[name].data.to_dict(), noise_kind="uniform")
        stages.append(_arm(name, arms[name], specs[name], members))
    return Plan(specs, tuple(stages))


def _factors(arms: Mapping[str, Config]) -> dict[str, float]:
    return {name: arm.data.factor for name, arm in arms.items()}


def hypotheses(config: Config) -> tuple:
    """T1.11 to T1.23; see `asks`."""
    return asks.hypotheses(_factors(schema.complete_arms(config)))


def _arm(name: str, arm: Config, spec: Circles, members: tuple[Member, ...]) -> Train:
    model = nn.build(
        "mlp", num_classes=spec.num_classes, width=arm.model.width, depth=arm.model.depth
    )
    optimizer = OptimizerSpec("sgd", arm.optim.learning_rate, momentum=arm.optim.momentum)
    measures = arm.evaluate.sharpness.to_dict()
    when = When(epochs=measures.pop("epochs"))
    return Train(
        arm=name,
        members=members,
        data=name,
        step=Epochs(model, optimizer, arm.train.batch_size, all_epochs=True),
        epochs=arm.train.epochs,
        checkpoint_epochs=arm.train.checkpoint_epochs,
        rows=when,
        evaluators=(
            Sharpness(when, spec.factor, arm.train.batch_size, arm.model.depth + 1, **measures),
            Boundary(members[0].seed, arm.evaluate.boundary.resolution),
        ),
        population=arm.train.population,
    )


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """Sharpness by the definitions and by the authors' code, on the whole training set.

    Cost: some 20 products with the Hessian, two forward passes per pair and one per draw. A model
    of 10,602 parameters takes 80 ms on one core with 100 examples.

    Attributes:
        factor: that of the circles; it becomes a row.
        batch_size: that of training; the authors sum relative flatness over these batches.
        num_layers: as the authors count them, without the 1 that they add.
        tol, max_products: of the search for the largest eigenvalue.
        average_rho, num_pairs: of average sharpness, on the sphere.
        noise_rho, num_draws: of the authors' noise.
    """

    when: When
    factor: float
    batch_size: int
    num_layers: int
    tol: float
    max_products: int
    average_rho: float
    num_pairs: int
    noise_rho: float
    num_draws: int
    name: str = "sharpness"
    kind: str = "geometry"

    @property
    def metrics(self) -> tuple[str, ...]:
        train = ("nll", "fitted", *asks.MEASURES, "relative_flatness")
        return (
            "data/factor",
            *(f"train/{name}" for name in train),
            *(f"authors/{name}" for name in ("fisher_rao", "relative_flatness", "noise_sharpness")),
            *(f"{which}/{name}" for which in ("perfect", "fitted") for name in asks.MEASURES),
        )

    def cost(self, spec: DataSpec) -> Cost:
        return Cost((9 * self.max_products + 2 * self.num_pairs + self.num_draws) * spec.num_train)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        loss = Classification(subject.model, subject.state.variables)
        params, batch = subject.state.params, _batch(data.train)
        keys = jax.random.split(key, 3)
        logits, nll = _outputs(loss, params, batch)
        fits = _accuracy(logits, batch["label"])
        test = _batch(data.test)
        generalises = _accuracy(_outputs(loss, params, test)[0], test["label"])
        found = self._defined(loss, params, batch, keys[0], keys[1])
        own = {name: found[name] for name in asks.MEASURES}
        rows = {"data/factor": exact(self.factor), "train/nll": exact(nll)}
        rows |= {"train/fitted": exact(fits)} | _named("train", found)
        rows |= _named("authors", self._of_authors(subject, batch, logits, found, keys[2]))
        rows |= _named("perfect", own) if generalises == 1 else {}
        rows |= _named("fitted", own) if fits == 1 else {}
        return carry, results(rows)

    def _defined(
        self, loss: Classification, params: Any, batch: Any, *keys: jax.Array
    ) -> dict[str, Estimate]:
        pairs = geometry.top_eigenpairs(
            geometry.hessian(loss, params, batch),
            key=keys[0], k=1, tol=self.tol, max_products=self.max_products, vectors=False,
        )  # fmt: skip
        average = geometry.average_sharpness(
            loss, params, batch,
            key=keys[1], rho=self.average_rho, noise="sphere", max_pairs=self.num_pairs,
        )  # fmt: skip
        flatness = geometry.relative_flatness(loss, params, batch, head="head/kernel")
        return {
            **geometry.fisher_rao(loss, params, batch).estimates(),
            **flatness.estimates(),
            "lambda_1": pairs.estimates()["lambda_1"],
            **average.estimates(),
        }

    def _of_authors(
        self, subject: Subject, batch: Any, logits: Any, found: dict[str, Estimate], key: jax.Array
    ) -> dict[str, Estimate]:
        state = {"params": subject.state.params, "variables": subject.state.variables}
        changes = np.abs(
            conventions.noise_changes(
                conventions.LossOfState(subject.model), state, batch, key=key, rho=self.noise_rho,
                num_draws=self.num_draws, num_params=tree.size(subject.state.params),
            )
        ) / self.noise_rho  # fmt: skip
        error = np.std(changes, ddof=1) / np.sqrt(self.num_draws)
        norm = conventions.fisher_rao(logits, batch["label"], num_layers=self.num_layers)
        total = conventions.summed_over_batches(
            found["relative_flatness_normalised"].value,
            num_examples=len(logits), batch_size=self.batch_size,
        )  # fmt: skip
        return {
            "fisher_rao": exact(norm),
            "relative_flatness": exact(total),
            "noise_sharpness": Estimate(changes.mean(), error, np.int32(self.num_draws)),
        }


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Stores the predicted probability of the inner circle on a square grid, for the models of one
    seed."""

    seed: int
    resolution: int
    when: When = When()
    name: str = "boundary"
    kind: str = "evaluation"
    metrics: tuple[str, ...] = ()

    def cost(self, spec: DataSpec) -> Cost:
        return Cost(self.resolution**2, stored=4 * self.resolution**2)

    def init(self, subject: Subject, data: Splits) -> tuple:
        return ()

    def __call__(self, carry: Any, subject: Subject, data: Splits, key: jax.Array):
        if subject.seed != self.seed:
            return carry, results({})
        axis = shows.grid(self.resolution)
        points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        batch = {"image": jnp.asarray(points, jnp.float32), "label": jnp.zeros(len(points), int)}
        loss = Classification(subject.model, subject.state.variables)
        logits, _ = _outputs(loss, subject.state.params, batch)
        inner = np.asarray(jax.nn.softmax(logits)[:, 1])
        return carry, Results({}, {"inner": inner.reshape(self.resolution, self.resolution)})


@jax.jit
def _outputs(loss: Classification, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The logits and the loss."""
    with jax.default_matmul_precision("highest"):
        logits = loss.logits(params, batch)
        return logits, loss.outer_loss(logits, batch)


def _batch(examples: Examples) -> dict[str, jax.Array]:
    """The batch as it is trained on. Leaving out the true labels gives all sets one structure, so
    there is one compilation."""
    return as_batch(examples._replace(true_label=None))


def _accuracy(logits: Any, label: Any) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == label))


def _named(prefix: str, found: dict[str, Estimate]) -> dict[str, Estimate]:
    return {f"{prefix}/{name}": estimate for name, estimate in found.items()}


STUDY = Study(plan, hypotheses, tables=shows.tables, figures=shows.figures)
