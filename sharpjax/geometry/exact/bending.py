"""The part of a Hessian beyond its Gauss-Newton part: the curvature of the model itself.

`H - G = sum_c (d outer / d f_c) Hess f_c` over all outputs. This is the Hessian of `<r, f(params)>`
with r, the gradient of the outer loss in the outputs, held fixed. On a net that is piecewise linear
and uses no weight twice (ReLU, max-pooling, frozen BatchNorm), the outputs are affine in each leaf.
So the diagonal block of each leaf is zero, and `tr H = tr G`, `diag H = diag G`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jax.tree_util import Partial

from sharpjax import loops, tree
from sharpjax.geometry.exact import per_example
from sharpjax.geometry.loss.composed import Composed, chunk_weights
from sharpjax.geometry.loss.dependence import reaches
from sharpjax.geometry.operators.algebra import Params
from sharpjax.geometry.operators.gauss_newton import GaussNewton
from sharpjax.geometry.operators.hessian import Hessian


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Units:
    """The units that are probed one at a time: a leaf, or a slice of a leaf that stacks the layers
    of a scan.

    Attributes:
        counts: number of units of each leaf: 0 if the trace of its derivatives shows that the model
            is affine in it; 1; or the length of its first axis.
    """

    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def free(self, params: Params) -> Params:
        """The leaves that are probed, with None in place of the others."""
        return self.split(params)[0]

    def split(self, params: Params) -> tuple[Params, Params]:
        """The leaves that are probed, and the others; both trees have None in place of the rest."""
        mask = jax.tree.unflatten(jax.tree.structure(params), [c > 0 for c in self.counts])
        return tree.partition(params, mask)

    def masks(self, free: Params, unit: jax.Array) -> Params:
        """1 on the entries of a unit, 0 elsewhere; broadcasts against the leaves."""
        return self.over_leaves(free, jnp.arange(len(self), dtype=jnp.int32) == unit)

    def over_leaves(self, free: Params, values: jax.Array) -> Params:
        """The value of each unit, placed at its entries; broadcasts against the leaves."""
        leaves, treedef = jax.tree.flatten(free)
        first, found = 0, []
        for leaf, count in zip(leaves, filter(None, self.counts), strict=True):
            part = values[first : first + count].astype(leaf.dtype)
            found.append(part.reshape(-1, *(1,) * (leaf.ndim - 1)) if leaf.ndim else part[0])
            first += count
        return jax.tree.unflatten(treedef, found)

    def by_leaf(
        self, values: jax.Array, total: Callable[[jax.Array], jax.Array] = jnp.sum
    ) -> list[jax.Array]:
        """Sums, or another total, over the units of each leaf; zero for a leaf without units."""
        totals, first = [], 0
        for count in self.counts:
            part = values[first : first + count]
            totals.append(total(part) if count else 0 * jnp.sum(values))
            first += count
        return totals


@jax.jit
def find_units(around: GaussNewton) -> Units:
    """The units that must be probed in addition to a Gauss-Newton matrix, found by tracing the
    model.

    jax itself drops a second derivative along one leaf if it is zero by construction.
    """
    params, model, batch = around.params, around.loss.model_fn, around.batch
    closed = jax.make_jaxpr(_call)(params, model, batch)
    leaves = jax.tree.leaves((params, model, batch))
    evaluate = jaxpr_as_fun(closed)
    uses = per_example.find_entries(closed.jaxpr, len(jax.tree.leaves(params)))

    def bends(i):
        def outputs(leaf):
            return evaluate(*leaves[:i], leaf, *leaves[i + 1 :])

        def second(z):
            slope = Partial(_slope, outputs, z)
            return jax.jvp(slope, (leaves[i],), (z,))[1]

        return reaches(jax.make_jaxpr(second)(leaves[i]).jaxpr, [0])

    def count(i):
        if not leaves[i].size or not uses[i] or not bends(i):
            return 0
        stacked = all(_is_scanned(use) for use in uses[i])
        return leaves[i].shape[0] if stacked else 1

    return Units(tuple(count(i) for i in range(len(uses))))


def bend(around: GaussNewton, direction: Params) -> jax.Array:
    """`z' (H - G) z`, as `d^2/dt^2 <r, f(params + t z)>` by forward over forward.

    Args:
        direction: z, with None in place of leaves that do not move.
    """
    operands = around.loss, around.params, direction
    if around.microbatch_size is None:
        return _bend(operands, around.batch)
    chunks = loops.split_chunks("trace", around.batch, around.microbatch_size)
    weight = chunk_weights(around.loss, chunks)
    return loops.mean_over_chunks(_bend, operands, chunks, weight)


def bending(around: GaussNewton, units: Units) -> Hessian:
    """`H - G` on the leaves that are probed, as an operator."""
    free, rest = units.split(around.params)
    loss = _Pairing(around.loss, around.params, rest)
    return Hessian(loss, free, around.batch, around.microbatch_size)


def draw(
    units: Units, key: jax.Array, like: Params, unit: jax.Array, *, is_normal: jax.Array
) -> tuple[Params, jax.Array]:
    """A probe that is nonzero on one unit only, and the next key.

    Random signs z have a lower variance, but `z'Az` may be zero for a matrix A that is not. For a
    normal vector this does not happen.
    """
    key, subkey = jax.random.split(key)
    z = tree.random_normal(subkey, tree.widen(like))
    z = jax.tree.map(lambda x: jnp.where(is_normal, x, jnp.sign(x)), z)
    return jax.tree.map(jnp.multiply, z, units.masks(z, unit)), key


def _is_scanned(use) -> bool:
    if use.eqn is None or use.eqn.primitive.name != "scan" or use.moves:
        return False
    inside = use.eqn.params["jaxpr"].in_avals[use.operand]
    return use.eqn.invars[use.operand].aval.ndim == inside.ndim + 1


def _call(params, model, batch):
    return tree.widen(model(tree.widen(params), batch))


def _slope(fn, direction, at):
    return jax.jvp(fn, (at,), (direction,))[1]


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Pairing:
    """`<r, f>`, with r taken at `params` and f at the free leaves; a mean, or weighted mean, like
    `loss`."""

    loss: Composed
    params: Params
    rest: Params

    def __call__(self, free, batch):
        model = self.loss.model_fn
        outputs = _call(self.params, model, batch)
        slopes = jax.grad(lambda o: self.loss.outer_loss(o, batch))(outputs)
        found = _call(tree.combine(free, self.rest), model, batch)
        return tree.vdot(jax.lax.stop_gradient(slopes), found)

    @property
    def example_weight(self):
        return self.loss.example_weight


def _bend(operands, batch):
    loss, params, direction = operands
    params = tree.widen(params)
    free, rest = (
        jax.tree.map(
            lambda z, p, moves=moves: p if (z is not None) == moves else None,
            *(direction, params),
            is_leaf=lambda z: z is None,
        )
        for moves in (True, False)
    )

    def value(free):
        return _Pairing(loss, params, rest)(free, batch)

    with jax.default_matmul_precision("highest"):
        return jax.jvp(Partial(_slope, value, direction), (free,), (direction,))[1]
