"""What the peers in PyTorch share."""

import numpy as np
import torch

from benchmarks.peers import Outcome
from benchmarks.torch_models import Twin, flatten


class TorchPeer:
    framework = "torch"
    compiles = False

    def __init__(self, workload):
        self.twin = Twin(workload)
        self.direction = self.twin.tensors(workload.vector(0))

    def wait(self):
        if self.twin.device == "cuda":
            torch.cuda.synchronize()

    def gradient(self):
        found = self.twin.gradient()
        self.wait()
        return Outcome(None, detail={"vector": found})

    def direction_flat(self):
        return flatten(self.direction)

    def numbers(self, values):
        return np.asarray([float(v) for v in values]).tolist()

    def chain(self, product, count):
        """`count` products in turn, each on the last one's result at norm 1."""
        v = self.direction_flat()
        for _ in range(count):
            v = v / v.norm()
            v = product(v)
        self.wait()
        return Outcome(None, count, {"vector": v})
