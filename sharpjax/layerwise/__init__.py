"""Layers of a model one by one: what their weights alone tell, and which of them it can do without.

Plain functions of pytrees of parameters, and a key where they are random. Layers are named as
`sharpjax.geometry.layers` names them.
"""

from sharpjax.layerwise import criticality as criticality
from sharpjax.layerwise import data_free as data_free
