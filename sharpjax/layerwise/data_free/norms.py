"""Norms of layers as maps: spectral norms of convolutions, path norms, distances from a start."""

import contextlib
import fnmatch
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import loops, tree
from sharpjax.errors import UserError, whole_number
from sharpjax.layerwise.data_free import layers

_FAR = 2.0**20  # inputs so large that biases are small beside them
_CURVED = 1e-3  # largest deviation from an affine map, relative to the outputs


class ConvolutionNorm(NamedTuple):
    """The result of `convolution_norm`.

    Attributes:
        value: the spectral norm, or an upper bound of it.
        exact: whether it is the norm itself.
    """

    value: jax.Array
    exact: bool


def convolution_norm(
    kernel: jax.Array,
    image_size: int | Sequence[int],
    *,
    padding: Literal["circular", "zeros"] = "circular",
    stride: int = 1,
    groups: int = 1,
) -> ConvolutionNorm:
    """The spectral norm of a convolution as a linear map of whole images.

    With circular padding and stride 1 the map is block diagonal under the Fourier transform. Its
    singular values are those of the [in, out] matrices sum_p K[p] exp(-2 pi i <w, p>) for each
    frequency w (Sedghi, Gupta and Long, arXiv 1805.10408), so the value is exact. Zero padding is a
    restriction of a circular convolution of an image that is larger by the kernel, and a stride
    omits outputs. Neither increases the norm, so there the value is an upper bound. The groups of a
    grouped convolution are separate blocks, and the norm is the largest of theirs.

    Computed in the type of the kernel, half precision in float32. Cost: an SVD of a complex
    [in / groups, out / groups] matrix for each position of the image and each group.

    Args:
        kernel: [window.., in / groups, out], the layout of Flax, with one to three window axes. For
            a dilated convolution insert the zeros between its entries.
        image_size: of the input, in pixels: one number, or one for each axis.
        stride: of all axes.
        groups: `feature_group_count` of Flax; for a depthwise convolution the number of input
            channels. A kernel does not show its number of groups, so give the right one.

    Returns:
        `ConvolutionNorm`. In a trace its value is NaN if the kernel is not finite.

    Raises:
        UserError: a kernel of another shape, empty, not of real floats, or not finite; an image
            smaller than the window; an unknown padding; groups that do not divide the outputs; a
            norm beyond the range of the type.

    >>> kernel = jnp.ones((3, 3, 1, 1))  # sums nine pixels
    >>> print(convolution_norm(kernel, 8))
    ConvolutionNorm(value=Array(9., dtype=float32), exact=True)
    >>> print(convolution_norm(jnp.ones((3, 3, 1, 4)), 8, groups=4).value)
    9.0
    """
    caller = "convolution_norm"
    *window, _, outputs = _checked_kernel(caller, kernel)
    if padding not in ("circular", "zeros"):
        raise UserError(f"{caller}: padding='{padding}'; give 'circular' or 'zeros'.")
    stride = whole_number(caller, "stride", stride)
    groups = whole_number(caller, "groups", groups)
    if outputs % groups:
        raise UserError(
            f"{caller}: groups={groups} do not divide the {outputs} outputs of a kernel of shape "
            f"{jnp.shape(kernel)}."
        )
    sizes = np.atleast_1d(np.asarray(image_size, object))
    sizes = [*sizes] if np.ndim(image_size) else [*sizes] * len(window)
    size = tuple(whole_number(caller, "image_size", n) for n in sizes)
    if len(size) != len(window) or any(n < k for n, k in zip(size, window, strict=False)):
        raise UserError(
            f"{caller}: image_size={image_size} for a window of {tuple(window)}; give one number "
            "for each axis of the window, and none smaller than it."
        )
    if padding == "zeros":
        size = tuple(n + k - 1 for n, k in zip(size, window, strict=True))
    is_wide = kernel.dtype == np.float64 and not loops.inside_jit()
    with jax.enable_x64(True) if is_wide else contextlib.nullcontext():
        value = _circular_norm(tree.widen(jnp.asarray(kernel)), size=size, groups=groups)
    if not loops.is_traced(value) and not jnp.isfinite(value):
        raise UserError(
            f"{caller}: the norm is too large for {value.dtype}; divide the kernel by a number."
        )
    return ConvolutionNorm(value, padding == "circular" and stride == 1)


def _checked_kernel(caller: str, kernel: Any) -> tuple[int, ...]:
    """The shape of a kernel [window.., in, out]."""
    if not (hasattr(kernel, "dtype") and jnp.issubdtype(kernel.dtype, jnp.floating)):
        kind = getattr(kernel, "dtype", f"a {type(kernel).__name__}")
        raise UserError(f"{caller}: kernel must be an array of real floats, got {kind}.")
    shape = jnp.shape(kernel)
    if not 1 <= len(shape) - 2 <= 3 or not math.prod(shape):
        raise UserError(
            f"{caller}: kernel must be [window.., in, out] with one to three axes of the window "
            f"and none of length 0, got shape {shape}."
        )
    if not loops.is_traced(kernel) and not np.isfinite(np.asarray(kernel)).all():
        raise UserError(f"{caller}: kernel holds numbers that are not finite.")
    return shape


