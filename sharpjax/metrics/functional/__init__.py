"""Functional similarity: how differently two models answer the same examples.

Each metric is a plain function `metric(a, b, label)`. `a` and `b` are the logits [N, K] of two
models for the same N examples. `label`, [N], is not read by most metrics. `train.measures` computes
them for pairs of models. They compute in float64 on the host. `METRICS` holds all metrics by name,
with their properties.

    functional.jensen_shannon(a, b)                                # two models
    functional.all_pairs(outputs, ["jsd", "disagreement"])         # M models, [M, M] each
    totals = streaming.init(["jsd"], num_classes=10)               # in batches, see `streaming`
    functional.transfer_asymmetry(student, teacher, control, label)

Pairs of M models are not independent. `protocol.tests.pairwise.jackknife` computes the mean of an
M x M matrix with a standard error over models, and the test `pairwise-difference` compares two
arms.
"""

from sharpjax.metrics.functional.confidence import (
    calibration_difference as calibration_difference,
)
from sharpjax.metrics.functional.correctness import JointShares as JointShares
from sharpjax.metrics.functional.correctness import accuracy_difference as accuracy_difference
from sharpjax.metrics.functional.correctness import error_consistency as error_consistency
from sharpjax.metrics.functional.correctness import error_inconsistency as error_inconsistency
from sharpjax.metrics.functional.correctness import error_ratio as error_ratio
from sharpjax.metrics.functional.correctness import joint_shares as joint_shares
from sharpjax.metrics.functional.correctness import negative_flip_rate as negative_flip_rate
from sharpjax.metrics.functional.correctness import positive_flip_rate as positive_flip_rate
from sharpjax.metrics.functional.declared import METRICS as METRICS
from sharpjax.metrics.functional.declared import Metric as Metric
from sharpjax.metrics.functional.distances import activation_distance as activation_distance
from sharpjax.metrics.functional.distances import cosine_distance as cosine_distance
from sharpjax.metrics.functional.distances import cosine_similarity as cosine_similarity
from sharpjax.metrics.functional.distances import l1 as l1
from sharpjax.metrics.functional.distances import logit_rmse as logit_rmse
from sharpjax.metrics.functional.distances import total_variation as total_variation
from sharpjax.metrics.functional.divergences import jeffreys as jeffreys
from sharpjax.metrics.functional.divergences import jensen_shannon as jensen_shannon
from sharpjax.metrics.functional.divergences import kl as kl
from sharpjax.metrics.functional.divergences import kl_reverse as kl_reverse
from sharpjax.metrics.functional.pairs import all_pairs as all_pairs
from sharpjax.metrics.functional.pairs import pairwise as pairwise
from sharpjax.metrics.functional.predictions import (
    chance_corrected_agreement as chance_corrected_agreement,
)
from sharpjax.metrics.functional.predictions import disagreement as disagreement
from sharpjax.metrics.functional.predictions import (
    normalized_disagreement as normalized_disagreement,
)
from sharpjax.metrics.functional.rankings import footrule as footrule
from sharpjax.metrics.functional.rankings import kendall_distance as kendall_distance
from sharpjax.metrics.functional.rankings import rank_biased_overlap as rank_biased_overlap
from sharpjax.metrics.functional.rankings import rank_disagreement as rank_disagreement
from sharpjax.metrics.functional.rankings import spearman as spearman
from sharpjax.metrics.functional.rankings import top_k_agreement as top_k_agreement
from sharpjax.metrics.functional.transfer import TransferAsymmetry as TransferAsymmetry
from sharpjax.metrics.functional.transfer import transfer_asymmetry as transfer_asymmetry
