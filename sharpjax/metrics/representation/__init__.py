"""How alike the features of two networks are, of the same examples: [N, d] and [N, e].

    cka                     linear CKA, unbiased by default; `streaming` takes it in batches
    procrustes, normalized_procrustes, angular_distance     after the best orthogonal map
    rsa                     correlation of dissimilarities
    neighbour_overlap       Jaccard index of nearest neighbours
    svcca, linear_regression, correlation_match
    all_pairs               one of these of M models, or of the layers of two
    MEASURES                all by name, with direction, symmetry and invariances

Plain functions of two matrices, in float64 on the host. Layers of a convolutional network are
flattened or pooled before.
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
