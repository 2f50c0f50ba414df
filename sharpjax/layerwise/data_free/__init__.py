"""Metrics of the weights of each layer, without data: those of WeightWatcher, and more.

    table = data_free(params)                      # of any network, a row for each layer
    print(as_text(table))
    data_free(params, convention=WEIGHTWATCHER)    # the same digits as that program

`power_law`, `marchenko_pastur` and `norms` can be used by themselves. All but `norms.norms` work
under `jit` and `vmap`.

Papers on arXiv disagree whether such numbers say anything about the function: they are not
invariant under changes of the weights that leave the function the same.
"""

from sharpjax.layerwise.data_free import marchenko_pastur as marchenko_pastur
from sharpjax.layerwise.data_free import norms as norms
from sharpjax.layerwise.data_free import power_law as power_law
from sharpjax.layerwise.data_free.convention import SCALE_FREE as SCALE_FREE
from sharpjax.layerwise.data_free.convention import WEIGHTWATCHER as WEIGHTWATCHER
from sharpjax.layerwise.data_free.convention import Convention as Convention
from sharpjax.layerwise.data_free.eigenvalues import eigenvalues as eigenvalues
from sharpjax.layerwise.data_free.esd import layer_eigenvalues as layer_eigenvalues
from sharpjax.layerwise.data_free.goodness_of_fit import GoodnessOfFit as GoodnessOfFit
from sharpjax.layerwise.data_free.goodness_of_fit import goodness_of_fit as goodness_of_fit
from sharpjax.layerwise.data_free.randomised import Randomised as Randomised
from sharpjax.layerwise.data_free.randomised import randomised as randomised
from sharpjax.layerwise.data_free.table import Metrics as Metrics
from sharpjax.layerwise.data_free.table import Status as Status
from sharpjax.layerwise.data_free.table import Table as Table
from sharpjax.layerwise.data_free.table import data_free as data_free
from sharpjax.layerwise.data_free.text import as_rich as as_rich
from sharpjax.layerwise.data_free.text import as_text as as_text
from sharpjax.layerwise.data_free.text import check_columns as check_columns
from sharpjax.layerwise.data_free.text import reason as reason
