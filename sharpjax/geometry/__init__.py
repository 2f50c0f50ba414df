"""Curvature and sharpness of any loss, each number with its error.

Knows of pytrees, jax, numpy and optax alone: any model's parameters are a pytree of floating
arrays, and a loss is `loss(params, batch) -> scalar`.
"""

from sharpjax.geometry.algebra import Damped as Damped
from sharpjax.geometry.algebra import Operator as Operator
from sharpjax.geometry.algebra import Scaled as Scaled
from sharpjax.geometry.algebra import Sum as Sum
from sharpjax.geometry.operators import Hessian as Hessian
from sharpjax.geometry.operators import Restricted as Restricted
from sharpjax.geometry.operators import hessian as hessian
from sharpjax.geometry.operators import hvp as hvp
from sharpjax.geometry.probes import Trace as Trace
from sharpjax.geometry.probes import trace as trace
from sharpjax.geometry.sharpness import AdaptiveSharpness as AdaptiveSharpness
from sharpjax.geometry.sharpness import DirectionalCurvature as DirectionalCurvature
from sharpjax.geometry.sharpness import SamSharpness as SamSharpness
from sharpjax.geometry.sharpness import Sharpness as Sharpness
from sharpjax.geometry.sharpness import adaptive_sharpness as adaptive_sharpness
from sharpjax.geometry.sharpness import directional_curvature as directional_curvature
from sharpjax.geometry.sharpness import sam_sharpness as sam_sharpness
from sharpjax.geometry.sharpness import worst_case_sharpness as worst_case_sharpness
from sharpjax.geometry.spectrum import Eigenpairs as Eigenpairs
from sharpjax.geometry.spectrum import top_eigenpairs as top_eigenpairs
from sharpjax.geometry.status import NotOk as NotOk
from sharpjax.geometry.status import Status as Status
from sharpjax.geometry.status import check as check
