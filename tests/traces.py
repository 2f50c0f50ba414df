"""How often a loss is traced, counted where the loss reads nothing that the count would change.

A loss that counts in a global reads what it writes, and is taken for another one each time
(`sharpjax.geometry.loss.closures`).
"""

import collections

import jax

TRACES = collections.Counter()


def traced(name):
    """Call it in a loss: one more trace of that name."""
    jax.monitoring.record_event(name)


def _listen(event, **_):
    TRACES[event] += 1


jax.monitoring.register_event_listener(_listen)
