"""Trains the networks that `faults.py` looks at, on digits, and writes them beside it.

The tests read the weights and train nothing, as what a training comes to depends on the processor.
Run `python -m tests.diagnosis.train_faults` where an architecture of `faults.py` has changed.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

import livella
from tests.diagnosis import faults
from tests.diagnosis.faults import Batches, batches


def train(model: nn.Module, over: Batches, rate: float = 0.05, epochs: int = 6) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(over))
    model.train()
    for _ in range(epochs):
        for x, y in over:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def momentum() -> nn.Module:
    model = faults.built("momentum")
    model.b2.momentum = 0.99
    return train(model, batches())


def two_a_batch() -> nn.Module:
    return train(faults.built("batch of 2"), batches(2), rate=0.005, epochs=2)


def low_precision() -> nn.Module:
    return train(faults.built("bfloat16"), faults.in_bfloat16(batches()))


def deep() -> nn.Module:
    model, over = faults.Deep(), faults.separable()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(12):
        for x, y in over:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    livella.estimate_population(model.eval(), over, progress=False).apply()
    return model


TRAINED = {
    "healthy": lambda: train(faults.built("healthy"), batches()),
    "momentum": momentum,
    "shared": lambda: train(faults.built("shared"), batches()),
    "sorted by class": lambda: train(faults.built("sorted by class"), faults.sorted_batches()),
    "batch of 2": two_a_batch,
    "dropout": lambda: train(faults.built("dropout"), batches()),
    "bfloat16": low_precision,
    "deep": deep,
}


def main(seed: int = 0) -> None:
    tensors = {}
    for name, trained in TRAINED.items():
        torch.manual_seed(seed)
        state = trained().state_dict()
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in state.items()}
    save_file(tensors, faults.WEIGHTS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
