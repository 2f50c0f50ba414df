"""PyHessian 0.1: power iteration with deflation, Hutchinson, stochastic Lanczos quadrature.

`torch.eig`, which its density calls, is gone from PyTorch: a stand-in is put there. Its products
are counted round its own functions.
"""

import sys
import warnings

import torch
from pyhessian import hessian, hessian_vector_product

from benchmarks.peers import Outcome
from benchmarks.peers.torch_peer import TorchPeer

warnings.filterwarnings("ignore", message=".*create_graph=True.*")


def _eig(matrix, eigenvectors=True):
    """For symmetric matrices: values as (n, 2), real and imaginary parts, and vectors."""
    del eigenvectors
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


if not hasattr(torch, "_stand_in"):
    torch.eig = _eig
    torch._stand_in = True


class Peer(TorchPeer):
    name, package = "PyHessian", "pyhessian"

    def _hessian(self, all_batches=False):
        twin = self.twin
        data = {"dataloader": twin.batches} if all_batches else {"data": twin.batch}
        # The gradient with its graph is kept in the parameters, in a cycle that must be broken.
        twin.model.zero_grad()
        return hessian(twin.model, twin.criterion, cuda=twin.device == "cuda", **data)

    def _counted(self, compute, all_batches=False):
        found = self._hessian(all_batches)
        with _Counter() as counter:
            result = compute(found)
        self.twin.model.zero_grad()
        return result, counter.count

    def product(self):
        found = self._hessian()
        vector = hessian_vector_product(found.gradsH, found.params, self.direction)
        self.wait()
        self.twin.model.zero_grad()
        return Outcome(None, 1, {"vector": vector})

    def products(self, count):
        found = self._hessian()

        def product(v):
            pieces = hessian_vector_product(found.gradsH, found.params, self.twin.flat(v))
            return torch.cat([x.reshape(-1) for x in pieces])

        result = self.chain(product, count)
        self.twin.model.zero_grad()
        return result

    def top(self, k, seed, tol=1e-3, max_iterations=100):
        torch.manual_seed(seed)
        (values, _), count = self._counted(
            lambda h: h.eigenvalues(maxIter=max_iterations, tol=tol, top_n=k)
        )
        # They come in the order in which they were met, which may not be that of their size.
        return Outcome(sorted(values, reverse=True), count)

    def top_over_batches(self, seed, tol=1e-3, max_iterations=100):
        torch.manual_seed(seed)
        (values, _), count = self._counted(
            lambda h: h.eigenvalues(maxIter=max_iterations, tol=tol), all_batches=True
        )
        return Outcome(values, count)

    def trace(self, seed, probes=100, tol=0.0):
        """With `tol=0` it draws as many probes as are asked for."""
        torch.manual_seed(seed)
        values, count = self._counted(lambda h: h.trace(maxIter=probes, tol=tol))
        return Outcome(sum(values) / len(values), count)

    def density(self, steps, probes, seed):
        torch.manual_seed(seed)
        (nodes, weights), count = self._counted(lambda h: h.density(iter=steps, n_v=probes))
        detail = {"nodes": [self.numbers(x) for x in nodes]}
        return Outcome(None, count, detail | {"weights": [self.numbers(x) for x in weights]})

    def report(self, seed, k=10, tol=1e-3, max_iterations=100, probes=100, steps=32, runs=4):
        """Each in turn; the smallest eigenvalue is not to be had from it, and left out."""
        top = self.top(k, seed, tol, max_iterations)
        trace = self.trace(seed, probes)
        density = self.density(steps, runs, seed)
        products = top.products + trace.products + density.products
        found = {"top": top.values, "trace": trace.values, **density.detail}
        return Outcome(None, products, found)


class _Counter:
    """Counts the products inside PyHessian's methods."""

    def __enter__(self):
        module = sys.modules[hessian.__module__]
        self.module, self.one = module, module.hessian_vector_product
        self.all, self.count = hessian.dataloader_hv_product, 0

        def one(*args):
            self.count += 1
            return self.one(*args)

        def all_batches(*args):
            self.count += 1
            return self.all(*args)

        module.hessian_vector_product = one
        hessian.dataloader_hv_product = all_batches
        return self

    def __exit__(self, *_):
        self.module.hessian_vector_product = self.one
        hessian.dataloader_hv_product = self.all
