"""Norms of layers as maps: spectral norms of convolutions, path norms, distances from a start."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sharpjax import tree
from sharpjax.errors import UserError, whole_number
from sharpjax.layerwise.data_free import layers


class ConvolutionNorm(NamedTuple):
    """Attributes:
    value: the spectral norm, or a bound of it.
    exact: whether it is the norm; else the norm is at most that.
    """

    value: jax.Array
    exact: bool


def convolution_norm(
    kernel: jax.Array,
    image_size: int | Sequence[int],
    *,
    padding: Literal["circular", "zeros"] = "circular",
    stride: int = 1,
) -> ConvolutionNorm:
    """The spectral norm of a convolution as a linear map of whole images.

    With circular padding and stride 1 the map is block diagonal under the Fourier transform, and
    its singular values are those of the [in, out] matrices sum_p K[p] exp(-2 pi i <w, p>) for each
    frequency w (Sedghi, Gupta and Long, arXiv 1805.10408): exact. Padding with zeros is a circular
    convolution of an image that is larger by the kernel, restricted; and a stride leaves outputs
    out. Both make no norm larger, so there the value is an upper bound.

    Cost: an SVD of [in, out] for each position of the image, complex.

    Args:
        kernel: [window.., in, out], the layout of Flax, one to three axes of the window.
        image_size: of the input, in pixels: one number, or one for each axis.

    Raises:
        UserError: what is no such kernel, an image smaller than the window, an unknown padding.

    >>> kernel = jnp.ones((3, 3, 1, 1))  # sums nine pixels
    >>> print(convolution_norm(kernel, 8))
    ConvolutionNorm(value=Array(9., dtype=float32), exact=True)
    """
    window = jnp.shape(kernel)[:-2]
    if not 1 <= len(window) <= 3:
        raise UserError(
            "convolution_norm: kernel must be [window.., in, out] with one to three axes of the "
            f"window, got shape {jnp.shape(kernel)}."
        )
    if padding not in ("circular", "zeros"):
        raise UserError(f"convolution_norm: padding='{padding}'; give 'circular' or 'zeros'.")
    whole_number("convolution_norm", "stride", stride)
    size = (image_size,) * len(window) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != len(window) or any(n < k for n, k in zip(size, window, strict=False)):
        raise UserError(
            f"convolution_norm: image_size={image_size} for a window of {window}; give one number "
            "for each axis of the window, and none smaller than it."
        )
    if padding == "zeros":
        size = tuple(n + k - 1 for n, k in zip(size, window, strict=True))
    return ConvolutionNorm(
        _circular_norm(jnp.asarray(kernel), size=size), padding == "circular" and stride == 1
    )


@functools.partial(jax.jit, static_argnames="size")
def _circular_norm(kernel, *, size):
    axes = tuple(range(len(size)))
    transformed = jnp.fft.fftn(kernel, s=size, axes=axes)
    blocks = transformed.reshape(math.prod(size), *kernel.shape[-2:])
    return jnp.max(jnp.linalg.svd(blocks, compute_uv=False))


def path_norm(apply: Callable[[Any, Any], Any], params: Any, example: Any) -> jax.Array:
    """sqrt of the sum over all paths from an input to an output of the product of squared weights.

    sqrt(sum f(w^2, 1)), for networks of ReLU units and linear layers, whose f on weights and inputs
    of one sign is a sum over paths (Neyshabur, Tomioka and Srebro, arXiv 1503.00036). It does not
    move under rescaling of a unit's incoming by c and its outgoing weights by 1 / c. Norm layers
    must be folded into the weights before. Cost: a forward pass.

    Args:
        apply: `apply(params, x)` with the outputs of a batch.
        params: weights and biases, all of them on paths.
        example: an input, or the shape and type of one, with an axis of the batch of size 1.

    >>> net = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
    >>> weights = {"up": jnp.ones((2, 3)), "down": 2 * jnp.ones((3, 1))}
    >>> print(path_norm(net, weights, jnp.ones((1, 2))))
    4.8989797
    """
    tree.check_floating("path_norm", params)
    squares = jax.tree.map(jnp.square, params)
    ones = jax.tree.map(lambda x: jnp.ones(jnp.shape(x), x.dtype), example)
    return jnp.sqrt(jnp.sum(apply(squares, ones)))


class Norms(NamedTuple):
    """Norms of each layer as one matrix [k m, n], its slices stacked; [L].

    Attributes:
        names: of the layers.
        frobenius: ||W||_F.
        spectral: largest singular value of all slices, not the norm of a convolution as a map.
        ratio: ||W||_F / spectral, the root of the stable rank.
        from_start: ||W - W_0||_F, and `spectral_from_start`; NaN without a start.
    """

    names: tuple[str, ...]
    frobenius: jax.Array
    spectral: jax.Array
    ratio: jax.Array
    from_start: jax.Array
    spectral_from_start: jax.Array

    def totals(self) -> dict[str, jax.Array]:
        """Measures of the whole network: sums of squares, and logarithms of products of squares.

        `log_product_frobenius` and `log_product_spectral` are sum ln ||W||^2, `sum_ratio` is
        sum ||W||_F^2 / ||W||_2^2, after Jiang et al. (arXiv 1912.02178).
        """
        return {
            "sum_frobenius": jnp.sum(self.frobenius**2),
            "sum_spectral": jnp.sum(self.spectral**2),
            "log_product_frobenius": 2 * jnp.sum(jnp.log(self.frobenius)),
            "log_product_spectral": 2 * jnp.sum(jnp.log(self.spectral)),
            "sum_ratio": jnp.sum(self.ratio**2),
            "sum_from_start": jnp.sum(self.from_start**2),
        }


def norms(params: Any, start: Any = None, *, where: Sequence[str] | str | None = None) -> Norms:
    """Frobenius and spectral norms of every layer, and those of its distance from a start.

    Args:
        params: parameters of a network; layers are found as by `data_free`.
        start: parameters of the same structure, such as those at initialisation.
        where: globs on the names of layers.

    Raises:
        UserError: no layer, a start of another structure.

    >>> found = norms({"kernel": jnp.diag(jnp.array([3.0, 4.0]))})
    >>> print(found.frobenius, found.spectral)
    [5.] [4.]
    """
    found = [
        layer
        for layer in layers.find("norms", params, where, axes=0, argument="where")
        if layer.kind != "none"
    ]
    if start is not None:
        tree.check_same_structure("norms", "start", start, params)
        others = layers.find("norms", start, [layer.name for layer in found], axes=0)
    rows = []
    for i, layer in enumerate(found):
        weight = layers.matrices(layer)
        moved = jnp.nan if start is None else weight - layers.matrices(others[i])
        rows.append((*_pair(weight), *_pair(moved)))
    columns = [jnp.asarray(column) for column in zip(*rows, strict=True)]
    frobenius, spectral, moved, spectral_moved = columns or [jnp.zeros(0)] * 4
    names = tuple(layer.name for layer in found)
    return Norms(names, frobenius, spectral, frobenius / spectral, moved, spectral_moved)


def _pair(matrices: Any) -> tuple[Any, Any]:
    if jnp.ndim(matrices) == 0:
        return matrices, matrices
    with jax.enable_x64(True):
        wide = jnp.asarray(matrices)
        spectral = jnp.max(jnp.linalg.svd(wide, compute_uv=False))
        return float(jnp.sqrt(jnp.sum(wide**2))), float(spectral)
