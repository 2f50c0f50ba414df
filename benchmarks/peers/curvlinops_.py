"""curvlinops-for-pytorch 3.0.1: its operators under `scipy.sparse.linalg.eigsh`, its Hutch++ and
Lanczos quadrature. Settings in its favour: no check of determinism, the number of examples given
(each saves passes over the data), the ends of the spectrum given to the density."""

import numpy as np
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator, hutchpp_trace
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.peers import Outcome
from benchmarks.peers.torch_peer import TorchPeer


class Peer(TorchPeer):
    name, package = "curvlinops", "curvlinops-for-pytorch"

    def _operator(self, kind=HessianLinearOperator, all_batches=False):
        twin = self.twin
        batches = twin.batches if all_batches else [twin.batch]
        return kind(
            *(twin.model, twin.criterion, twin.params, batches),
            check_deterministic=False,
            num_data=sum(len(x) for x, _ in batches),
        )

    def product(self):
        found = self._operator() @ self.direction_flat()
        self.wait()
        return Outcome(None, 1, {"vector": found})

    def products(self, count):
        return self.chain(self._operator().__matmul__, count)

    def gauss_newton_product(self):
        found = self._operator(GGNLinearOperator) @ self.direction_flat()
        self.wait()
        return Outcome(None, 1, {"vector": found})

    def gauss_newton_products(self, count):
        return self.chain(self._operator(GGNLinearOperator).__matmul__, count)

    def top(self, k, seed, tol=1e-3):
        return self._eigsh(k, seed, tol, self._operator())

    def top_over_batches(self, seed, tol=1e-3):
        return self._eigsh(1, seed, tol, self._operator(all_batches=True))

    def _eigsh(self, k, seed, tol, operator):
        inner, count = operator.to_scipy(dtype=np.float32), 0

        def matvec(v):
            nonlocal count
            count += 1
            return inner @ v

        start = np.random.default_rng(seed).standard_normal(inner.shape[0]).astype(np.float32)
        counted = LinearOperator(inner.shape, matvec=matvec, dtype=np.float32)
        values = eigsh(counted, k, which="LA", tol=tol, v0=start, return_eigenvectors=True)[0]
        return Outcome(np.sort(values)[::-1].tolist(), count)

    def trace(self, seed, products=99):
        torch.manual_seed(seed)
        return Outcome(float(hutchpp_trace(self._operator(), products)), products)

    def density(self, steps, probes, seed):
        torch.manual_seed(seed)
        operator = self._operator()
        runs = [fast_lanczos(operator, steps) for _ in range(probes)]
        nodes = [self.numbers(values) for values, _ in runs]
        weights = [self.numbers(vectors[0] ** 2) for _, vectors in runs]
        return Outcome(None, steps * probes, {"nodes": nodes, "weights": weights})
