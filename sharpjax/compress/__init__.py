"""Model compression: fewer weights, bits, ranks or distinct values, and the size of each form.

All are plain functions of pytrees of parameters, and of a random key if they draw. `prune` sets
weights to 0 and keeps them there. A compressed form (`Quantised`, `LowRank`, `Clustered`) is a
pytree that replaces a leaf. The inverse function gives parameters of the old structure, for
evaluation and for `sharpjax.geometry`.
"""

from sharpjax.compress import prune as prune
from sharpjax.compress.activations import QuantisedInputs as QuantisedInputs
from sharpjax.compress.activations import calibrate as calibrate
from sharpjax.compress.activations import layer_inputs as layer_inputs
from sharpjax.compress.casting import cast as cast
from sharpjax.compress.casting import cast_params as cast_params
from sharpjax.compress.casting import fake_cast as fake_cast
from sharpjax.compress.casting import fake_cast_params as fake_cast_params
from sharpjax.compress.clustering import Clustered as Clustered
from sharpjax.compress.clustering import cluster as cluster
from sharpjax.compress.clustering import cluster_params as cluster_params
from sharpjax.compress.clustering import uncluster as uncluster
from sharpjax.compress.clustering import uncluster_params as uncluster_params
from sharpjax.compress.grid import Grid as Grid
from sharpjax.compress.grid import grid_of_range as grid_of_range
from sharpjax.compress.integers import Quantised as Quantised
from sharpjax.compress.integers import dequantise as dequantise
from sharpjax.compress.integers import fake_quantise as fake_quantise
from sharpjax.compress.integers import fake_quantise_onto as fake_quantise_onto
from sharpjax.compress.integers import quantise as quantise
from sharpjax.compress.straight_through import on_quantised as on_quantised
from sharpjax.compress.truncation import LowRank as LowRank
from sharpjax.compress.truncation import low_rank as low_rank
from sharpjax.compress.truncation import merge_low_rank as merge_low_rank
from sharpjax.compress.weights import dequantise_params as dequantise_params
from sharpjax.compress.weights import fake_quantise_params as fake_quantise_params
from sharpjax.compress.weights import quantise_params as quantise_params