@functools.partial(jax.jit, static_argnames=("size", "groups"))
def _circular_norm(kernel, *, size, groups):
    axes = tuple(range(len(size)))
    scale = jnp.max(jnp.abs(kernel))  # because sums could overflow
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, 1)
    transformed = jnp.fft.fftn(kernel / scale, s=size, axes=axes)
    *_, inputs, outputs = kernel.shape
    blocks = transformed.reshape(math.prod(size), inputs, groups, outputs // groups)
    blocks = jnp.swapaxes(blocks, 1, 2)
    largest = jnp.max(jnp.linalg.svd(blocks, compute_uv=False))
    return jnp.where(jnp.all(jnp.isfinite(kernel)), scale * largest, jnp.nan)


def path_norm(apply: Callable[[Any, Any], Any], params: Any, example: Any) -> jax.Array:
    """sqrt of the sum, over all paths from an input to an output, of the product of squared
    weights.

    It is sqrt(sum f(w^2, 1)) for networks f of ReLU units and linear layers: with weights and
    inputs of one sign, f is a sum over paths (Neyshabur, Tomioka and Srebro, arXiv 1503.00036).
    Scaling the incoming weights of a unit by c and the outgoing ones by 1 / c does not change it.
    Norm layers must be folded into the weights first.

    For such a network f(w^2, x) is affine in inputs x >= 0. This is checked at x = 0, 1 and 2^20. A
    network that is off by more than 1e-3 of its output is refused (tanh, softmax, LayerNorm; GELU,
    unless its sums are so large that it is a ReLU). A network with BatchNorm in evaluation is
    affine, too, so it passes, but the number is not a path norm.

    Half precision is computed in float32. Cost: three forward passes; in a trace one, without the
    check.

    Args:
        apply: `apply(params, x)` with the outputs of a batch.
        params: weights and biases, all of them on paths.
        example: an input of floats, or its shape and type, or a tree of these, each with a batch
            axis of size 1.

    Raises:
        UserError: `params` or `example` is not of floats, or `example` has more than one example;
            the outputs are not an array, are not affine in the input, or do not depend on it;
            squares of the weights, or their products, are beyond the range of the type.

    >>> net = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
    >>> weights = {"up": jnp.ones((2, 3)), "down": 2 * jnp.ones((3, 1))}
    >>> print(path_norm(net, weights, jnp.ones((1, 2))))
    4.8989797
    """
    caller = "path_norm"
    tree.check_floating(caller, params)
    tree.check_floating(caller, example, "example")
    for leaf in jax.tree.leaves(example):
        if not leaf.shape or leaf.shape[0] != 1:
            raise UserError(
                f"{caller}: example must be one input with an axis of the batch of size 1 in "
                f"front, got shape {leaf.shape}; give `x[:1]`."
            )
    wide = tree.widen(params)

    def total(weights, size):
        def inputs(x):
            dtype = jnp.float32 if tree.is_narrow(x) else jax.dtypes.canonicalize_dtype(x.dtype)
            return jnp.full(x.shape, size, dtype)

        outputs = apply(weights, jax.tree.map(inputs, example))
        kind = getattr(outputs, "dtype", f"a {type(outputs).__name__}")
        if not (hasattr(outputs, "dtype") and jnp.issubdtype(kind, jnp.floating)):
            raise UserError(f"{caller}: apply must return one array of real floats, got {kind}.")
        return jnp.sum(outputs)

    squares = jax.tree.map(jnp.square, wide)
    value = total(squares, 1.0)
    if loops.is_traced((value, params)):
        return jnp.sqrt(value)
    at_zero, at_one, far = float(total(squares, 0.0)), float(value), float(total(squares, _FAR))
    limits = jnp.finfo(value.dtype)
    if not (math.isfinite(at_one) and math.isfinite(far)):
        raise UserError(
            f"{caller}: the outputs for squared weights are not finite in {value.dtype}; give "
            "weights of moderate size, and a network of ReLU units and linear layers."
        )
    if 0 <= at_one < float(limits.tiny) / float(limits.eps):  # by underflow, or weights that are 0
        present = jax.tree.map(lambda x: jnp.asarray(np.asarray(x) != 0, jnp.float32), wide)
        if not at_zero == at_one == far == float(total(present, 1.0)):
            raise UserError(
                f"{caller}: products of squared weights are too small for {value.dtype}; give "
                "weights of moderate size."
            )
        return jnp.sqrt(value)
    expected = at_zero + (far - at_zero) / _FAR
    if not (abs(at_one - expected) <= _CURVED * at_one and far > 2 * at_zero):
        raise UserError(
            f"{caller}: the outputs for squared weights are {at_zero:.4g}, {at_one:.4g} and "
            f"{far:.4g} at inputs of 0, 1 and 2^20, which is no sum over paths; give a network of "
            "ReLU units and linear layers, without norm layers and softmax."
        )
    return jnp.sqrt(value)


class Norms(NamedTuple):
    """Norms of each layer as one matrix [k m, n] of its stacked slices; numpy in float64, [L].

    A layer that is not finite has NaN, an empty one 0. The ratio of a layer of zeros is NaN.

    Attributes:
        names: of the layers.
        frobenius: ||W||_F.
        spectral: largest singular value of all slices, not the norm of a convolution as a map.
        ratio: ||W||_F / spectral, the root of the stable rank.
        from_start: ||W - W_0||_F; `spectral_from_start` is its spectral norm. NaN without a start.
    """

    names: tuple[str, ...]
    frobenius: np.ndarray
    spectral: np.ndarray
    ratio: np.ndarray
    from_start: np.ndarray
    spectral_from_start: np.ndarray

    def totals(self) -> dict[str, np.ndarray]:
        """Measures of the whole network: sums of squares, and logarithms of products of squares.

        `log_product_frobenius` and `log_product_spectral` are sum ln ||W||^2, and `sum_ratio` is
        sum ||W||_F^2 / ||W||_2^2, after Jiang et al. (arXiv 1912.02178).
        """
        with np.errstate(divide="ignore", over="ignore"):
            return {
                "sum_frobenius": np.sum(self.frobenius**2),
                "sum_spectral": np.sum(self.spectral**2),
                "log_product_frobenius": 2 * np.sum(np.log(self.frobenius)),
                "log_product_spectral": 2 * np.sum(np.log(self.spectral)),
                "sum_ratio": np.sum(self.ratio**2),
                "sum_from_start": np.sum(self.from_start**2),
            }


def norms(params: Any, start: Any = None, *, where: Sequence[str] | str | None = None) -> Norms:
    """Frobenius and spectral norms of every layer, and of its distance from a start.

    Computed on the host, outside of `jit` and `vmap`.

    Args:
        params: parameters of a network; layers are found as in `data_free`.
        start: parameters of the same structure, such as those at initialisation.
        where: globs on the names of layers. Selected arrays of less than two axes are left out.

    Raises:
        UserError: no layer, a glob that selects no array of two axes or more, a start of another
            structure; the call is traced.

    >>> found = norms({"kernel": jnp.diag(jnp.array([3.0, 4.0]))})
    >>> print(found.frobenius, found.spectral)
    [5.] [4.]
    """
    caller = "norms"
    if loops.is_traced((params, start)):
        raise UserError(
            f"{caller}: called while it was traced (`jit`, `vmap`, `grad`); call it outside. "
            "Inside a trace use `norms.convolution_norm`, or `jnp.linalg.norm` of a kernel."
        )
    found = _matrices_in(caller, params, where)
    for glob in [where] if isinstance(where, str) else where or []:
        if not any(fnmatch.fnmatchcase(layer.name, glob) for layer in found):
            raise UserError(
                f"{caller}: where: '{glob}' selects no array of two axes or more; name kernels."
            )
    others: list[Any] = [None] * len(found)
    if start is not None:
        tree.check_same_structure(caller, "start", start, params)
        others = _matrices_in(caller, start, where)
    rows = []
    for layer, other in zip(found, others, strict=True):
        weight, moved = layers.matrices(layer), (math.nan, math.nan)
        if other is not None:
            with np.errstate(invalid="ignore"):
                moved = _pair(weight - layers.matrices(other))
        rows.append((*_pair(weight), *moved))
    frobenius, spectral, moved, spectral_moved = np.array(rows).T
    with np.errstate(invalid="ignore"):
        ratio = frobenius / spectral
    names = tuple(layer.name for layer in found)
    return Norms(names, frobenius, spectral, ratio, moved, spectral_moved)


def _matrices_in(caller: str, params: Any, where: Any) -> list[layers.Layer]:
    found = layers.find(caller, params, where, axes=0, argument="where")
    return [layer for layer in found if layer.kind != "none"]


def _pair(matrices: np.ndarray) -> tuple[float, float]:
    """Frobenius norm and largest singular value, computed after division by the largest entry, so
    that squares stay in range."""
    largest = float(np.abs(matrices).max(initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return (0.0, 0.0) if largest == 0 else (math.nan, math.nan)
    wide = matrices / largest
    with jax.enable_x64(True):
        spectral = float(jnp.max(jnp.linalg.svd(wide, compute_uv=False)))
    return largest * float(np.linalg.norm(wide)), largest * spectral
