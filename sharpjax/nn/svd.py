"""Decomposed learning: the factors of the singular value decomposition are trained in place of W.

In "Decomposed Learning: An Avenue for Mitigating Grokking" (OpenReview LVuzwpMovE), each matrix
W [m, n] of the initial network becomes {'U': [m, k], 's': [k], 'Vt': [k, n]}, its reduced SVD
truncated to rank k. All three are trained freely: U and V do not stay orthogonal, and s may change
sign. After the first step it is just a low-rank factorisation W = U diag(s) V' that started
balanced.

    model = TokenMLP(num_classes=99, decompose=Decomposition(0.125))
    params = model.init(key, tokens)["params"]  # factors of what the dense model would draw
    dense, weights = model.clone(decompose=None), merge(params)  # the same function

Sharpness can be computed in either coordinates: of `Classification(model)` at `params` in
(U, s, V), or of `Classification(dense)` at `weights` in W. For models without layers for factors,
`OnFactors(fn)` turns a function `fn` of the weights into a function of the factors.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError

NAMES = {"U", "s", "Vt"}


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """Which matrices of a model are held as factors, and at which rank.

    Attributes:
        rank_fraction: f; a matrix [m, n] keeps floor(f min(m, n)) singular values.
        layers: globs on the names of the model's matrices, such as 'hidden/kernel'; all by default.

    Raises:
        UserError: `rank_fraction` is not in (0, 1].

    >>> Decomposition(0.125).rank(512, 128)
    16
    """

    rank_fraction: float
    layers: str | Sequence[str] = ("*",)

    def __post_init__(self) -> None:
        if not 0 < self.rank_fraction <= 1:
            raise UserError(
                f"svd: rank_fraction={self.rank_fraction}; give a number above 0 and at most 1."
            )
        layers = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        object.__setattr__(self, "layers", layers)

    def rank(self, m: int, n: int, *, name: str = "a matrix") -> int:
        """k = floor(f min(m, n)).

        Raises:
            UserError: k is 0.
        """
        # Use f as the decimal number it is written as: 0.29 * 100 is 28.999999999999996.
        k = math.floor(Fraction(str(self.rank_fraction)) * min(m, n))
        if k < 1:
            least = f"give {1 / min(m, n):.4g} or more, or " if m and n else ""
            raise UserError(
                f"svd: rank_fraction={self.rank_fraction} leaves rank 0 of {name}, which is "
                f"{m} x {n}; {least}leave it out of layers."
            )
        return k

    def selected(self, names: Sequence[str]) -> set[str]:
        """The names that `layers` match.

        Raises:
            UserError: a glob matches none of them.
        """
        mask = tree.select(dict.fromkeys(names, 0.0), self.layers)
        return {name for name, chosen in mask.items() if chosen}


def assigned(
    decomposition: Decomposition | None, names: Sequence[str]
) -> dict[str, Decomposition | None]:
    """The decomposition of each of a model's matrices, None for those that stay dense.

    Raises:
        UserError: a glob of `layers` matches none of them.
    """
    chosen = set() if decomposition is None else decomposition.selected(names)
    return {name: decomposition if name in chosen else None for name in names}


def decompose(params: Any, rank_fraction: float, *, layers: str | Sequence[str] = "*") -> Any:
    """The same tree with factors in place of the selected matrices.

    W becomes {'U', 's', 'Vt'}, its best approximation of rank k = floor(f min(m, n)). The error
    ||W - U diag(s) V'||_F^2 is the sum of the squares of the singular values left out (Eckart and
    Young, 1936). Nothing is rescaled. Cost: an SVD of each matrix. Derivatives of an SVD are NaN if
    singular values are equal, so decompose first, then differentiate with respect to the factors.

    Args:
        params: any tree of dicts; for a population, `jax.vmap` this function.
        rank_fraction: f, above 0 and at most 1.
        layers: globs on `tree.path_names`; leaves that are not matrices, such as biases, stay as
            they are.

    Raises:
        UserError: an invalid fraction or glob; `params` holds factors already; no matrix is
            selected; a matrix would keep rank 0.

    >>> factors = decompose({"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}, 0.5)
    >>> {name: leaf.shape for name, leaf in sorted(factors["kernel"].items())}
    {'U': (4, 2), 'Vt': (2, 6), 's': (2,)}
    """
    if any(map(is_factors, jax.tree.leaves(params, is_leaf=is_factors))):
        raise UserError("svd.decompose: params holds factors already; `svd.merge` them first.")
    decomposition = Decomposition(rank_fraction, layers)
    mask = jax.tree.leaves(tree.select(params, decomposition.layers))
    names, leaves = tree.path_names(params), jax.tree.leaves(params)
    chosen = [hit and leaf.ndim == 2 for hit, leaf in zip(mask, leaves, strict=True)]
    if not any(chosen):
        raise UserError(
            f"svd.decompose: layers={list(decomposition.layers)} selects no matrix; a leaf of two "
            "axes is one (a population has one axis more: `jax.vmap` this function)."
        )
    new = [
        factorise(leaf, decomposition.rank(*leaf.shape, name=name)) if hit else leaf
        for name, leaf, hit in zip(names, leaves, chosen, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), new)


def factorise(matrix: jax.Array, rank: int) -> dict[str, jax.Array]:
    """The first `rank` singular triplets of a matrix, computed in float32 at least."""
    matrix = jnp.asarray(matrix)
    wide = matrix.astype(jnp.float64 if matrix.dtype == jnp.float64 else jnp.float32)
    u, s, vt = jnp.linalg.svd(wide, full_matrices=False)
    factors = {"U": u[:, :rank], "s": s[:rank], "Vt": vt[:rank]}
    return {name: part.astype(matrix.dtype) for name, part in factors.items()}


def is_factors(node: Any) -> bool:
    """Whether a node of a tree is a decomposed matrix."""
    return isinstance(node, Mapping) and set(node) == NAMES


def product(factors: Mapping[str, jax.Array]) -> jax.Array:
    """U diag(s) V'; axes of a population may come first.

    The smaller factor is multiplied by s: k min(m, n) + m k n multiplications in all.
    """
    u, s, vt = factors["U"], factors["s"], factors["Vt"]
    if u.shape[-2] <= vt.shape[-1]:
        return (u * jnp.expand_dims(s, -2)) @ vt
    return u @ (jnp.expand_dims(s, -1) * vt)


def merge(params: Any) -> Any:
    """The tree with matrices W = U diag(s) V' in place of their factors; also for populations.

    The inverse of `decompose` at full rank. Differentiable: with G = dL/dW the gradients are
    G V diag(s), diag(U'GV) and diag(s) U'G.

    >>> w = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> bool(jnp.allclose(merge(decompose({"kernel": w}, 1.0))["kernel"], w, atol=1e-6))
    True
    """
    return jax.tree.map(
        lambda node: product(node) if is_factors(node) else node, params, is_leaf=is_factors
    )


@tree.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class OnFactors:
    """`fn(merge(params), batch)`: a loss or a model of the weights, as a function of the factors.

    >>> loss = OnFactors(jax.tree_util.Partial(lambda w, x: jnp.sum(w["kernel"] @ x)))
    >>> factors = decompose({"kernel": jnp.eye(2)}, 1.0)
    >>> print(loss(factors, jnp.ones(2)))
    2.0
    """

    fn: Callable[..., Any]

    def __call__(self, params: Any, batch: Any) -> Any:
        return self.fn(merge(params), batch)
