"""Curvature and sharpness of any loss, each number with its error.

The package uses only pytrees, jax, numpy and optax (`to_scipy` also uses scipy). The parameters of
any model are a pytree of floating arrays, and a loss is `loss(params, batch) -> scalar`.
"""

from types import ModuleType as _ModuleType

from sharpjax.geometry.eigenpairs.overlap import Overlap as Overlap
from sharpjax.geometry.eigenpairs.overlap import subspace_overlap as subspace_overlap
from sharpjax.geometry.eigenpairs.result import Eigenpairs as Eigenpairs
from sharpjax.geometry.eigenpairs.subsample import subsample_start as subsample_start
from sharpjax.geometry.eigenpairs.subsample import subsampled as subsampled
from sharpjax.geometry.eigenpairs.top import top_eigenpairs as top_eigenpairs
from sharpjax.geometry.eigenpairs.track import track as track
from sharpjax.geometry.estimators.diagonal import Diagonal as Diagonal
from sharpjax.geometry.estimators.diagonal import diagonal as diagonal
from sharpjax.geometry.estimators.frobenius import Frobenius as Frobenius
from sharpjax.geometry.estimators.frobenius import frobenius as frobenius
from sharpjax.geometry.estimators.trace import Trace as Trace
from sharpjax.geometry.estimators.trace import trace as trace
from sharpjax.geometry.footprint.memory import Memory as Memory
from sharpjax.geometry.footprint.memory import memory as memory
from sharpjax.geometry.lanczos.solve import Solution as Solution
from sharpjax.geometry.lanczos.solve import solve as solve
from sharpjax.geometry.loss.checks import check_deterministic as check_deterministic
from sharpjax.geometry.loss.composed import composed as composed
from sharpjax.geometry.operators.algebra import Operator as Operator
from sharpjax.geometry.operators.averaging import averaged as averaged
from sharpjax.geometry.operators.blocks import block_diagonal as block_diagonal
from sharpjax.geometry.operators.blocks import layers as layers
from sharpjax.geometry.operators.blocks import masked as masked
from sharpjax.geometry.operators.blocks import restricted as restricted
from sharpjax.geometry.operators.custom import operator as operator
from sharpjax.geometry.operators.gauss_newton import empirical_fisher as empirical_fisher
from sharpjax.geometry.operators.gauss_newton import fisher as fisher
from sharpjax.geometry.operators.gauss_newton import gauss_newton as gauss_newton
from sharpjax.geometry.operators.hessian import hessian as hessian
from sharpjax.geometry.operators.hessian import hvp as hvp
from sharpjax.geometry.operators.scaling import congruence as congruence
from sharpjax.geometry.operators.scaling import preconditioned as preconditioned
from sharpjax.geometry.report import CurvatureReport as CurvatureReport
from sharpjax.geometry.report import curvature_report as curvature_report
from sharpjax.geometry.sharpness.average_case import AverageSharpness as AverageSharpness
from sharpjax.geometry.sharpness.average_case import average_sharpness as average_sharpness
from sharpjax.geometry.sharpness.batch import BatchSharpness as BatchSharpness
from sharpjax.geometry.sharpness.batch import batch_sharpness as batch_sharpness
from sharpjax.geometry.sharpness.critical import CriticalSharpness as CriticalSharpness
from sharpjax.geometry.sharpness.critical import critical_sharpness as critical_sharpness
from sharpjax.geometry.sharpness.directional import DirectionalCurvature as DirectionalCurvature
from sharpjax.geometry.sharpness.directional import DirectionalSharpness as DirectionalSharpness
from sharpjax.geometry.sharpness.directional import directional_curvature as directional_curvature
from sharpjax.geometry.sharpness.directional import directional_sharpness as directional_sharpness
from sharpjax.geometry.sharpness.directions import Plane as Plane
from sharpjax.geometry.sharpness.directions import direction_units as direction_units
from sharpjax.geometry.sharpness.directions import plane_through as plane_through
from sharpjax.geometry.sharpness.directions import random_direction as random_direction
from sharpjax.geometry.sharpness.fisher_rao import FisherRao as FisherRao
from sharpjax.geometry.sharpness.fisher_rao import fisher_rao as fisher_rao
from sharpjax.geometry.sharpness.flat_radius import FlatRadius as FlatRadius
from sharpjax.geometry.sharpness.flat_radius import flat_radius as flat_radius
from sharpjax.geometry.sharpness.flatness import RelativeFlatness as RelativeFlatness
from sharpjax.geometry.sharpness.flatness import relative_flatness as relative_flatness
from sharpjax.geometry.sharpness.information import InformationSharpness as InformationSharpness
from sharpjax.geometry.sharpness.information import information_sharpness as information_sharpness
from sharpjax.geometry.sharpness.invariance import Invariance as Invariance
from sharpjax.geometry.sharpness.invariance import check_invariance as check_invariance
from sharpjax.geometry.sharpness.landscape import Barrier as Barrier
from sharpjax.geometry.sharpness.landscape import Landscape as Landscape
from sharpjax.geometry.sharpness.landscape import Slices as Slices
from sharpjax.geometry.sharpness.landscape import barrier as barrier
from sharpjax.geometry.sharpness.landscape import landscape as landscape
from sharpjax.geometry.sharpness.landscape import slices as slices
from sharpjax.geometry.sharpness.layerwise import layerwise_sharpness as layerwise_sharpness
from sharpjax.geometry.sharpness.learning_coefficient import (
    LearningCoefficient as LearningCoefficient,
)
from sharpjax.geometry.sharpness.learning_coefficient import (
    local_learning_coefficient as local_learning_coefficient,
)
from sharpjax.geometry.sharpness.measures import AdaptiveSharpness as AdaptiveSharpness
from sharpjax.geometry.sharpness.measures import SamSharpness as SamSharpness
from sharpjax.geometry.sharpness.measures import Sharpness as Sharpness
from sharpjax.geometry.sharpness.measures import adaptive_sharpness as adaptive_sharpness
from sharpjax.geometry.sharpness.measures import sam_sharpness as sam_sharpness
from sharpjax.geometry.sharpness.measures import worst_case_sharpness as worst_case_sharpness
from sharpjax.geometry.sharpness.preconditioner import preconditioner as preconditioner
from sharpjax.geometry.sharpness.quadratic_model import QuadraticSharpness as QuadraticSharpness
from sharpjax.geometry.sharpness.quadratic_model import quadratic_sharpness as quadratic_sharpness
from sharpjax.geometry.sharpness.table import SharpnessTable as SharpnessTable
from sharpjax.geometry.sharpness.table import measure_all as measure_all
from sharpjax.geometry.spectra.density import Curve as Curve
from sharpjax.geometry.spectra.density import Density as Density
from sharpjax.geometry.spectra.density import spectral_density as spectral_density
from sharpjax.geometry.spectra.logdet import LogDeterminant as LogDeterminant
from sharpjax.geometry.spectra.logdet import logdet as logdet
from sharpjax.geometry.status import NotOk as NotOk
from sharpjax.geometry.status import Status as Status
from sharpjax.geometry.status import check as check


def __dir__() -> list[str]:
    """The public names, without the modules; import a module by its own name."""
    return sorted(name for name, found in globals().items() if _is_public(name, found))


def _is_public(name: str, found: object) -> bool:
    return not name.startswith("_") and not isinstance(found, _ModuleType)
