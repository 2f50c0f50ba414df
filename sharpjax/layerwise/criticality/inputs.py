"""Whether a Flax model takes the inputs that it is given, reported in one line."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError, InvalidRngError

from sharpjax.errors import UserError

_RAISED = (FlaxError, TypeError, ValueError, IndexError, ZeroDivisionError, AssertionError)


def check_model(caller: str, model: Any) -> None:
    """Refuses anything but a Flax module.

    Raises:
        UserError: names `caller`.
    """
    if not isinstance(model, nn.Module):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        raise UserError(
            f"{caller}: model is {kind}; give a Flax module, such as nn.MLP(num_classes=10)."
        )


def image_of(caller: str, model: Any, batch: Any) -> Any:
    """The part of a batch that a Flax classifier reads.

    Raises:
        UserError: names `caller`; there is no 'image'.
    """
    if not isinstance(batch, Mapping) or "image" not in batch:
        has = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise UserError(
            f"{caller}: {type(model).__name__} reads 'image', and batch has {has}; give a dict of "
            "arrays with 'image' [N, ...]."
        )
    return batch["image"]


@contextlib.contextmanager
def fits(caller: str, model: Any, name: str, inputs: Any) -> Iterator[None]:
    """Turns what a model raises for inputs of a wrong shape into a `UserError`.

    Raises:
        UserError: names `caller`, the argument `name`, its shape, and the model's own message.
    """
    try:
        yield
    except InvalidRngError:
        raise
    except UserError as error:
        words = str(error).removeprefix("losses.Classification: ").removeprefix(f"{caller}: ")
        raise UserError(f"{caller}: {words}") from error
    except _RAISED as error:
        shapes = [
            list(jnp.shape(leaf)) for leaf in jax.tree.leaves(inputs) if hasattr(leaf, "shape")
        ]
        shown = " and ".join(map(str, shapes)) or f"{inputs!r}".split("\n")[0]
        said = (str(error).strip() or type(error).__name__).split("\n")[0].split(" (http")[0]
        raise UserError(
            f"{caller}: {type(model).__name__} does not take {name} {shown} ({said.rstrip('.')}); "
            "give the shape and type of the examples that it was made for, and weights of it."
        ) from error
