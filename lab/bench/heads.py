"""Many networks at once and one by one, by the plain forms of the method: heads, MSI, genes."""

import argparse
from functools import partial

import numpy as np
import torch
from torch import nn

import he2rna
import histcode
from lab.bench.peers import bags_of
from lab.bench.timing import say, side_by_side
from lab.fast import networks as fast_networks
from lab.histcode.bags import BAGS
from lab.histcode.expression import gene_blocks, networks_at_once, targets
from lab.histcode.heads import train_heads
from lab.histcode.networks import SlideModel

CPU = torch.device("cpu")
ERROR = histcode.squared_error
PLAIN = 4  # networks that are trained one by one; the time of all is reckoned from theirs


def bench_heads(bags=None):
    """bags: a table of label, bag, features, such as MUSK1; else bags are drawn."""
    bench_bags(*bags_of(bags))
    bench_msi((256, *he2rna.MSI_CLASSIFIER[1:], 1), 90)
    bench_msi((2048, *he2rna.MSI_CLASSIFIER, 1), 90)
    bench_genes(20, 50, 256, 64)
    bench_genes(10, 300, 1024, 256)


def say_pair(what, many, ours, plain):
    pair = side_by_side(ours, plain, repeats=3)
    share = many / PLAIN
    say(
        f"{what}, {many} networks: {pair.ours:.2f} s, one by one {pair.direct * share:.2f} s "
        f"(from {PLAIN}): {pair.times * share:.1f} times"
    )


def bench_bags(bags, y, many=50, epochs=2):
    """Gated attention behind a layer: 80 % of the bags train, 10 % choose the epoch."""
    rng = np.random.default_rng(0)
    y = torch.from_numpy(y)
    parts = []
    for _ in range(many):
        rows = rng.permutation(len(y))
        parts.append(np.split(rows, [len(y) * 8 // 10, len(y) * 9 // 10]))
    o = argparse.Namespace(**{**BAGS, "epochs": epochs}, batch=1)
    settings = {name: vars(o)[name] for name in ("epochs", "batch", "lr", "weight_decay")}

    every = np.concatenate(bags)
    scale = every.mean(0), every.std(0)

    def models(n):
        return [SlideModel("HistCode", *scale, 2, o.embed, o.hidden) for _ in range(n)]

    ours = partial(
        train_heads,
        models(many),
        bags.__getitem__,
        y.__getitem__,
        histcode.cross_entropy,
        parts,
        range(many),
        o,
        CPU,
    )

    def plain():
        for model, part in zip(models(PLAIN), parts, strict=False):
            train_plain(model, bags, y, part, settings)

    say_pair(f"heads on {len(y)} bags x {every.shape[1]}", many, ours, plain)


def train_plain(model, bags, y, part, settings, **more):
    for _ in histcode.train_slide_epochs(model, bags, y, *part[:2], **settings, **more):
        pass


def bench_msi(sizes, many, epochs=10):
    """MSI classifiers of 73 slides."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(110, sizes[0])).astype(np.float32)
    label = (rng.random((110, 1)) < 0.15).astype(np.float32)
    recipe = he2rna.Recipe(2, sizes, (nn.Sigmoid,) * (len(sizes) - 1), epochs, he2rna.MSI_BATCH)
    lessons = []
    for seed in range(many):
        lessons.append(he2rna.Lesson(x, label, rng.permutation(110)[:73], np.arange(110), seed))

    def ours():
        with fast_networks.threads(CPU) as pool:
            list(fast_networks.train_networks(recipe, lessons, pool, CPU))

    def plain():
        list(he2rna.train_networks(recipe, lessons[:PLAIN]))

    say_pair(f"MSI classifiers on {sizes[0]:,} numbers", many, ours, plain)


def bench_genes(slides, tiles, features, hidden, genes=200):
    """A gated attention for each gene, all on the same slides, as histcode.py expression does."""
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(tiles, features)).astype(np.float32) for _ in range(slides)]
    y = rng.normal(size=(slides, genes)).astype(np.float32)
    part = np.split(np.arange(slides), [slides * 4 // 5, slides])
    settings = {"epochs": 2, "batch": 1, "lr": 1e-4, "weight_decay": 1e-5}
    o = argparse.Namespace(**settings, pooling="attention", embed=(), hidden=hidden)
    at_once = networks_at_once({"n_features": features, "sums": [(tiles,)]}, o)
    scale = np.zeros(features), np.ones(features)
    network = partial(SlideModel, "HistCode", *scale, 1, (), hidden)

    def ours():
        for block in gene_blocks(genes, 0, at_once):
            models = [network() for _ in block]
            wanted = targets(y[:, block], True)
            train_heads(models, bags.__getitem__, wanted, ERROR, [part], [0], o, CPU)

    def plain():
        for gene in range(PLAIN):
            own = torch.from_numpy(y[:, [gene]])
            train_plain(network(), bags, own, part, settings, loss=ERROR, judge=ERROR)

    what = f"attention a gene, {tiles} tiles x {features:,}, {hidden} rows, {at_once} at once"
    say_pair(what, genes, ours, plain)
