"""Does contrastive learning learn? Drawn pictures of known classes, a network of four layers.

What fails here in minutes is a defect, not a lack of budget. Twelve classes, shapes x textures, in
colours that vary as stains do; accuracy of a linear probe before and after the same steps.
"""

import copy
import itertools
import math
from functools import partial

import numpy as np
import torch
from torch import nn

import histcode
from lab.ridge import ridge

PX = 32  # edge of a picture and of a view
SHAPES = ("disc", "square", "triangle", "cross")
TEXTURES = ("plain", "stripes", "checks")
PICTURES, TESTED = 2304, 2000  # that teach, that are told apart
BATCH, STEPS = 64, 200
RATE = histcode.LEARNING_RATE * BATCH / histcode.BATCH  # as pretrain has it
LAYERS = ((3, 24, 2), (24, 48, 2), (48, 96, 1), (96, 96, 1))  # channels in, out, stride
NEGATIVES = PICTURES // 5  # as --bank-percent has it
PENALTY = 10.0  # of the probe on standardised features


def inside(shape, dx, dy, r):
    """Where a shape of size r is, of places that lie (dx, dy) from its middle."""
    far = np.maximum(abs(dx), abs(dy))
    if shape == "disc":
        return dx**2 + dy**2 < r**2
    if shape == "square":
        return far < 0.88 * r
    if shape == "triangle":
        return (abs(dy) < 0.9 * r) & (abs(dx) < 0.6 * (dy + 0.9 * r))
    return ((abs(dx) < 0.38 * r) | (abs(dy) < 0.38 * r)) & (far < 1.05 * r)


def texture_of(texture, i, j, rng):
    """Light and dark, -1 to 1, at rows i and columns j; in stripes along either axis."""
    if texture == "plain":
        return np.zeros(i.shape)
    frequency = 2 * np.pi / rng.uniform(3.5, 5)
    phases = rng.uniform(0, 2 * np.pi, 2)
    across, down = (np.sign(np.sin(frequency * x + p)) for x, p in zip((j, i), phases, strict=True))
    if texture == "checks":
        return across * down
    return across if rng.random() < 0.5 else down


def draw_shapes(n, seed):
    """Pictures (n, PX, PX, 3) uint8, purple on pink, and their classes (n,)."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, len(SHAPES) * len(TEXTURES), n)
    i, j = np.mgrid[:PX, :PX].astype(float)
    pictures = np.empty((n, PX, PX, 3), np.uint8)
    for picture, kind in zip(pictures, classes, strict=True):
        shape, texture = divmod(kind, len(TEXTURES))
        x, y = rng.uniform(11, 21, 2)
        there = inside(SHAPES[shape], j - x, i - y, rng.uniform(7, 10.5))
        light = 35 * texture_of(TEXTURES[texture], i, j, rng)
        purple = np.array([110, 70, 150]) + rng.normal(0, 12, 3)
        pink = np.array([225, 170, 200]) + rng.normal(0, 12, 3)
        colour = np.where(there[..., None], purple + light[..., None], pink)
        picture[:] = (colour + rng.normal(0, 8, colour.shape)).clip(0, 255)
    return torch.from_numpy(pictures), classes


class Small(nn.Module):
    """Four layers: pictures (B, 3, PX, PX) -> features (B, n_features)."""

    n_features = LAYERS[-1][1]

    def __init__(self):
        super().__init__()
        layers = []
        for before, after, stride in LAYERS:
            convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).mean((2, 3))


@torch.no_grad()
def features(encoder, pictures):
    parts = pictures.permute(0, 3, 1, 2).split(256)
    return torch.cat([encoder(histcode.standardise(x / 255)) for x in parts]).double().numpy()


def accuracy(encoder, taught, tested):
    """Of a linear probe on frozen features, its BatchNorm by the statistics of plain pictures."""
    encoder = copy.deepcopy(encoder).train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    features(encoder, taught[0])
    encoder.eval()
    x, new = (features(encoder, pictures) for pictures, _ in (taught, tested))
    one_hot = np.eye(taught[1].max() + 1)[taught[1]]
    weights, bias = ridge(x, one_hot, [PENALTY])
    answers = new @ weights[0] + bias[0]
    return float((answers.argmax(1) == tested[1]).mean())


def views_of(pictures, seed, steps, epoch):
    """Both views of each batch of an epoch, from 1 on, of so many steps."""
    a_round = len(pictures) // BATCH
    for step in range((epoch - 1) * steps, epoch * steps):
        turn, i = divmod(step, a_round)
        order = np.random.default_rng([seed, turn]).permutation(len(pictures))
        some = pictures[order[i * BATCH : (i + 1) * BATCH]]
        yield histcode.two_views(some, PX, seed, 1, step)


def embedder(seed):
    torch.manual_seed(seed)
    return histcode.Embedder(Small())


def bank(start="random", K=NEGATIVES, **options):
    """A bank of K random negatives, or of the keys of the untrained network."""

    def negatives(model, views, seed):
        if start == "random":
            return histcode.Bank(histcode.random_bank(K, seed=seed), **options)
        some = itertools.islice(views(1), math.ceil(K / BATCH))
        return histcode.Bank(histcode.first_bank(model, (x for x, _ in some), K), **options)

    return negatives


def others(model, views, seed):
    """SimCLR's negatives."""
    return histcode.OtherTiles()


