"""Quality of predictions: streaming totals, and estimates with their standard errors."""

from sharpjax.metrics.classification import Totals as Totals
from sharpjax.metrics.classification import compute as compute
from sharpjax.metrics.classification import init as init
from sharpjax.metrics.classification import update as update
from sharpjax.metrics.corruption import robustness as robustness
from sharpjax.metrics.functional import activation_distance as activation_distance
from sharpjax.metrics.functional import disagreement as disagreement
from sharpjax.metrics.functional import jensen_shannon as jensen_shannon
from sharpjax.metrics.functional import normalized_disagreement as normalized_disagreement
from sharpjax.metrics.functional import pairwise as pairwise
