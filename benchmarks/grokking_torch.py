"""The recipe of `configs/grokking.py` once more, in PyTorch, from the paper's text alone.

    python benchmarks/grokking_torch.py --rank=0.125 --seeds=1000,1001 --epochs=1500

Needs PyTorch and nothing of this package. Prints, for each seed, the best test accuracy and the
first epoch that had it, and how many were run; docs/grokking.md has what came of seeds 1000 to
1019. Split, initial weights and order of examples are functions of the seed, on the same version.
"""

import argparse

import torch
from torch import nn

P = 97
BATCH = 512


def factors(matrix, rank):
    """The matrix, or U, s, V' of its SVD at floor(rank * min(shape)): what is trained."""
    if not rank:
        return [nn.Parameter(matrix)]
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    k = int(rank * min(matrix.shape))
    return [nn.Parameter(x.clone()) for x in (u[:, :k], s[:k], vt[:k])]


def product(parts):
    return parts[0] if len(parts) == 1 else (parts[0] * parts[1]) @ parts[2]


def train(seed, fraction, rank, budget):
    torch.manual_seed(seed)
    a, b = torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij")
    a, b = a.reshape(-1), b.reshape(-1)
    tokens = torch.stack([a, torch.full_like(a, P), b, torch.full_like(a, P + 1)], 1)
    label = (a + b) % P
    order, count = torch.randperm(P * P), int(fraction * P * P)
    here, held_out = order[:count], order[count:]

    embedding, hidden, head = (
        torch.randn(P + 2, 128),
        torch.empty(128, 512),
        torch.empty(P + 2, 128),
    )
    nn.init.kaiming_normal_(hidden, nonlinearity="relu")
    nn.init.kaiming_normal_(head, nonlinearity="relu")
    weights = [factors(matrix, rank) for matrix in (embedding, hidden, head)]
    biases = [nn.Parameter(torch.zeros(n)) for n in (128, P + 2)]

    def logits(x):
        e, w1, w2 = map(product, weights)
        return torch.relu(e[x].flatten(1) @ w1.T + biases[0]) @ w2.T + biases[1]

    parameters = [x for parts in weights for x in parts] + biases
    adam = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    best, best_epoch = -1.0, 0
    for epoch in range(1, budget + 1):
        for index in here[torch.randperm(count)].split(BATCH):
            adam.zero_grad()
            # In float64, as the authors' base code takes it.
            nn.functional.cross_entropy(logits(tokens[index]).double(), label[index]).backward()
            adam.step()
        with torch.no_grad():
            right = logits(tokens[held_out]).argmax(1) == label[held_out]
        accuracy = float(right.double().mean())
        if accuracy > best:
            best, best_epoch = accuracy, epoch
        if right.all():
            break
    return best, best_epoch, epoch


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fraction", type=float, default=0.8)
    parser.add_argument("--rank", type=float, default=0.125, help="0: dense")
    parser.add_argument("--epochs", type=int, default=1500)
    parser.add_argument("--seeds", default="1000,1001,1002")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in map(int, given.seeds.split(",")):
        best, epoch, run = train(seed, given.fraction, given.rank, given.epochs)
        print(f"seed {seed}: {best:.4f} at epoch {epoch} of {run}", flush=True)


if __name__ == "__main__":
    main()
