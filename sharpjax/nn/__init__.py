"""Classifiers in Flax Linen, for images and for sequences of tokens.

Every model is a frozen dataclass, equal and hashable by value. It maps float32 images [B, H, W, C],
or integer tokens [B, L] (`TokenMLP`, `Transformer`, `QuadraticMLP`), to logits [B, num_classes]:
`model.apply(variables, inputs, train=...)`. `dtype` is the type of the computation. Whatever it is,
parameters and BatchNorm statistics are float32, and the last layer computes in float32 at least.
`dropout` is the dropout rate in training, 0 by default; which layers it applies to depends on the
model.
"""

from sharpjax.nn.bottleneck import ResNet50 as ResNet50
from sharpjax.nn.bottleneck import ResNet50Narrow as ResNet50Narrow
from sharpjax.nn.conv import LeNet as LeNet
from sharpjax.nn.conv import SmallConv as SmallConv
from sharpjax.nn.factory import build as build
from sharpjax.nn.factory import from_config as from_config
from sharpjax.nn.folding import absorb_norm as absorb_norm
from sharpjax.nn.mlp import MLP as MLP
from sharpjax.nn.mobilenet import MobileNet as MobileNet
from sharpjax.nn.mobilenet import MobileNetNarrow as MobileNetNarrow
from sharpjax.nn.quadratic import QuadraticMLP as QuadraticMLP
from sharpjax.nn.resnet import ResNet18 as ResNet18
from sharpjax.nn.resnet import ResNet20 as ResNet20
from sharpjax.nn.resnet import ResNetNarrow as ResNetNarrow
from sharpjax.nn.svd import Decomposition as Decomposition
from sharpjax.nn.symmetries import mix_heads as mix_heads
from sharpjax.nn.symmetries import mix_units as mix_units
from sharpjax.nn.symmetries import pad_units as pad_units
from sharpjax.nn.symmetries import permute_units as permute_units
from sharpjax.nn.symmetries import rescale_units as rescale_units
from sharpjax.nn.symmetries import scale_before_norm as scale_before_norm
from sharpjax.nn.symmetries import shift_outputs as shift_outputs
from sharpjax.nn.tokens import TokenMLP as TokenMLP
from sharpjax.nn.transformer import Transformer as Transformer
from sharpjax.nn.verified import apply_verified as apply_verified
from sharpjax.nn.vgg import VGG9 as VGG9
from sharpjax.nn.vgg import VGG16 as VGG16
from sharpjax.nn.vgg import VGG19 as VGG19
from sharpjax.nn.vgg import VGGNarrow as VGGNarrow
from sharpjax.nn.vit import SmallViT as SmallViT
from sharpjax.nn.vit import ViT as ViT
from sharpjax.nn.vit import ViTNarrow as ViTNarrow
