"""The names that a config can use, and where each is defined.

There is one literal table for each kind of name. The command line checks names and sizes against
these tables before anything heavy is imported. The factories resolve the `module:attribute` strings
when they are used.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from sharpjax.errors import unknown

T = TypeVar("T")


class DataSet(NamedTuple):
    """Properties of a data set that are known without opening it.

    Attributes:
        loader: `module:function`, called with the name of the data set.
        num_train, num_test, num_classes: numbers of examples in the two splits, and of classes.
        shape: height, width and channels of one image.
        pad, flip: the usual augmentation: random crops after padding by `pad` pixels; mirroring.
        mean, std: of each channel, over the pixels / 255 of the training split, to four digits, as
            published.
    """

    loader: str
    num_train: int
    num_test: int
    num_classes: int
    shape: tuple[int, int, int]
    pad: int
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


_TFDS = "sharpjax.data.tfds:load"
DATA_SETS: Mapping[str, DataSet] = {
    "cifar10": DataSet(
        _TFDS, 50_000, 10_000, 10, (32, 32, 3), pad=4, flip=True,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": DataSet(
        _TFDS, 50_000, 10_000, 100, (32, 32, 3), pad=4, flip=True,
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
    ),
    "fashion_mnist": DataSet(
        _TFDS, 60_000, 10_000, 10, (28, 28, 1), pad=2, flip=True, mean=(0.2860,), std=(0.3530,)
    ),
    "mnist": DataSet(
        _TFDS, 60_000, 10_000, 10, (28, 28, 1), pad=2, flip=False, mean=(0.1307,), std=(0.3081,)
    ),
    "digits": DataSet(  # mean and deviation are those of our own split
        "sharpjax.data.digits:load", 1_437, 360, 10, (8, 8, 1), pad=1, flip=False,
        mean=(0.3054,), std=(0.3757,),
    ),
}  # fmt: skip

# For modular arithmetic: whether an operation divides, and the only modulus allowed (0: any).
OPERATIONS: Mapping[str, tuple[bool, int]] = {
    **dict.fromkeys(("+", "-", "*", "+*", "+-", "x^2+y", "x^3+y", "x^2+y^2"), (False, 0)),
    **dict.fromkeys(("x^2+xy+y^2", "x^2+xy+y^2+x", "x^3+xy", "x^3+xy^2+y"), (False, 0)),
    **dict.fromkeys(("/", "-/"), (True, 0)),
    **dict.fromkeys(("s5", "s5 xyx", "s5 xyx^-1"), (False, 120)),
}
MAX_MODULUS = 4096  # 16.8 million pairs, 0.3 GB

MODELS: Mapping[str, str] = {
    "mlp": "sharpjax.nn.mlp:MLP",
    "small_conv": "sharpjax.nn.conv:SmallConv",
    "lenet": "sharpjax.nn.conv:LeNet",
    "resnet18": "sharpjax.nn.resnet:ResNet18",
    "resnet20": "sharpjax.nn.resnet:ResNet20",
    "resnet_narrow": "sharpjax.nn.resnet:ResNetNarrow",
    "resnet50": "sharpjax.nn.bottleneck:ResNet50",
    "resnet50_narrow": "sharpjax.nn.bottleneck:ResNet50Narrow",
    "mobilenet": "sharpjax.nn.mobilenet:MobileNet",
    "mobilenet_narrow": "sharpjax.nn.mobilenet:MobileNetNarrow",
    "vgg9": "sharpjax.nn.vgg:VGG9",
    "vgg16": "sharpjax.nn.vgg:VGG16",
    "vgg19": "sharpjax.nn.vgg:VGG19",
    "vgg_narrow": "sharpjax.nn.vgg:VGGNarrow",
    "vit": "sharpjax.nn.vit:ViT",
    "vit_small": "sharpjax.nn.vit:SmallViT",
    "vit_narrow": "sharpjax.nn.vit:ViTNarrow",
}

# Models of token sequences, for modular arithmetic.
TOKEN_MODELS: Mapping[str, str] = {
    "token_mlp": "sharpjax.nn.tokens:TokenMLP",
    "transformer": "sharpjax.nn.transformer:Transformer",
    "quadratic_mlp": "sharpjax.nn.quadratic:QuadraticMLP",
}

# Smallest height and width in pixels; a model not listed takes images of any size.
SMALLEST_IMAGE: Mapping[str, int] = {"lenet": 10}

OPTIMIZERS: Mapping[str, str] = {
    "sgd": "optax:sgd",
    "adam": "optax:adam",
    "adamax": "optax:adamax",
    "adamw": "optax:adamw",
}

SCALINGS: Mapping[str, str] = {
    "none": "sharpjax.perturbation:none",
    "element": "sharpjax.perturbation:element",
    "filter": "sharpjax.perturbation:filters",
    "layer": "sharpjax.perturbation:layers",
}

# Packages, each with a `schema` and a `plan`.
STUDIES: dict[str, str] = {
    "sharpness": "sharpjax.studies.sharpness",
    "reproducibility": "sharpjax.studies.reproducibility",
    "grokking": "sharpjax.studies.grokking",
    "surfaces": "sharpjax.studies.surfaces",
    "circles": "sharpjax.studies.circles",
    "geometric_reappraisal": "sharpjax.studies.geometric_reappraisal",
    "explicit_regularisation": "sharpjax.studies.explicit_regularisation",
    "distillation": "sharpjax.studies.distillation",
    "compression": "sharpjax.studies.compression",
    "data_free": "sharpjax.studies.data_free",
}

# The claims of the papers: every hypothesis of a report over several runs.
PAPERS = "sharpjax.studies.papers:HYPOTHESES"


def lookup(what: str, table: Mapping[str, T], name: str) -> T:
    """`table[name]`, or a `UserError` that lists the known names."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def resolve(reference: str) -> Any:
    """Import the object that a `module:attribute` string names."""
    module, attribute = reference.split(":")
    return getattr(importlib.import_module(module), attribute)
