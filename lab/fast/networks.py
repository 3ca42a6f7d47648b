"""lab.fast.networks"""

import math

import numpy as np
import torch

MSI_RATE = 1e-3  # Adam                                     [HE2RNA code]


MSI_BLOCK = {
    "cpu": 2**19,
    "cuda": 2**28,
}  # parameters trained at a time, at least one network [ours]: a CPU's cache
#   holds them and Adam's moments; 90 direct classifiers take 12.7 s by ones, 14.1 by twos, 17.6 by fours


# Hospital A, hospital B: MSI from few patients  [HE2RNA Results, MSI status prediction; Methods, MSI status; Fig. 5]
# M small networks of one shape as one network with a leading model dimension: weights a list of (M, in, out), biases of
# (M, 1, out). Gradients by hand, three products a layer, into buffers that stay: a graph and an optimiser for each network
# would cost more than its arithmetic. [ours]
ACTIVATION = {"sigmoid": torch.sigmoid, "relu": torch.relu, "linear": lambda z: z}


SLOPE = {
    "sigmoid": lambda h: h * (1 - h),
    "relu": lambda h: (h > 0).to(h),
}  # of the activation, from its value


def draw_networks(sizes, seeds, device="cpu"):
    """Networks each drawn from its own seed, uniform within 1 / sqrt(in) as torch's Linear [ours] -> (weights, biases, all).

    weights and biases, and their .grad, are views into one tensor of all parameters and its .grad: one for the optimiser.
    """
    shapes = [(len(seeds), a, b) for a, b in zip(sizes, sizes[1:])] + [
        (len(seeds), 1, b) for b in sizes[1:]
    ]
    every = torch.empty(sum(map(math.prod, shapes)))
    views = lambda flat: [
        v.view(shape) for v, shape in zip(flat.split(list(map(math.prod, shapes))), shapes)
    ]
    drawn, n = views(every), len(sizes) - 1
    for m, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for w, b in zip(drawn[:n], drawn[n:]):
            for p in (w, b):
                p[m].uniform_(-(w.shape[1] ** -0.5), w.shape[1] ** -0.5, generator=generator)
    every = every.to(device)
    every.grad = torch.zeros_like(every)
    for p, grad in zip(parameters := views(every), views(every.grad)):
        p.grad = grad
    return parameters[:n], parameters[n:], every


def layers_of(weights, biases, activations, x):
    """x (M, n, D) and the output (M, n, width) of every layer after it: a list."""
    out = [x]
    for w, b, name in zip(weights, biases, activations):
        out.append(ACTIVATION[name](torch.baddbmm(b, out[-1], w)))
    return out


def write_gradients(weights, biases, activations, x, target, share):
    """d/dw of the sum over rows of share x loss, into .grad. x (M, b, D), target (M, b, K), share (M, b, 1).

    The loss is cross-entropy after a last sigmoid, half the squared error after a linear layer: d loss / d z = output -
    target in both.
    """
    out = layers_of(weights, biases, activations, x)
    delta = (out[-1] - target) * share  # (M, b, K)
    for l in reversed(range(len(weights))):
        torch.bmm(out[l].mT, delta, out=weights[l].grad)
        torch.sum(delta, 1, keepdim=True, out=biases[l].grad)
        if l:
            delta = torch.bmm(delta, weights[l].mT) * SLOPE[activations[l - 1]](out[l])


def train_networks(pool, sizes, activations, inputs, trains, seeds, epochs, batch, device, take):
    """Train networks of one shape, each from its own seed, on its own rows, in its own order: as one after another.

    inputs(m) -> (x (n, D), target (n, K)) of network m, of which rows trains[m] are learned from, in mini-batches drawn
    anew each epoch (the last one smaller); Adam. Yields (m, take(outputs of its layers for all rows, [(n, width)])).
    The networks of a block make as many steps an epoch; rows beyond a network's own count nothing. pool: its threads train
    a block each, on a core each, so that no core waits for another and results don't depend on their number. [ours]
    """
    steps = np.array([-(-len(rows) // batch) for rows in trains])
    size = max(1, MSI_BLOCK[device.type] // sum((a + 1) * b for a, b in zip(sizes, sizes[1:])))

    def train_block(block):
        n, longest = [len(trains[m]) for m in block], max(len(trains[m]) for m in block)
        x, target = (
            torch.zeros(len(block), longest, sizes[0]),
            torch.zeros(len(block), longest, sizes[-1]),
        )
        share = torch.zeros(len(block), longest, 1)  # of a row in its mini-batch's mean
        for j, m in enumerate(block):
            x[j, : n[j]], target[j, : n[j]] = (torch.from_numpy(v[trains[m]]) for v in inputs(m))
            for s in range(0, n[j], batch):
                share[j, s : min(s + batch, n[j])] = 1 / (min(s + batch, n[j]) - s)
        share *= (
            1 if activations[-1] == "sigmoid" else 2 / sizes[-1]
        )  # the mean of squares, not half their sum
        x, target, share = (
            x.flatten(0, 1).to(device),
            target.flatten(0, 1).to(device),
            share.to(device),
        )
        weights, biases, every = draw_networks(sizes, [seeds[m] for m in block], device)
        optimizer = torch.optim.Adam(
            [every], lr=MSI_RATE, fused=True
        )  # one pass over memory, not seven
        draws, rows = (
            [np.random.default_rng(seeds[m]) for m in block],
            np.zeros((len(block), longest), int),
        )
        for _ in range(epochs):
            for j, draw in enumerate(draws):
                rows[j, : n[j]] = draw.permutation(n[j]) + j * longest
            order = torch.from_numpy(rows).to(device)
            for part in zip(
                *(v.split(batch, 1) for v in (x[order], target[order], share))
            ):  # (M, b, ...)
                write_gradients(weights, biases, activations, *part)
                optimizer.step()
        done = []
        for j, m in enumerate(block):
            own = torch.from_numpy(inputs(m)[0])[None].to(device)
            layers = layers_of(
                *([p[j : j + 1] for p in part] for part in (weights, biases)), activations, own
            )[1:]
            done.append((m, take([out[0].cpu().numpy() for out in layers])))
        return done

    alike = [np.flatnonzero(steps == s).tolist() for s in np.unique(steps)]
    jobs = [
        pool.submit(train_block, members[i : i + size])
        for members in alike
        for i in range(0, len(members), size)
    ]
    return (pair for job in jobs for pair in job.result())
