"""Image classifiers in Flax Linen.

Every model is a frozen dataclass, equal and hashable by value, and takes float32 images
[B, H, W, C] to logits [B, num_classes]: `model.apply(variables, image, train=...)`. `dtype` is the
type it computes in; parameters, BatchNorm statistics and the last layer are float32 all the same.
"""

from sharpjax.nn.conv import LeNet as LeNet
from sharpjax.nn.conv import SmallConv as SmallConv
from sharpjax.nn.factory import build as build
from sharpjax.nn.mlp import MLP as MLP
from sharpjax.nn.resnet import ResNet18 as ResNet18
from sharpjax.nn.resnet import ResNet20 as ResNet20
