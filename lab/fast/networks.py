"""Many small networks trained at once: the exact twin of he2rna.train_networks.

M networks of one shape are one network with a leading model dimension. Its gradients are written
by hand into buffers that stay: a graph for each would cost more than its arithmetic. [ours]
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import he2rna
from lab.fast.products import product

# Parameters trained at a time, at least those of one network. [ours] On a CPU its cache holds them
# and Adam's moments: 90 direct classifiers take 12.7 s by ones, 14.1 by twos, 17.6 by fours.
BLOCK = {"cpu": 2**19, "cuda": 2**28}
SLOPES = {  # of a hidden layer's activation, from its value
    nn.Identity: lambda value: 1,
    nn.Sigmoid: lambda value: value * (1 - value),
    nn.ReLU: lambda value: (value > 0).to(value),
}


class Networks:
    """M networks of one recipe, each drawn from its own seed."""

    def __init__(self, recipe, seeds, device):
        shape = recipe.sizes, recipe.activations
        drawn = [he2rna.draw_network(*shape, seed, recipe.keras) for seed in seeds]
        self.activations = recipe.activations
        self.weights = []  # (M, in, out) of each layer
        self.biases = []  # (M, 1, out)
        for position in range(0, len(drawn[0]), 2):
            layers = [model[position] for model in drawn]
            weights = torch.stack([layer.weight.detach().T for layer in layers])
            biases = torch.stack([layer.bias.detach() for layer in layers])
            self.weights.append(weights.to(device))
            self.biases.append(biases[:, None].to(device))
        self.parameters = [*self.weights, *self.biases]
        for p in self.parameters:
            p.grad = torch.empty_like(p)

    def outputs(self, x):
        """x (M, n, D) -> x itself and the output (M, n, width) of every layer."""
        values = [x]
        for w, b, activation in zip(self.weights, self.biases, self.activations, strict=True):
            if len(w) == 1:
                z = product(values[-1][0], w[0], b[0, 0])[None]
            else:
                z = torch.baddbmm(b, values[-1], w)
            values.append(activation()(z))
        return values

    def write_gradients(self, x, target):
        """Of the losses of he2rna.fit: x (M, b, D), target (M, b, K)."""
        values = self.outputs(x)
        scale = 1 / x.shape[1]  # of d cross-entropy / d z, after a sigmoid
        if self.activations[-1] is nn.Identity:
            scale *= 2 / target.shape[2]  # of d mean squared error / d z
        delta = (values[-1] - target) * scale
        for layer in reversed(range(len(self.weights))):
            torch.bmm(values[layer].mT, delta, out=self.weights[layer].grad)
            torch.sum(delta, 1, keepdim=True, out=self.biases[layer].grad)
            if layer:
                delta = torch.bmm(delta, self.weights[layer].mT)
                delta *= SLOPES[self.activations[layer - 1]](values[layer])


def train_block(recipe, lessons, device):
    """Train networks of equally many rows -> (second layer, last layer) of each, for all slides."""
    every, x, target = [], [], []
    for lesson in lessons:
        own_x, own_target = lesson.arrays()
        every.append(own_x)
        x.append(own_x[lesson.rows])
        target.append(own_target[lesson.rows])
    x, target = stacked(x).to(device), stacked(target).to(device)
    networks = Networks(recipe, [lesson.seed for lesson in lessons], device)
    optimizer = torch.optim.Adam(networks.parameters, he2rna.MSI_RATE, fused=True)
    draws = [np.random.default_rng(lesson.seed) for lesson in lessons]
    each = torch.arange(len(lessons))[:, None]
    for _ in range(recipe.epochs):
        order = stacked([draw.permutation(x.shape[1]) for draw in draws])
        for rows in order.split(recipe.batch, dim=1):
            networks.write_gradients(x[each, rows], target[each, rows])
            optimizer.step()
    values = networks.outputs(stacked(every).to(device))
    return list(zip(values[2].cpu().numpy(), values[-1].cpu().numpy(), strict=True))


def stacked(arrays):
    return torch.from_numpy(np.stack(arrays))


def train_networks(recipe, lessons, pool, device):
    """As he2rna.train_networks, in blocks of networks of equally many rows, a thread each.

    Results do not depend on the number of threads.
    """
    size = sum((n_in + 1) * n_out for n_in, n_out in pairwise(recipe.sizes))
    most = max(1, BLOCK[device.type] // size)
    alike, jobs = {}, {}
    for m, lesson in enumerate(lessons):
        alike.setdefault(len(lesson.rows), []).append(m)
    for members in alike.values():
        for i in range(0, len(members), most):
            block = members[i : i + most]
            job = pool.submit(train_block, recipe, [lessons[m] for m in block], device)
            jobs.update({m: (job, place) for place, m in enumerate(block)})
    for _, (job, place) in sorted(jobs.items()):
        yield job.result()[place]


def threads(device):
    """A pool whose threads compute on one core each: as many as torch has, one beside a GPU."""
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    return ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
