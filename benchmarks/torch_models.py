"""The same nets in PyTorch, with names that follow Flax's, so that weights carry over by name."""

from typing import Any

import numpy as np
import torch
from flax import traverse_util
from torch import nn

from benchmarks.workloads import MLP, Transformer, Workload


class TorchMLP(nn.Module):
    def __init__(self, widths, activation, inputs):
        super().__init__()
        sizes = [inputs, *widths]
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
            self.add_module(f"Dense_{i}", nn.Linear(a, b))
        self.head = nn.Linear(sizes[-1], 10)
        self.hidden = len(widths)
        self.activation = torch.tanh if activation == "tanh" else torch.relu

    def forward(self, x):
        x = x.flatten(1)
        for i in range(self.hidden):
            x = self.activation(getattr(self, f"Dense_{i}")(x))
        return self.head(x)


class TorchBasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.Conv_0 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.BatchNorm_0 = nn.BatchNorm2d(outputs)
        self.Conv_1 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.BatchNorm_1 = nn.BatchNorm2d(outputs)
        self.reshapes = stride != 1 or inputs != outputs
        if self.reshapes:
            self.Conv_2 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.BatchNorm_2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = torch.relu(self.BatchNorm_0(self.Conv_0(x)))
        y = self.BatchNorm_1(self.Conv_1(y))
        if self.reshapes:
            x = self.BatchNorm_2(self.Conv_2(x))
        return torch.relu(x + y)


class TorchResNet(nn.Module):
    def __init__(self, width, blocks, channels):
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.BatchNorm_0 = nn.BatchNorm2d(width)
        self.count, inputs = 0, width
        for stage, num_blocks in enumerate(blocks):
            for block in range(num_blocks):
                outputs, stride = width * 2**stage, 2 if stage and not block else 1
                block = TorchBasicBlock(inputs, outputs, stride)
                self.add_module(f"BasicBlock_{self.count}", block)
                self.count, inputs = self.count + 1, outputs
        self.head = nn.Linear(inputs, 10)

    def forward(self, x):
        x = torch.relu(self.BatchNorm_0(self.Conv_0(x)))
        for i in range(self.count):
            x = getattr(self, f"BasicBlock_{i}")(x)
        return self.head(x.mean((2, 3)))


class TorchBlock(nn.Module):
    def __init__(self, width, heads, length):
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.heads = heads
        self.register_buffer("mask", torch.tril(torch.ones(length, length, dtype=torch.bool)))

    def forward(self, x):
        batch, length, width = x.shape
        y = self.qkv(self.norm_1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = y.unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / (width // self.heads) ** 0.5
        scores = torch.where(self.mask, scores, -1e9)
        y = torch.einsum("bhqk,bkhd->bqhd", torch.softmax(scores, -1), v)
        x = x + self.out(y.reshape(batch, length, width))
        y = nn.functional.gelu(self.up(self.norm_2(x)), approximate="tanh")
        return x + self.down(y)


class TorchTransformer(nn.Module):
    """Gives logits as (examples x positions, symbols): what `nn.CrossEntropyLoss` takes."""

    def __init__(self, vocab, layers, width, heads, length):
        super().__init__()
        self.token = nn.Embedding(vocab, width)
        self.position = nn.Embedding(length, width)
        for i in range(layers):
            self.add_module(f"block_{i}", TorchBlock(width, heads, length))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, vocab)
        self.layers = layers

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token(tokens) + self.position(places)
        for i in range(self.layers):
            x = getattr(self, f"block_{i}")(x)
        return self.head(self.norm(x)).flatten(0, 1)


class Twin:
    """A workload in PyTorch: module in eval mode, criterion, batches on the device."""

    def __init__(self, workload: Workload, *, dtype=torch.float32, device: str | None = None):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.workload, self.device, self.dtype = workload, device, dtype
        self.model = _build(workload)
        state = self.model.state_dict()
        values = traverse_util.flatten_dict(workload.params, sep=".")
        for stats in workload.variables.values():
            values |= traverse_util.flatten_dict(stats, sep=".")
        found = dict(_convert(name, value) for name, value in values.items())
        missing = {n for n in state if not n.endswith(("mask", "num_batches_tracked"))} ^ set(found)
        if missing:
            raise ValueError(f"{workload.name}: weights do not carry over: {sorted(missing)}")
        state.update({name: torch.from_numpy(value.copy()) for name, value in found.items()})
        self.model.load_state_dict(state)
        self.model.to(device=device, dtype=dtype).eval()
        self.criterion = nn.CrossEntropyLoss()
        self.params = list(self.model.parameters())
        self.batches = [self._batch(batch) for batch in workload.batches]

    @property
    def batch(self):
        return self.batches[0]

    def loss(self, batch=None):
        x, y = batch or self.batch
        return self.criterion(self.model(x), y)

    def gradient(self, *, create_graph: bool = False, batch=None):
        return torch.autograd.grad(self.loss(batch), self.params, create_graph=create_graph)

    def tensors(self, tree: Any) -> list[torch.Tensor]:
        """A tree like the parameters, in the order of the module's."""
        values = traverse_util.flatten_dict(tree, sep=".")
        values = dict(_convert(name, value) for name, value in values.items())
        names = [name for name, _ in self.model.named_parameters()]
        return [torch.tensor(values[n], device=self.device, dtype=self.dtype) for n in names]

    def set_params(self, tree: Any) -> None:
        with torch.no_grad():
            for param, value in zip(self.params, self.tensors(tree), strict=True):
                param.copy_(value)

    def flat(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """A flat vector cut into the shapes of the parameters."""
        pieces = vector.split([p.numel() for p in self.params])
        return [v.view_as(p) for v, p in zip(pieces, self.params, strict=True)]

    def _batch(self, batch):
        x = torch.from_numpy(np.array(batch["image"]))
        y = torch.from_numpy(np.array(batch["label"])).long().flatten()
        if x.is_floating_point():
            x = x.to(self.dtype)
        if x.ndim == 4:
            x = x.permute(0, 3, 1, 2).contiguous()
        return x.to(self.device), y.to(self.device)


def flatten(tensors) -> torch.Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _build(workload: Workload) -> nn.Module:
    module, image = workload.module, workload.batch["image"]
    if isinstance(module, MLP):
        return TorchMLP(module.widths, module.activation, int(np.prod(image.shape[1:])))
    if isinstance(module, Transformer):
        return TorchTransformer(
            module.vocab, module.layers, module.width, module.heads, module.length
        )
    return TorchResNet(module.width, module.blocks, image.shape[-1])


_SUFFIXES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def _convert(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    head, _, last = name.rpartition(".")
    if last == "kernel":
        value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
    return f"{head}.{_SUFFIXES.get(last, last)}", np.ascontiguousarray(value)
