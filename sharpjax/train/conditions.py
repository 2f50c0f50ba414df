"""Members that differ from another one in one respect: start, order of data, or initial weights.

    base                 SIDDO               DISDO               DIDDO
    initial weights      the same            drawn anew          drawn anew
    order of data        drawn anew          the same            drawn anew

They are controls that show what a teacher adds. A student that starts as its teacher did and reads
the data in another order is a SIDDO with a teacher; its control is SIDDO. Each stream of
`plan.ROLES` (initial weights, order, augmentation, dropout, teacher) is drawn separately.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.train.plan import ROLES, Member, Subject
from sharpjax.train.results import Of, of
from sharpjax.train.state import TrainState


def redrawn(member: Member, *roles: str, draw: int = 1) -> Member:
    """The member with new streams for these roles. All other streams stay the same to the bit.

    Args:
        roles: of `plan.ROLES`.
        draw: number of the new streams. Equal numbers give equal streams, in any arm.

    Raises:
        UserError: an unknown role.

    >>> redrawn(Member(3), "order", "augmentation").streams
    (('order', (3, 'order/1')), ('augmentation', (3, 'augmentation/1')))
    """
    for role in roles:
        if role not in ROLES:
            raise unknown("role (train.redrawn)", role, ROLES)
    kept = tuple((role, own) for role, own in member.streams if role not in roles)
    seeds = {role: member.decides(role)[0] for role in roles}
    return member._replace(
        streams=(*kept, *((role, (seeds[role], f"{role}/{draw}")) for role in roles))
    )


def siddo(member: Member, *, draw: int = 1) -> Member:
    """Same initialisation, different data order. Augmentation and dropout are functions of the step
    and stay the same; to change them too, use
    `redrawn(member, "order", "augmentation", "dropout")`.

    >>> base = Member(0)
    >>> siddo(base).decides("init") == base.decides("init")
    True
    >>> siddo(base).decides("order") == base.decides("order")
    False
    """
    return redrawn(member, "order", draw=draw)


def disdo(member: Member, *, draw: int = 1) -> Member:
    """Different initialisation, same data order. Augmentation and dropout are also the same.

    Raises:
        UserError: the member starts from a state, so no initial weights are drawn.

    >>> base = Member(0)
    >>> [disdo(base).decides(role) == base.decides(role) for role in ("init", "order")]
    [False, True]
    """
    return redrawn(_drawn("disdo", member), "init", draw=draw)


def diddo(member: Member, *, draw: int = 1) -> Member:
    """Different initialisation, different data order.

    Raises:
        UserError: as in `disdo`.

    >>> base = Member(0)
    >>> [diddo(base).decides(role) == base.decides(role) for role in ("init", "order")]
    [False, False]
    """
    return redrawn(_drawn("diddo", member), "init", "order", draw=draw)


def _drawn(name: str, member: Member) -> Member:
    if member.start is not None:
        raise UserError(
            f"train.{name}: member {member.key} starts from a state of arm '{member.start.arm}', "
            f"which no stream decides; give one without `start`."
        )
    return member


@dataclasses.dataclass(frozen=True)
class Between:
    """A transform for `Derive`: (1 - c) w + c W, with fresh weights w and the weights W of a model,
    for each share c. The results can be the starts of students that know the share c of their
    teacher (arXiv 2106.05945). The same with new noise is "shrink and perturb" (arXiv 1910.08475).

    0 per cent is a fresh start and 100 is the model, to the bit. BatchNorm statistics and other
    collections beside the parameters are interpolated in the same way.

    Attributes:
        percent: the shares c, whole numbers from 0 to 100, each once.
        input_shape: of one example, `input_shape` of the data.
        input_dtype: 'float32' for images; 'int32' for tokens.

    Raises:
        UserError: a share that is not a whole number from 0 to 100, or is named twice.

    >>> Between((0, 50), (8, 8, 1)).outputs
    ((('percent', 0),), (('percent', 50),))
    """

    percent: tuple[int, ...]
    input_shape: tuple[int, ...]
    input_dtype: str = "float32"

    def __post_init__(self) -> None:
        for share in self.percent:
            if whole_number("train.Between", "percent", share, least=0) > 100:
                raise UserError(f"train.Between: percent={share}; give at most 100.")
        if len({*self.percent}) < len(self.percent):
            raise UserError(f"train.Between: percent={self.percent}; give each once.")

    @property
    def outputs(self) -> tuple[Of, ...]:
        """The value for `Derive.outputs`."""
        return tuple(of(percent=share) for share in self.percent)

    def __call__(self, subject: Subject, key: jax.Array) -> Iterator[tuple[Of, TrainState]]:
        state = subject.state
        fresh = dict(_fresh(subject.model, self.input_shape, self.input_dtype, key))
        first, last = (fresh.pop("params"), fresh), (state.params, state.variables)
        for own, share in zip(self.outputs, self.percent, strict=True):
            c = share / 100
            params, variables = jax.tree.map(lambda w, W, c=c: (1 - c) * w + c * W, first, last)
            yield own, dataclasses.replace(state, params=params, variables=variables)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fresh(model: nn.Module, shape: tuple[int, ...], dtype: str, key: jax.Array) -> Any:
    return model.init(key, jnp.zeros((1, *shape), dtype), train=False)
