"""How good the predictions are: streaming totals, and estimates with their standard errors."""

from sharpjax.metrics.classification import Totals as Totals
from sharpjax.metrics.classification import compute as compute
from sharpjax.metrics.classification import init as init
from sharpjax.metrics.classification import update as update
from sharpjax.metrics.functional import disagreement as disagreement
