"""What is measured: nets with weights and data as numpy arrays, the same for every framework.

W0  MLP 64-32-32-10 on 8 x 8 digits, 256 examples, n = 3,466: all eigenvalues are known
W1  ReLU MLP 784-512-512-10, 1,024 examples (and 8 batches of them), n = 669,706
W1t the same with tanh
W2  ResNet-18 of width 16, CIFAR stem, frozen BatchNorm, 128 examples, n = 701,466
W3  causal transformer, 4 layers of width 128, 32 sequences of 64 out of 64 symbols, n = 817,984

All are trained briefly, so that the outliers of the spectrum are there. Data: Fashion-MNIST and
CIFAR-10 from prepared TFDS folders where `data_dir` holds them, else scikit-learn's digits,
enlarged and shifted; text: the licence of this repository.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from sharpjax.data import digits, tfds
from sharpjax.nn import ResNet18

HERE = pathlib.Path(__file__).resolve().parent
CACHE = HERE / ".cache"
NAMES = ("W0", "W1", "W1t", "W2", "W3")


class MLP(nn.Module):
    widths: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, image, *, train=False):
        x = image.reshape(image.shape[0], -1)
        for width in self.widths:
            x = nn.Dense(width, kernel_init=nn.initializers.he_normal())(x)
            x = jnp.tanh(x) if self.activation == "tanh" else nn.relu(x)
        return nn.Dense(10, name="head")(x)


class Transformer(nn.Module):
    """Pre-norm decoder with learned positions."""

    vocab: int
    layers: int
    width: int
    heads: int
    length: int

    @nn.compact
    def __call__(self, tokens, *, train=False):
        x = nn.Embed(self.vocab, self.width, name="token")(tokens)
        x = x + nn.Embed(self.length, self.width, name="position")(jnp.arange(tokens.shape[1]))
        for i in range(self.layers):
            x = Block(self.width, self.heads, name=f"block_{i}")(x)
        return nn.Dense(self.vocab, name="head")(nn.LayerNorm(name="norm")(x))


class Block(nn.Module):
    width: int
    heads: int

    @nn.compact
    def __call__(self, x):
        batch, length, width = x.shape
        y = nn.Dense(3 * width, name="qkv")(nn.LayerNorm(name="norm_1")(x))
        y = y.reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = (y[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // self.heads)
        scores = jnp.where(np.tril(np.ones((length, length), bool)), scores, -1e9)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(batch, length, width)
        x = x + nn.Dense(width, name="out")(y)
        y = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm_2")(x)))
        return x + nn.Dense(width, name="down")(y)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """`model(params, batch) -> logits`; frozen statistics are leaves."""

    module: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Mapping[str, Any]

    def __call__(self, params, batch):
        return self.module.apply({"params": params, **self.variables}, batch["image"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """`loss(params, batch)`, the mean cross-entropy of the model."""

    model: Model

    def __call__(self, params, batch):
        return cross_entropy(self.model(params, batch), batch)


def cross_entropy(logits, batch):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


@dataclasses.dataclass(frozen=True)
class Workload:
    """Everything in numpy; `batches` cut a larger data set of which `batch` is the first."""

    name: str
    title: str
    data: str
    module: nn.Module
    params: Any
    variables: Any
    batches: tuple[Mapping[str, np.ndarray], ...]

    @property
    def batch(self):
        return self.batches[0]

    @property
    def size(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self.params))

    @functools.cached_property
    def digest(self) -> str:
        """Of weights and data: what a cached reference belongs to."""
        digest = hashlib.sha256(self.name.encode())
        for leaf in jax.tree.leaves((self.params, self.variables, self.batches)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:12]

    def vector(self, seed: int) -> Any:
        """A fixed direction, a tree like the parameters."""
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), self.params)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    title: str
    module: nn.Module
    data: Callable[[str], tuple[str, np.ndarray, np.ndarray]]
    batch_size: int
    num_batches: int
    optimizer: optax.GradientTransformation
    steps: int


def load(name: str, *, quick: bool = False, data_dir: str = "") -> Workload:
    """A workload, trained now or read from the cache."""
    recipe = _recipe(name, quick)
    data, image, label = recipe.data(data_dir)
    batches = tuple(
        {"image": image[i : i + recipe.batch_size], "label": label[i : i + recipe.batch_size]}
        for i in range(0, recipe.batch_size * recipe.num_batches, recipe.batch_size)
    )
    key = repr((name, quick, data, recipe.module, recipe.batch_size, recipe.steps)).encode()
    path = CACHE / "weights" / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}.npz"
    if not path.exists():
        variables = _train(recipe, batches[0]["image"].shape, image, label)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, **traverse_util.flatten_dict(variables, sep="/"))
        path.with_suffix(".part").replace(path)
    variables = traverse_util.unflatten_dict(dict(np.load(path)), sep="/")
    params = variables.pop("params")
    return Workload(name, recipe.title, data, recipe.module, params, variables, batches)


def trajectory(workload: Workload, *, every: int, count: int, rate: float = 0.05) -> list[Any]:
    """`count` checkpoints along further training on the first batch, `every` steps apart."""
    loss = Loss(Model(workload.module, workload.variables))
    gradient = jax.jit(jax.grad(loss))
    optimizer = optax.sgd(rate, momentum=0.9)
    params, found = jax.tree.map(jnp.asarray, workload.params), []
    state = optimizer.init(params)
    for step in range(every * (count - 1) + 1):
        if step % every == 0:
            found.append(jax.tree.map(np.asarray, params))
        updates, state = optimizer.update(gradient(params, workload.batch), state)
        params = optax.apply_updates(params, updates)
    return found


def _recipe(name: str, quick: bool) -> _Recipe:
    sgd, adam = optax.sgd(0.05, momentum=0.9), optax.adam(1e-3)
    if name == "W0" or quick and name in ("W1", "W1t"):
        activation = "tanh" if name == "W1t" else "relu"
        net = MLP((32, 32), activation)
        data = functools.partial(_images, "small")
        size = 128 if quick else 256
        return _Recipe(f"MLP 64-32-32-10, {activation}", net, data, size, 1797 // size, sgd, 60)
    if name in ("W1", "W1t"):
        activation = "tanh" if name == "W1t" else "relu"
        net = MLP((512, 512), activation)
        data = functools.partial(_images, "grey")
        return _Recipe(f"MLP 784-512-512-10, {activation}", net, data, 1024, 8, sgd, 200)
    if name == "W2":
        net = ResNet18(num_classes=10, width=2 if quick else 16)
        data = functools.partial(_images, "small" if quick else "colour")
        size = 32 if quick else 128
        return _Recipe("ResNet-18, frozen BatchNorm", net, data, size, 1, adam, 60)
    if name == "W3":
        length = 16 if quick else 64
        shape = (16, 1, 16, 2, length) if quick else (64, 4, 128, 4, length)
        net = Transformer(*shape)
        data = functools.partial(_text, length, shape[0])
        return _Recipe("causal transformer", net, data, 8 if quick else 32, 1, adam, 100)
    raise ValueError(f"unknown workload {name}; known: {', '.join(NAMES)}")


def _train(recipe: _Recipe, shape, image, label) -> Any:
    """Variables after a few steps on random batches, as numpy."""
    variables = recipe.module.init(jax.random.key(0), jnp.zeros(shape, image.dtype))
    params = variables["params"]
    rest = {name: value for name, value in variables.items() if name != "params"}
    state = recipe.optimizer.init(params)

    @jax.jit
    def step(params, rest, state, batch):
        def loss(params):
            logits, updated = recipe.module.apply(
                {"params": params, **rest}, batch["image"], train=True, mutable=list(rest)
            )
            return cross_entropy(logits, batch), updated

        gradient, rest_ = jax.grad(loss, has_aux=True)(params)
        updates, state_ = recipe.optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), rest_, state_

    rng = np.random.default_rng(0)
    for _ in range(recipe.steps):
        index = rng.choice(len(image), recipe.batch_size, replace=False)
        batch = {"image": image[index], "label": label[index]}
        params, rest, state = step(params, rest, state, batch)
    return jax.tree.map(np.asarray, {"params": params, **rest})


def _images(kind: str, data_dir: str) -> tuple[str, np.ndarray, np.ndarray]:
    """8,192 images and labels (1,797 of the small kind), scaled to mean 0 and deviation 1."""
    if data_dir and kind != "small":
        name = "fashion_mnist" if kind == "grey" else "cifar10"
        splits = tfds.load(name, data_dir=data_dir)
        image, label = splits.train.input[:8192], splits.train.label[:8192]
    else:
        name = "digits"
        splits = digits.load()
        image = np.concatenate([splits.train.input, splits.test.input])
        label = np.concatenate([splits.train.label, splits.test.label])
        if kind != "small":
            name = "enlarged digits"
            image, label = _enlarge(image[..., 0], label, 28 if kind == "grey" else 32)
        if kind == "colour":
            rng = np.random.default_rng(1)
            image = image * rng.uniform(0.3, 1.0, (len(image), 1, 1, 3))
    image = image.astype(np.float32)
    image = (image - image.mean()) / image.std()
    return name, image.astype(np.float32), label.astype(np.int32)


def _enlarge(image, label, size):
    """Each digit some four times, three times as large, somewhere in a frame."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(image)) for _ in range(5)])[:8192]
    large = np.kron(image[order], np.ones((1, 3, 3)))
    frame = np.zeros((len(order), size, size, 1), np.float32)
    for i, (row, column) in enumerate(rng.integers(0, size - 24 + 1, (len(order), 2))):
        frame[i, row : row + 24, column : column + 24, 0] = large[i]
    return frame, label[order]


def _text(length, vocab, data_dir):
    """Windows of English text, over its most frequent symbols."""
    del data_dir
    text = " ".join((HERE.parent / "LICENSE").read_text().lower().split())
    symbols, counts = np.unique(list(text), return_counts=True)
    known = symbols[np.argsort(-counts, kind="stable")][: vocab - 1]
    place = {symbol: i + 1 for i, symbol in enumerate(known)}
    codes = np.array([place.get(symbol, 0) for symbol in text], np.int32)
    start = np.random.default_rng(0).integers(0, len(codes) - length - 1, 1024)
    window = np.stack([codes[i : i + length + 1] for i in start])
    return "text of the licence", window[:, :-1], window[:, 1:]