def learn(pictures, seed, negatives, steps=STEPS, epochs=1, lr=RATE, **options):
    """Train from the start of this seed -> (model, the last state)."""
    model = embedder(seed)
    views = partial(views_of, pictures, seed, steps // epochs)
    played = negatives(model, views, seed)
    for state in histcode.pretrain_epochs(model, views, played, epochs=epochs, lr=lr, **options):
        last = state
    return model, last


PLAIN = {"momentum": 0, "weight_decay": 0}  # eq. 4 as printed
CODE = {"step_tau": 0.02, "rate": 0.3, "fill": True}
ARMS = {  # name: (negatives, options of pretrain_epochs)
    "SimCLR": (others, {}),
    "AdCo, the defaults": (bank(), {}),
    "- the paper to the letter": (bank("keys", in_batch=False, **PLAIN), {}),
    "- without the other tiles' keys": (bank(in_batch=False), {}),
    "- bank of untrained keys": (bank("keys"), {}),
    "- bank filled while training": (bank(fill=True), {}),
    "- keys by a slow copy, .99": (bank(), {"momentum_encoder": 0.99}),
    "- keys by a slow copy, .9, symmetric": (bank(), {"momentum_encoder": 0.9, "symmetric": True}),
    "- temperature .02 of the bank's step": (bank(step_tau=0.02), {}),
    "- rate 3 for all sizes, and .02": (bank(step_tau=0.02, rate=3.0), {}),
    "- 4,096 negatives": (bank(K=4096), {}),
    "- one negative that stays": (bank(K=1, rate=0.0), {}),
    "- rate .03 of the encoder": (bank(), {"lr": 0.03}),
    "SimCLR at .03": (others, {"lr": 0.03}),
    "- the code's bank and slow copy": (bank(**CODE), {"momentum_encoder": 0.999}),
    "- and its rate .001, falling": (
        bank(**CODE),
        {"momentum_encoder": 0.999, "lr": 0.001, "final_lr": 0.0006, "epochs": 10},
    ),
}


def digits():
    """scikit-learn's hand-written digits (1,797 of 8 x 8 px), as pictures; None without it."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return None
    found = load_digits()
    grey = torch.from_numpy(found.images)[:, None].float()
    large = nn.functional.interpolate(grey, PX, mode="bilinear").clamp(0, 16) * 15.9
    pictures = large.byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    return (pictures[:1200], found.target[:1200]), (pictures[1200:], found.target[1200:])


def table(seeds=3, steps=STEPS):
    """Yield the rows of the table: accuracies over the seeds, the mean of the last spreads."""
    known = {"shapes": (draw_shapes(PICTURES, 0), draw_shapes(TESTED, 1))}
    pictures = digits()
    if pictures is not None:
        known["digits"] = pictures
    yield f"| what, {steps} steps of {BATCH} |" + "".join(f" {name} | spread |" for name in known)
    yield "| --- |" + " --- | --- |" * len(known)
    yield row_of("start", accuracies(known, lambda _, seed: (embedder(seed), None), seeds))
    for name, (negatives, options) in ARMS.items():
        trained = partial(learn, negatives=negatives, steps=steps, **options)
        yield row_of(name, accuracies(known, trained, seeds))


def accuracies(known, train, seeds):
    """[(accuracies, last spreads) of each set of pictures]; train(pictures, seed=)."""
    found = []
    for taught, tested in known.values():
        right, spreads = [], []
        for seed in range(seeds):
            model, state = train(taught[0], seed=seed)
            right.append(accuracy(model.encoder, taught, tested))
            spreads.append(state["spread"] if state else math.nan)
        found.append((right, spreads))
    return found


def row_of(name, found):
    cells = []
    for right, spreads in found:
        apart = "" if math.isnan(spreads[0]) else f"{np.mean(spreads):.2f}"
        cells += [f"{np.mean(right):.3f} ± {np.std(right, ddof=1):.3f}", apart]
    return f"| {name} | " + " | ".join(cells) + " |"
