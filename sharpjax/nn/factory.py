"""Builds a model from its name, or from a config."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sharpjax import catalog
from sharpjax.errors import UserError, nearest, whole_number
from sharpjax.nn import layers

DTYPES = ("float32", "bfloat16", "float16", "float64")


def build(
    name: str, *, num_classes: int, width: int = 0, dtype: DTypeLike = "float32", **options: Any
) -> nn.Module:
    """The model that `catalog.MODELS` knows as `name`.

    Args:
        name: one of the models below, listed with the meaning of `width` (its default in brackets):

            - `mlp`: units of each of the two hidden layers (512)
            - `small_conv`: filters of the first convolution, half of those of the second (16)
            - `lenet`: filters of the first convolution; the second has twice as many, and there
              are four times as many hidden units (32)
            - `resnet18`, `resnet20`, `resnet_narrow`: filters of the stem and of the first stage;
              each stage doubles them (64, 16, 16)
            - `resnet50`, `resnet50_narrow`: filters of the stem; a block of the first stage outputs
              four times as many, and each stage doubles them (64, 8)
            - `mobilenet`, `mobilenet_narrow`: filters of the stem; the first stage has twice as
              many, and each stage doubles them (32, 16)
            - `vgg9`, `vgg16`, `vgg19`, `vgg_narrow`: filters of the first stage; each stage doubles
              them, up to 8 times as many, or 4 times in `vgg_narrow` (64, 64, 64, 16)
            - `vit`, `vit_small`, `vit_narrow`: dimension of a token (512, 512, 64)
        num_classes: number of logits.
        width: 0 takes the model's default.
        dtype: the type of the computation, a name or a numpy type. Parameters are float32 whatever
            it is.
        options: further fields of the model; those not given take the model's defaults:

            - `dropout`: the dropout rate, for every model
            - `depth`: hidden layers of `mlp`, blocks of a ViT
            - `blocks`: a list with the number in each stage: blocks of a ResNet, convolutions of a
              VGG, separable convolutions of a MobileNet
            - `stem_stride`: for a ResNet of basic blocks and a VGG, stride of the first
              convolution; for a ViT, side in pixels of the squares that the image is averaged over
            - `widest`: for a VGG, see `nn.VGG19`
            - `hidden`: for a ResNet of bottlenecks and a MobileNet, units of the layer before the
              last; for a ViT, hidden units of a block
            - `num_heads`, `head_width`, `patch`, `shifted`, `mask_self`, `learn_temperature`: for a
              ViT, see `nn.ViT`

    Raises:
        UserError: unknown name, type or option; an invalid value of an option; sizes that are not
            positive; float64 while it is switched off in JAX.

    >>> build("mlp", num_classes=10, width=32).width, build("resnet20", num_classes=10).width
    (32, 16)
    >>> build("mlp", num_classes=10, depth=6, dropout=0.5).depth
    6
    """
    model = catalog.resolve(catalog.lookup("model", catalog.MODELS, name))
    if num_classes < 1:
        raise UserError(f"nn.build: num_classes={num_classes}; give 1 or more.")
    if width < 0:
        raise UserError(f"nn.build: width={width}; give 1 or more, or 0 for the default of {name}.")
    # Use the scalar types of jax.numpy, as users do: they equal numpy's, but hash differently.
    kwargs = {"num_classes": num_classes, "dtype": getattr(jnp, _dtype_name(dtype))}
    if width:
        kwargs["width"] = width
    own = {field.name for field in dataclasses.fields(model)} & set(_OPTIONS)
    for option, value in options.items():
        if option not in own:
            raise UserError(
                f"nn.build: {name} has no option '{option}'{nearest(option, own) or '.'} It has "
                f"{', '.join(sorted(own))}, beside width and dtype."
            )
        kwargs[option] = _OPTIONS[option](value)
    return model(**kwargs)


def from_config(model: Any, *, num_classes: int) -> nn.Module:
    """The model described by the `model` block of a config: `name`, `width`, `dtype`, and `dropout`
    and `depth` if they are not 0.

    Raises:
        UserError: as `build`.
    """
    given = {name: model[name] for name in ("dropout", "depth") if model[name]}
    return build(model.name, num_classes=num_classes, width=model.width, dtype=model.dtype, **given)


def _blocks(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"nn.build: blocks={value!r}; give a list, the blocks in each stage.")
    return tuple(whole_number("nn.build", "blocks", number) for number in value)


def _count(option: str, least: int = 1) -> Callable[[Any], int]:
    return lambda value: whole_number("nn.build", option, value, least=least)


def _flag(option: str) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise UserError(f"nn.build: {option}={value!r}; give True or False.")
        return value

    return check


# The options beside the sizes that all models have, with a function that checks each value.
_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "blocks": _blocks,
    "depth": _count("depth", least=0),
    "dropout": lambda value: layers.check_rate("nn.build", value),
    **{name: _count(name) for name in ("widest", "stem_stride", "patch", "hidden")},
    **{name: _count(name) for name in ("num_heads", "head_width")},
    **{name: _flag(name) for name in ("shifted", "mask_self", "learn_temperature")},
}


def _dtype_name(dtype: DTypeLike) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise UserError(f"nn.build: dtype={name}; give one of {', '.join(DTYPES)}.")
    enabled = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    if name == "float64" and not enabled:
        raise UserError(
            "nn.build: dtype=float64, but JAX has it switched off; set JAX_ENABLE_X64=1, or give "
            "float32."
        )
    return name
