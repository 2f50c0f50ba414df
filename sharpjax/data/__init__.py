"""Image data: read once into memory, augmented on the device, in an order that needs no state.

TFDS and scikit-learn are imported only by the loader that needs them.
"""

from sharpjax.data.augmentation import augment as augment
from sharpjax.data.augmentation import normalize as normalize
from sharpjax.data.dataset import Dataset as Dataset
from sharpjax.data.dataset import load as load
from sharpjax.data.order import epoch_order as epoch_order
