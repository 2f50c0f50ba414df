"""Data in memory: described by a specification, read once, augmented on the device, in an order
that needs no state.

TFDS and scikit-learn are imported only by the loader that needs them.
"""

from sharpjax.data.augmentation import augment as augment
from sharpjax.data.augmentation import normalize as normalize
from sharpjax.data.examples import Examples as Examples
from sharpjax.data.examples import Loaded as Loaded
from sharpjax.data.examples import Splits as Splits
from sharpjax.data.examples import as_batch as as_batch
from sharpjax.data.examples import batch as batch
from sharpjax.data.examples import on_device as on_device
from sharpjax.data.examples import take as take
from sharpjax.data.normalization import padding_value as padding_value
from sharpjax.data.order import epoch_order as epoch_order
from sharpjax.data.spec import DataSpec as DataSpec
from sharpjax.data.spec import Images as Images
from sharpjax.data.spec import Modular as Modular
from sharpjax.data.spec import describe as describe
from sharpjax.data.synthetic import Circles as Circles
from sharpjax.data.synthetic import Surface as Surface
