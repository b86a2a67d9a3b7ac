"""A small convolutional network that reads digits, as `python -m tests.model.digits` trained it.

It is kept because training comes out otherwise on each processor, and with it what a stream of
images does to the network.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from livella.study import data

WEIGHTS = Path(__file__).with_name("digits.safetensors")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def trained(seed: int = 0, epochs: int = 12) -> nn.Sequential:
    x, y = data.load("digits").train
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def sorted_digits() -> tuple[nn.Sequential, Tensor, Tensor]:
    """Give the network, and the images and classes of the test part, sorted by class."""
    model = network().eval()
    model.load_state_dict(load_file(WEIGHTS))
    x, y = data.load("digits").test
    order = y.argsort(stable=True)
    return model, x[order], y[order]


if __name__ == "__main__":
    save_file(trained().state_dict(), WEIGHTS)
