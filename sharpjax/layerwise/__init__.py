"""Layers of a trained network, one by one: what their weights say without data (`data_free`)."""

from sharpjax.layerwise import data_free as data_free
