"""Plots as matplotlib figures for files, not for windows. matplotlib is imported by the first plot.

    Figure, png         a figure of a study: name, caption, how to draw it; the bytes of a PNG file
    lines               curves along training: a thin line for each seed, and their mean
    points              values of each arm: its seeds, their mean and its interval
    scatter             one quantity against another: a point for each seed
    matrix              a table of numbers as a heat map
    landscape, profiles loss along two directions, and along one
    slices              loss along many directions: the mean, and a band of most of them
    trajectories, distances     of models as functions: their paths in a plane, and all distances
    series_of, last_of  the data of these plots, from the rows of a run; `n_of` states n
    reliability         accuracy against confidence
    layer_spectrum      eigenvalues of the weights of a layer, and the power law of their tail
    layer_spectra       the exponents of all layers, and a histogram of each (`LayerLaw`)
    spectrum, density, curvature_along_training     of results of `sharpjax.geometry`

Arms are drawn in the given order, in styles (`style.styles`) that differ in more than colour.
"""

from sharpjax.plots.calibration import reliability
from sharpjax.plots.contour import Surface, landscape, profiles, slices
from sharpjax.plots.curvature import curvature_along_training, density, spectrum
from sharpjax.plots.figure import Figure, png
from sharpjax.plots.heat_map import matrix
from sharpjax.plots.layer_spectrum import LayerLaw, layer_spectra, layer_spectrum
from sharpjax.plots.line import Panel, lines
from sharpjax.plots.point import points, scatter
from sharpjax.plots.series import Curves, Values, first_set, last_of, n_of, series_of
from sharpjax.plots.trajectory import distances, trajectories

__all__ = [
    "Curves",
    "Figure",
    "LayerLaw",
    "Panel",
    "Surface",
    "Values",
    "curvature_along_training",
    "density",
    "distances",
    "first_set",
    "landscape",
    "last_of",
    "layer_spectra",
    "layer_spectrum",
    "lines",
    "matrix",
    "n_of",
    "png",
    "points",
    "profiles",
    "reliability",
    "scatter",
    "series_of",
    "slices",
    "trajectories",
    "spectrum",
]
