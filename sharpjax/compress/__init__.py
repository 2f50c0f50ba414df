"""Smaller models of one that is trained: plain functions of pytrees and a key, on the host.

`prune` sets weights to 0 and keeps them there. What a plan does with it is in
`sharpjax.train.pruning`.
"""

from sharpjax.compress import prune as prune
