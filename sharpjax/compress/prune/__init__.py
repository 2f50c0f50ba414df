"""Pruning: masks of the weights that are kept, and functions that use them.

    from sharpjax.compress import prune

    mask = prune.mask(params, 0.9)                       # the smallest 90 % of all kernels together
    mask = prune.mask(params, prune.erk(params, 0.9))    # layer by layer
    pruned = prune.apply_mask(params, mask)
    prune.sparsity(mask)                                 # exact counts, in total and by array
    tx = optax.chain(optax.adamw(1e-3), prune.keep_masked(mask))
    loss = prune.masked_loss(loss, mask)                 # for geometry

Pruned arrays keep their shapes, so a pruned model is not faster. `losses.Objective` takes a mask as
an argument.
"""

from sharpjax.compress.prune.amounts import by_name as by_name
from sharpjax.compress.prune.amounts import erk as erk
from sharpjax.compress.prune.amounts import num_pruned as num_pruned
from sharpjax.compress.prune.amounts import uniform as uniform
from sharpjax.compress.prune.applied import Counts as Counts
from sharpjax.compress.prune.applied import Sparsity as Sparsity
from sharpjax.compress.prune.applied import apply_mask as apply_mask
from sharpjax.compress.prune.applied import masked_loss as masked_loss
from sharpjax.compress.prune.applied import sparsity as sparsity
from sharpjax.compress.prune.kept import gradual as gradual
from sharpjax.compress.prune.kept import keep_masked as keep_masked
from sharpjax.compress.prune.masks import mask as mask
from sharpjax.compress.prune.masks import n_of_m as n_of_m
from sharpjax.compress.prune.masks import prune_variables as prune_variables
from sharpjax.compress.prune.optimal import OptimalAmount as OptimalAmount
from sharpjax.compress.prune.optimal import cosines as cosines
from sharpjax.compress.prune.optimal import kurtosis_of_kurtoses as kurtosis_of_kurtoses
from sharpjax.compress.prune.optimal import optimal_amount as optimal_amount
from sharpjax.compress.prune.optimal import safe_amount as safe_amount
from sharpjax.compress.prune.schedules import Schedule as Schedule
from sharpjax.compress.prune.schedules import iterative as iterative
from sharpjax.compress.prune.schedules import one_shot as one_shot
from sharpjax.compress.prune.schedules import periodic as periodic
from sharpjax.compress.prune.schedules import polynomial as polynomial
from sharpjax.compress.prune.structures import Blocks as Blocks
from sharpjax.compress.prune.structures import Channels as Channels
from sharpjax.compress.prune.structures import Elements as Elements
