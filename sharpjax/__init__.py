"""Fast, checked Hessian and sharpness computation in JAX, and the studies that need it.

`sharpjax.geometry` is the library; everything else trains models and runs the studies on it. This
module imports nothing, so that a part is paid for only when it is used.
"""

__version__ = "0.1.0"
