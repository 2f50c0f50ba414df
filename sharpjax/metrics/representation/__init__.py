"""Similarity of the features of two networks on the same examples, [N, d] and [N, e].

    cka                     linear CKA, unbiased by default; `streaming` computes it in batches
    procrustes, normalized_procrustes, angular_distance     distance after the best orthogonal map
    rsa                     correlation of dissimilarities
    neighbour_overlap       Jaccard index of nearest neighbours
    svcca, linear_regression, correlation_match
    all_pairs               one of these for M models, or for the layers of two models
    MEASURES                all by name, with direction, symmetry and invariances

All are plain functions of two matrices, computed in float64 on the host. Flatten or pool the layers
of a convolutional network first.
"""

from sharpjax.metrics.representation.alignment import cka as cka
from sharpjax.metrics.representation.dissimilarity import rsa as rsa
from sharpjax.metrics.representation.matching import correlation_match as correlation_match
from sharpjax.metrics.representation.measure import Measure as Measure
from sharpjax.metrics.representation.neighbours import neighbour_overlap as neighbour_overlap
from sharpjax.metrics.representation.pairs import MEASURES as MEASURES
from sharpjax.metrics.representation.pairs import all_pairs as all_pairs
from sharpjax.metrics.representation.shape import angular_distance as angular_distance
from sharpjax.metrics.representation.shape import (
    normalized_procrustes as normalized_procrustes,
)
from sharpjax.metrics.representation.shape import procrustes as procrustes
from sharpjax.metrics.representation.subspaces import linear_regression as linear_regression
from sharpjax.metrics.representation.subspaces import svcca as svcca
