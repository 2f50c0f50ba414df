"""hessian-eigenthings 1.0.0a5: Lanczos of a length that is given, Hutch++, quadrature."""

import hessian_eigenthings as eigenthings
import torch

from benchmarks.peers import Outcome
from benchmarks.peers.torch_peer import TorchPeer


class Peer(TorchPeer):
    name, package = "hessian-eigenthings", "hessian-eigenthings"

    def _operator(self, all_batches=False):
        twin = self.twin
        batches = twin.batches if all_batches else [twin.batch]
        loss = eigenthings.supervised_loss(twin.criterion)
        return eigenthings.HessianOperator(twin.model, batches, loss)

    def product(self):
        found = self._operator().matvec(self.direction_flat())
        self.wait()
        return Outcome(None, 1, {"vector": found})

    def products(self, count):
        return self.chain(self._operator().matvec, count)

    def gauss_newton_product(self):
        found = self._gauss_newton().matvec(self.direction_flat())
        self.wait()
        return Outcome(None, 1, {"vector": found})

    def gauss_newton_products(self, count):
        return self.chain(self._gauss_newton().matvec, count)

    def _gauss_newton(self):
        return eigenthings.GGNOperator(
            self.twin.model,
            [self.twin.batch],
            eigenthings.supervised_forward,
            eigenthings.supervised_loss_of_output(self.twin.criterion),
        )

    def top(self, k, seed, steps):
        found = eigenthings.lanczos(self._operator(), k=k, max_iter=steps, which="LA", seed=seed)
        return Outcome(self.numbers(found.eigenvalues), found.iterations)

    def top_over_batches(self, seed, steps):
        operator = self._operator(all_batches=True)
        found = eigenthings.lanczos(operator, k=1, max_iter=steps, which="LA", seed=seed)
        return Outcome(self.numbers(found.eigenvalues), found.iterations)

    def trace(self, seed, products=99):
        found = eigenthings.trace(self._operator(), num_matvecs=products, seed=seed)
        return Outcome(found.estimate, products)

    def density(self, steps, probes, seed):
        found = eigenthings.spectral_density(
            self._operator(), num_runs=probes, lanczos_steps=steps, seed=1000 * seed
        )
        nodes = [self.numbers(x) for x in torch.nan_to_num(found.raw_eigenvalues)]
        weights = [self.numbers(x) for x in found.raw_weights]
        return Outcome(None, steps * probes, {"nodes": nodes, "weights": weights})
