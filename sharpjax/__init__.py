"""Fast, checked Hessian and sharpness computation in JAX, and the studies that need it.

`sharpjax.geometry` is the library; everything else trains models and runs the studies with it. This
module imports nothing, so you pay the import time only of the parts that you use.
"""

__version__ = "0.1.0"
