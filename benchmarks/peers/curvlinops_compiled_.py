"""curvlinops-for-pytorch 3.0.1 with its product under `torch.compile`, where that compiles.

What does not, or does not give the product, is left out with the reason.
"""

import torch

from benchmarks.peers import Missing, curvlinops_


class Peer(curvlinops_.Peer):
    name, compiles = "curvlinops_compiled", True

    def __init__(self, workload):
        super().__init__(workload)
        self.made = {}  # compiled once

    def _operator(self, *args, **options):
        asked = args, tuple(options.items())
        if asked not in self.made:
            self.made[asked] = _Compiled(super()._operator(*args, **options))
        return self.made[asked]

    def gauss_newton_product(self):
        raise Missing("its Gauss-Newton product is not compiled here")


class _Compiled:
    """The operator, whose product of one vector is compiled at the first call, and checked."""

    def __init__(self, operator):
        self.operator = operator
        self.product = torch.compile(operator.__matmul__)
        self.checked = False

    def __matmul__(self, vector):
        try:
            found = self.product(vector)
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise Missing(f"torch.compile: {type(error).__name__}: {first[:100]}") from None
        if not self.checked:
            plain = self.operator @ vector
            if (found - plain).norm() > 1e-3 * plain.norm():
                raise Missing("torch.compile: the product is another one")
            self.checked = True
        return found

    def to_scipy(self, dtype):
        return _Numpy(self, self.operator.shape, dtype)


class _Numpy:
    def __init__(self, operator, shape, dtype):
        self.operator, self.shape, self.dtype = operator, shape, dtype

    def __matmul__(self, vector):
        return (self.operator @ torch.from_numpy(vector.astype(self.dtype))).numpy()
