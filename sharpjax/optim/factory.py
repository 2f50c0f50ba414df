"""The optimiser of a run: a spec that can be compared and hashed, and its optax transform."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sharpjax import catalog, perturbation
from sharpjax.errors import UserError, unknown
from sharpjax.optim import settings
from sharpjax.optim.directions import friendly
from sharpjax.optim.sharpness_aware import sam


class Hyperparameters(NamedTuple):
    """The numbers of an optimiser that may be leaves of a pytree: float32 scalars, or traced.

    Attributes:
        learning_rate, weight_decay, rho: as in `OptimizerSpec`.
    """

    learning_rate: jax.Array
    weight_decay: jax.Array
    rho: jax.Array


_OF_SAM = tuple(name for name in settings.OPTIONAL if name not in ("b2", "eps"))

# Stands for a hyperparameter that is a leaf. It equals itself, and no optimiser can have it.
_LEAF = math.inf


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimiser described by its values. It is hashable, so a training step that holds it
    compiles once.

    Specs that differ only in their `hyperparameters()` have the same `structure()`. A step that
    holds the structure and takes the hyperparameters as an argument compiles once for all of them:

        tx = spec.structure().build(spec.hyperparameters())

    Weight decay applies to **all** parameters, biases and normalisation included. It enters the
    descent step, never the ascent of SAM:

        name     step along, g the (perturbed) gradient        weight decay
        sgd      momentum m + g                                coupled
        adam     m / (sqrt(v) + eps), arXiv 1412.6980          coupled
        adamax   m / u, the same paper's section 7.1           coupled
        adamw    as adam, arXiv 1711.05101                     decoupled

    Coupled, as in PyTorch and in the recipes behind SAM's CIFAR results: `weight_decay * w` is
    added to g, so it enters momentum and the adaptive scales. Decoupled: `w` shrinks by
    `learning_rate * weight_decay * w`, which enters nothing else.

    Attributes:
        name: a key of `catalog.OPTIMIZERS`.
        learning_rate: the peak learning rate.
        momentum: of `sgd` (heavy ball); `b1` of the others.
        b2, eps: of all but `sgd`. In `adamax`, u = max(b2 u, |g| + eps).
        weight_decay: see above.
        schedule: after the warm-up: `constant`; `cosine` or `linear`, down to 0 at `total_steps`.
        warmup_steps: steps in which the learning rate rises linearly from 0.
        total_steps: steps of the whole training, warm-up included.
        rho: radius of SAM; 0: no SAM.
        scaling, eta: the units of SAM, a key of `catalog.SCALINGS`; `eta` is for all but `none`.
        m: examples per chunk of m-SAM; 0: the whole batch.
        bias: of `scaling`, as `perturbation.element` takes it.
        only: perturb only the parameters that match this glob; '': all.
        norm, gap_weight, every, reuse: as `sam` takes them.
        ascent_steps: the `steps` of `sam`.
        rho_schedule: 'constant'; or 'learning_rate', proportional to the learning rate, with `rho`
            at its peak (GSAM).
        friendly, friendly_decay: sigma and decay of `friendly` (F-SAM); sigma 0: not used.

    Raises:
        UserError: `weight_decay` or `rho` is not at least 0, or a schedule that decays has no
            `total_steps`.
    """

    name: str
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    total_steps: int = 0
    rho: float = 0.0
    scaling: str = "none"
    eta: float = 0.0
    m: int = 0
    b2: float = settings.OPTIONAL["b2"]
    eps: float = settings.OPTIONAL["eps"]
    bias: Any = settings.OPTIONAL["bias"]
    only: str = settings.OPTIONAL["only"]
    norm: Any = settings.OPTIONAL["norm"]
    ascent_steps: int = settings.OPTIONAL["ascent_steps"]
    rho_schedule: str = settings.OPTIONAL["rho_schedule"]
    gap_weight: float = settings.OPTIONAL["gap_weight"]
    every: int = settings.OPTIONAL["every"]
    reuse: float = settings.OPTIONAL["reuse"]
    friendly: float = settings.OPTIONAL["friendly"]
    friendly_decay: float = settings.OPTIONAL["friendly_decay"]

    def __post_init__(self) -> None:
        for name in ("weight_decay", "rho"):
            value = getattr(self, name)
            # An array stands for a value that may be traced.
            if not isinstance(value, jax.Array) and not value >= 0:
                raise UserError(f"OptimizerSpec: {name}={value}; give a number of 0 or more.")
        if self.schedule in ("cosine", "linear") and self.total_steps <= 0:
            raise UserError(
                f"OptimizerSpec: schedule='{self.schedule}' and total_steps={self.total_steps}; "
                "give the steps of the whole training, or schedule='constant'."
            )

    @property
    def uses_sam(self) -> bool:
        """Whether the optimiser is SAM, whose steps cost a second gradient."""
        return self.rho > 0

    @property
    def gradients(self) -> float:
        """The number of gradients per step, on average.

        >>> [OptimizerSpec("sgd", 0.1, rho=rho, every=5).gradients for rho in (0.0, 0.1)]
        [1, 1.2]
        """
        if not self.uses_sam:
            return 1
        found = 1 + self.ascent_steps / self.every
        return int(found) if found.is_integer() else found

    def hyperparameters(self) -> Hyperparameters:
        """The values that `structure` leaves out."""
        values = (getattr(self, name) for name in Hyperparameters._fields)
        return Hyperparameters(*(jnp.asarray(value, jnp.float32) for value in values))

    def structure(self) -> "OptimizerSpec":
        """The spec without its hyperparameters, which `build` then needs. The absence of weight
        decay or of SAM is part of the structure: a value of 0 stays 0.

        >>> a, b = OptimizerSpec("sgd", 0.1, rho=0.05), OptimizerSpec("sgd", 0.5, rho=0.2)
        >>> a.structure() == b.structure(), a.structure() == OptimizerSpec("sgd", 0.1).structure()
        (True, False)
        """
        return dataclasses.replace(
            self,
            learning_rate=_LEAF,
            weight_decay=_LEAF if self.weight_decay else 0.0,
            rho=_LEAF if self.uses_sam else 0.0,
        )

    def learning_rate_schedule(self) -> optax.Schedule:
        """The learning rate as a function of the step, counted from 0.

        >>> spec = OptimizerSpec("sgd", 0.5, schedule="linear", warmup_steps=2, total_steps=6)
        >>> [float(spec.learning_rate_schedule()(step)) for step in range(7)]
        [0.0, 0.25, 0.5, 0.375, 0.25, 0.125, 0.0]
        """
        peak, decay_steps = self.learning_rate, max(self.total_steps - self.warmup_steps, 1)
        match self.schedule:
            case "constant":
                after = optax.constant_schedule(peak)
            case "cosine":
                after = optax.cosine_decay_schedule(peak, decay_steps)
            case "linear":
                after = optax.linear_schedule(peak, 0.0, decay_steps)
            case _:
                raise unknown("schedule", self.schedule, settings.SCHEDULES)
        if not self.warmup_steps:
            return after
        warmup = optax.linear_schedule(0.0, peak, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def build(self, values: Hyperparameters | None = None) -> optax.GradientTransformationExtraArgs:
        """The optax transform. Its `update` always takes the keywords of `sam`; without SAM it
        ignores them.

        Args:
            values: used instead of the spec's own values, wherever those are not 0. Updates are
                the same, bit by bit, unless something is computed in float64: wider parameters, or
                a cosine with JAX_ENABLE_X64, then use values that were rounded to float32. None:
                the spec's own values. A `structure` without values gives a transform that can
                initialise its state but not update.

        Raises:
            UserError: an unknown name; an update of a structure without values.
        """
        if values is None and self.learning_rate == _LEAF:
            nothing = Hyperparameters(*(jnp.float32(jnp.nan) for _ in Hyperparameters._fields))
            nothing = nothing._replace(rho=jnp.float32(0))  # `sam` checks this one
            return optax.GradientTransformationExtraArgs(self.build(nothing).init, _refuse)
        spec = self if values is None else self._with(values)
        base = spec._base()
        if not self.uses_sam:
            return optax.with_extra_args_support(base)
        rule = catalog.resolve(catalog.lookup("scaling", catalog.SCALINGS, self.scaling))
        scaling = rule() if self.scaling == "none" else rule(eta=self.eta, bias=self.bias)
        rate = spec.learning_rate_schedule()

        def in_proportion(count: Any) -> Any:
            return spec.rho * (rate(count) / spec.learning_rate)

        return sam(
            base,
            rho=in_proportion if self.rho_schedule == "learning_rate" else spec.rho,
            scaling=perturbation.only(self.only, scaling) if self.only else scaling,
            norm=self.norm,
            steps=self.ascent_steps,
            m=self.m or None,
            ascent=friendly(self.friendly, self.friendly_decay) if self.friendly else None,
            gap_weight=self.gap_weight,
            every=self.every,
            reuse=self.reuse,
        )

    def _with(self, values: Hyperparameters) -> "OptimizerSpec":
        # A value of 0 is structure: without decay nothing is added, not even 0 * w.
        fields = values._asdict().items()
        own = {k: v for k, v in fields if k == "learning_rate" or getattr(self, k) != 0}
        return dataclasses.replace(self, **own)

    def _base(self) -> optax.GradientTransformation:
        make = catalog.resolve(catalog.lookup("optimiser", catalog.OPTIMIZERS, self.name))
        rate = self.learning_rate_schedule()
        if self.name == "sgd":
            options = {"momentum": self.momentum or None}
        else:
            options = {"b1": self.momentum, "b2": self.b2, "eps": self.eps}
        if self.name == "adamw":
            return make(rate, weight_decay=self.weight_decay, **options)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), make(rate, **options))


