"""Pruning in a plan: models with weights set to 0, masks for later stages, rounds of both."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax

from sharpjax.compress import prune
from sharpjax.compress.prune.structures import Elements, Structure
from sharpjax.errors import UserError, unknown
from sharpjax.train.plan import At, Derive, Ref, Stage, Subject, Train
from sharpjax.train.results import Of, joined, of
from sharpjax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Prune:
    """A transform that makes several pruned models of one, or their masks.

        made = Prune((50, 90))
        Derive("pruned", "base", made, evaluators, outputs=made.outputs)
        Member(0, start=Ref("base", 0), mask=Ref("pruned", 0, made.of(90)))

    Attributes:
        percent: how much is pruned, in [0, 100); the coordinate `pruned` of each model.
        method: 'magnitude', or 'random' by the key of the stage. In one stage, the masks of a seed
            are nested.
        scope: 'kernels' and 'trainable' as in `prune.mask`; 'variables': parameters and BatchNorm
            statistics together, as in `prune.prune_variables`.
        layers: 'global', 'uniform' or 'erk'.
        structure: what is pruned as a unit.
        masks: yield the mask, 1 and 0, in place of the weights. `Member.mask` takes every 0 of a
            state as pruned, also a kept weight that happens to be 0, such as a bias that was never
            trained. A mask has no such cases.
        named: False, for a single amount: its models have no coordinate of their own, only their
            arm.
    """

    percent: tuple[float, ...]
    method: Literal["magnitude", "random"] = "magnitude"
    scope: Literal["kernels", "trainable", "variables"] = "kernels"
    layers: Literal["global", "uniform", "erk"] = "global"
    structure: Structure = Elements()  # noqa: RUF009, a frozen value
    masks: bool = False
    named: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, ("magnitude", "random")),
            ("scope", self.scope, ("kernels", "trainable", "variables")),
            ("layers", self.layers, ("global", "uniform", "erk")),
        ):
            if value not in known:
                raise unknown(f"{name} (pruning.Prune)", str(value), known)
        if not all(0 <= percent < 100 for percent in self.percent):
            raise UserError(
                f"pruning.Prune: percent={self.percent}; give numbers that are at least 0 and less "
                "than 100, which prunes everything."
            )
        if not self.named and len(self.percent) != 1:
            raise UserError(
                f"pruning.Prune: percent={self.percent} and named=False; give one amount, or leave "
                "their names."
            )
        whole = self.layers == "global" and self.structure == Elements()
        if self.scope == "variables" and (self.masks or not whole):
            raise UserError(
                "pruning.Prune: scope='variables' prunes single numbers of the whole state, "
                "globally, and has no mask of the weights; leave layers, structure and masks alone."
            )

    @property
    def outputs(self) -> tuple[Of, ...]:
        """The value for `Derive.outputs`."""
        return tuple(map(self.of, self.percent))

    def of(self, percent: float) -> Of:
        """The coordinates of one of its models: a whole number, else text with six digits. Empty if
        it is not `named`.

        >>> Prune((90,)).of(90), Prune((90,)).of(100 * (1 - 0.8**3))
        ((('pruned', 90),), (('pruned', '48.8'),))
        """
        if not self.named:
            return ()
        text = f"{percent:g}"
        return of(pruned=int(text) if text.isdigit() else text)

    def __call__(self, subject: Subject, key: jax.Array) -> Iterator[tuple[Of, TrainState]]:
        for percent in self.percent:
            params, variables = self._pruned(subject.state, percent / 100, key)
            made = dataclasses.replace(subject.state, params=params, variables=variables)
            yield self.of(percent), made

    def _pruned(self, state: TrainState, amount: float, key: jax.Array) -> tuple[Any, Any]:
        params, variables = state.params, state.variables
        if self.scope == "variables":
            return prune.prune_variables(params, variables, amount, method=self.method, key=key)[:2]
        shares = {
            "global": lambda: amount,
            "uniform": lambda: prune.uniform(params, amount, self.scope),
        }
        shares["erk"] = lambda: prune.erk(params, amount, self.scope)
        mask = prune.mask(
            params, shares[self.layers](), method=self.method, scope=self.scope,
            structure=self.structure, key=key,
        )  # fmt: skip
        if self.masks:
            return jax.tree.map(lambda m, w: m.astype(w.dtype), mask, params), variables
        return prune.apply_mask(params, mask), variables


def rounds(
    first: Train, percent: Sequence[float], transform: Prune, rewind: At | None = "start"
) -> tuple[Stage, ...]:
    """Iterative pruning of a trained arm. Each round has two arms: the masks of the models before
    it, and an arm that trains with them.

    Round i reads the arm before it, prunes `percent[i]` of all weights, and trains anew as `first`
    does: same data, step, epochs and streams, a fresh optimiser, and the learning-rate schedule
    from its beginning. Its arms are `<first>-masks-<i>` and `<first>-round-<i>`, i from 1.

    Args:
        first: the arm that is pruned; it is not among the returned stages.
        percent: of each round, rising: `100 * a` for the amounts of `prune.iterative`.
        transform: how to prune, by magnitude; its percent and masks are set here.
        rewind: the state of `first` that each round starts from: 'start' (lottery tickets, arXiv
            1803.03635) or a step that `first.snapshots` keeps (1912.05671). None: the weights of
            the round before, with the learning rate from its beginning (2003.02389).

    Raises:
        UserError: the amounts do not rise, or the method is 'random', whose masks would not be
            nested, as each round has its own key.
    """
    if list(percent) != sorted(set(percent)):
        raise UserError(f"pruning.rounds: percent={tuple(percent)}; give amounts that rise.")
    if transform.method == "random":
        raise UserError(
            "pruning.rounds: method='random' would draw each round anew, so that pruned weights "
            "come back; give method='magnitude', or take nested random masks from one Derive stage "
            "with Prune(percent, method='random', masks=True)."
        )
    stages: list[Stage] = []
    before = first.arm
    for i, amount in enumerate(percent, 1):
        own = dataclasses.replace(transform, percent=(amount,), masks=True)
        masks, arm = f"{first.arm}-masks-{i}", f"{first.arm}-round-{i}"
        members = []
        for member in first.members:
            start = Ref(before, member.seed, member.of)
            if rewind is not None:
                start = Ref(first.arm, member.seed, member.of, rewind)
            mask = Ref(masks, member.seed, joined(member.of, own.of(amount)))
            members.append(member._replace(start=start, mask=mask))
        stages.append(Derive(masks, before, own, (), outputs=own.outputs))
        stages.append(dataclasses.replace(first, arm=arm, members=tuple(members)))
        before = arm
    return tuple(stages)
