"""Single layers of a model: what their weights alone say, and which layers the model can do
without.

Plain functions of pytrees of parameters, and of a key if they are random. Layers are named as in
`sharpjax.geometry.layers`.
"""

from sharpjax.layerwise import criticality as criticality
from sharpjax.layerwise import data_free as data_free
