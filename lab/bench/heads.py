"""Many networks at once and one by one, by the plain forms of the method: heads, MSI, genes."""

import argparse
from functools import partial

import numpy as np
import torch
from torch import nn

import he2rna
import histcode
from lab.bench.timing import say, side_by_side
from lab.fast import networks as fast_networks
from lab.histcode.expression import gene_blocks, networks_at_once, targets
from lab.histcode.heads import train_heads
from lab.histcode.networks import SlideModel

CPU = torch.device("cpu")
ERROR = histcode.squared_error
PLAIN = 4  # networks that are trained one by one; the time of all is reckoned from theirs


def bench_heads():
    bench_musk()
    bench_msi((256, *he2rna.MSI_CLASSIFIER[1:], 1), 90, epochs=10)
    bench_msi((2048, *he2rna.MSI_CLASSIFIER, 1), 90, epochs=2)
    bench_genes()


def say_pair(what, many, ours, plain):
    pair = side_by_side(ours, plain, repeats=3)
    share = many / PLAIN
    say(
        f"{what}, {many} networks: {pair.ours:.2f} s, one by one {pair.direct * share:.2f} s "
        f"(from {PLAIN}): {pair.times * share:.1f} times"
    )


def bench_musk(many=50, epochs=2):
    """Gated attention behind a layer on bags as MUSK1's: 92 of 2 to 40 instances x 166."""
    rng = np.random.default_rng(0)
    sizes = (2 + rng.geometric(1 / 3.2, 92)).clip(max=40)
    bags = [rng.normal(size=(n, 166)).astype(np.float32) for n in sizes]
    y = torch.arange(92) % 2
    parts = []
    for _ in range(many):
        rows = rng.permutation(92)
        parts.append((rows[:74], rows[74:83], rows[83:]))
    o = argparse.Namespace(epochs=epochs, batch=1, lr=5e-4, weight_decay=5e-3)

    def models(n):
        return [SlideModel("HistCode", np.zeros(166), np.ones(166), 2, (64,), 64) for _ in range(n)]

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
            train_plain(model, bags, y, part, vars(o))

    say_pair("heads on MUSK1", many, ours, plain)


def train_plain(model, bags, y, part, settings, **more):
    for _ in histcode.train_slide_epochs(model, bags, y, *part[:2], **settings, **more):
        pass


def bench_msi(sizes, many, epochs):
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


def bench_genes(genes=200):
    """A gated attention for each gene, all on the same slides: small bags, and large."""
    for slides, tiles, features, hidden in ((20, 50, 256, 64), (10, 300, 1024, 256)):
        rng = np.random.default_rng(0)
        bags = [rng.normal(size=(tiles, features)).astype(np.float32) for _ in range(slides)]
        y = rng.normal(size=(slides, genes)).astype(np.float32)
        rows = np.arange(slides)
        part = rows[: slides * 4 // 5], rows[slides * 4 // 5 :], rows[:0]
        o = argparse.Namespace(epochs=2, batch=1, lr=1e-4, weight_decay=1e-5)
        o.pooling, o.embed, o.hidden = "attention", (), hidden
        table = {"n_features": features, "sums": [(tiles,)] * slides}
        at_once = networks_at_once(table, o)
        stats = np.zeros(features), np.ones(features)
        network = partial(SlideModel, "HistCode", *stats, 1, (), hidden)

        def ours(bags=bags, y=y, part=part, o=o, network=network, at_once=at_once):
            for block in gene_blocks(genes, 0, at_once):
                models = [network() for _ in block]
                wanted = targets(y[:, block], True)
                train_heads(models, bags.__getitem__, wanted, ERROR, [part], [0], o, CPU)

        def plain(bags=bags, y=y, part=part, o=o, network=network):
            settings = {name: vars(o)[name] for name in ("epochs", "batch", "lr", "weight_decay")}
            for gene in range(PLAIN):
                own = torch.from_numpy(y[:, [gene]])
                train_plain(network(), bags, own, part, settings, loss=ERROR, judge=ERROR)

        what = f"attention a gene, {tiles} tiles x {features:,}, {hidden} rows, {at_once} at once"
        say_pair(what, genes, ours, plain)
