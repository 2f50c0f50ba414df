"""The recipe of the edge-of-stability studies (arXiv 2103.00065), written anew: ARPACK by
`scipy.sparse.linalg.eigsh` at its defaults (tol=0, largest in magnitude) round reverse-over-reverse
products in PyTorch, batch by batch, with the vectors copied to numpy and back."""

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.peers import Outcome
from benchmarks.peers.torch_peer import TorchPeer


class Peer(TorchPeer):
    name, package = "edge of stability", "scipy"

    def _product(self, vector, batches):
        total = torch.zeros_like(vector)
        for batch in batches:
            gradients = self.twin.gradient(create_graph=True, batch=batch)
            slope = torch.cat([g.reshape(-1) for g in gradients]).mul(vector).sum()
            found = torch.autograd.grad(slope, self.twin.params)
            total += torch.cat([x.reshape(-1) for x in found]) / len(batches)
        return total

    def product(self):
        found = self._product(self.direction_flat(), [self.twin.batch])
        self.wait()
        return Outcome(None, 1, {"vector": found})

    def products(self, count):
        return self.chain(lambda v: self._product(v, [self.twin.batch]), count)

    def top(self, k, seed):
        return self._eigsh(k, seed, [self.twin.batch])

    def top_over_batches(self, seed):
        return self._eigsh(1, seed, self.twin.batches)

    def _eigsh(self, k, seed, batches):
        size, count = len(self.direction_flat()), 0

        def matvec(v):
            nonlocal count
            count += 1
            vector = torch.tensor(v, dtype=torch.float32, device=self.twin.device).reshape(-1)
            return self._product(vector, batches).cpu().numpy()

        start = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
        operator = LinearOperator((size, size), matvec=matvec, dtype=np.float32)
        values = eigsh(operator, k, v0=start, return_eigenvectors=True)[0]
        return Outcome(np.sort(values)[::-1].tolist(), count)
