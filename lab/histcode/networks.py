"""The networks that --pooling names: the rows of the paper's Table 1, on standardised features."""

import numpy as np
import torch
from torch import nn

import histcode

POOLINGS = ("MIL-RNN", "ABMIL", "DSMIL", "max", "mean", "HistCode")  # [HistCode Table 1]


def network_of(pooling, n_features, outputs=2, hidden=histcode.ATTENTION):
    """One of POOLINGS, from the features of the tiles to the outputs of the slide."""
    match pooling:
        case "MIL-RNN":
            return histcode.MILRNN(n_features, outputs)
        case "DSMIL":
            return histcode.DSMIL(n_features, outputs)
        case "ABMIL":
            pooling = histcode.GatedAttention(n_features, hidden, gated=False)
        case "HistCode":
            pooling = histcode.GatedAttention(n_features, hidden)
        case "max":
            pooling = histcode.max_pooling
        case _:
            pooling = histcode.mean_pooling
    return histcode.PooledClassifier(pooling, n_features, outputs)


class SlideModel(nn.Module):
    """Standardised features, layers of `embed` with ReLU (the paper has none), one of POOLINGS.

    mean, sd (D,): of the tiles of the training slides. [ours]
    forward(h (B, T, D), mask (B, T)) -> outputs (B, streams, C), a (B, T)
    """

    def __init__(self, pooling, mean, sd, outputs=2, embed=(), hidden=histcode.ATTENTION):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.float32(mean)))
        self.register_buffer("scale", torch.from_numpy(np.float32(1 / histcode.divisor(mean, sd))))
        self.layers = nn.Sequential()
        width = len(mean)
        for wide in embed:
            self.layers.extend([nn.Linear(width, wide), nn.ReLU()])
            width = wide
        self.head = network_of(pooling, width, outputs, hidden)

    def forward(self, h, mask):
        return self.head(self.layers((h.float() - self.mean) * self.scale), mask)