def _refuse(*_: Any, **__: Any) -> Any:
    raise UserError(
        "OptimizerSpec.build: this is the structure of an optimiser, without its learning rate; "
        "give values, the `hyperparameters()` of the spec."
    )


def from_config(
    optim: Any, *, steps_per_epoch: int, total_steps: int, batch_size: int
) -> OptimizerSpec:
    """The optimiser that a config's `optim` block describes.

    Without SAM (`rho` = 0) the fields of SAM are dropped, so that a baseline arm with `m` in its
    config takes plain steps. An `m` equal to the batch size means the whole batch.

    Args:
        optim: see `settings.check`.
        steps_per_epoch: turns `warmup_epochs` into steps.
        total_steps: steps of the whole training.
        batch_size: examples of a training step.

    Raises:
        UserError: a value is not allowed. The message names the field of the config.
    """
    settings.check(optim, batch_size=batch_size, epochs=total_steps / steps_per_epoch)
    spec = OptimizerSpec(
        name=optim.name,
        learning_rate=float(optim.learning_rate),
        momentum=float(optim.momentum),
        weight_decay=float(optim.weight_decay),
        schedule=optim.schedule,
        warmup_steps=round(optim.warmup_epochs * steps_per_epoch),
        total_steps=total_steps,
        b2=float(settings.optional(optim, "b2")),
        eps=float(settings.optional(optim, "eps")),
    )
    if optim.rho == 0:
        return spec
    return dataclasses.replace(
        spec,
        rho=float(optim.rho),
        scaling=optim.scaling,
        eta=float(optim.eta),
        m=optim.m % batch_size,
        **{name: settings.optional(optim, name) for name in _OF_SAM},
    )
