"""What the tests of HistCode share: bags, cohorts of tumour and normal slides, and runs on them."""

import argparse
import re
from unittest import mock

import h5py
import numpy as np
import torch
import torch.nn.functional as F

import histcode
from lab.files import read_rows, save_csv
from lab.tests.helpers import options, tile_cloud

GENES = "CD3D,CD3E,MKI67,ACTB,ZG16,COL1A1"  # of a simulated cohort
TINY = [
    "--tile-px",
    "36",
    "--view-px",
    "32",
    "--batch",
    "8",
    "--tiles-per-slide",
    "2",
    "--lr",
    ".03",
    "--device",
    "cpu",
    "--precision",
    "float32",
]


def main(*argv):
    from lab.commands.histcode import main

    return main([str(word) for word in argv])


# ----- Views --------------------------------------------------------------------------------------


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_view(n, **changed):
    """The view that is the whole tile as it is, but for what is changed."""
    view = {
        "box": torch.tensor([[0.0, 0, 1, 1]]).repeat(n, 1),
        "turns": torch.zeros(n, 3, dtype=torch.bool),
        "colour": torch.tensor([histcode.PLAIN_COLOUR]).repeat(n, 1),
        "grey": torch.zeros(n, dtype=torch.bool),
        "sigma": torch.zeros(n),
    }
    return {**view, **changed}


def random_views(epoch, steps=3, n=8):
    """Two noisy copies of random tiles."""
    g = seeded(epoch)
    for _ in range(steps):
        x = torch.randn(n, 3, 4, 4, generator=g)
        yield tuple(x + 0.3 * torch.randn(x.shape, generator=g) for _ in range(2))


# ----- Embeddings ---------------------------------------------------------------------------------


def unit_rows(n, d, seed, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, generator=seeded(seed), dtype=dtype), dim=1)


class Pixels(torch.nn.Module):
    """An encoder small enough to be trained by hand: a linear layer on the pixels."""

    n_features = 6

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 4 * 4, 6)

    def forward(self, x):
        return self.layer(x.flatten(1))


def small_embedder():
    torch.manual_seed(0)
    return histcode.Embedder(Pixels(), d=5)


# ----- Pretraining --------------------------------------------------------------------------------


def pretrain(cohort, *argv):
    """Without its picture, which takes longer than such a run."""
    with mock.patch("lab.histcode.pretraining.draw"):
        return drawn_pretrain(cohort, *argv)


def drawn_pretrain(cohort, *argv):
    return main("pretrain", cohort, "--weights", cohort / "start.pth", *TINY, *argv)


def data_of(cohort, px=36, colour="none"):
    from lab.histcode.tiles import find_data, slides_of

    o = options("--workers", "2", "--colour", colour)
    o.tile_px = px
    return find_data(cohort, slides_of(cohort), o)[0]


def ridge_at(x, y, penalties, new):
    from lab.ridge import ridge

    weights, bias = ridge(x, y, penalties)
    return new @ weights + bias[:, None]


# ----- Bags ---------------------------------------------------------------------------------------


def ragged(sizes, d=7, seed=0):
    """Bags of these sizes, padded with nan: h (B, T, d), mask (B, T)."""
    h = torch.full((len(sizes), max(sizes), d), torch.nan)
    mask = torch.zeros(len(sizes), max(sizes), dtype=torch.bool)
    for b, n in enumerate(sizes):
        h[b, :n] = torch.randn(n, d, generator=seeded(seed + b))
        mask[b, :n] = True
    return h, mask


def drawn_network(name, d=7):
    from lab.histcode.networks import network_of

    torch.manual_seed(0)
    return network_of(name, d)


def planted_bags(n=24, d=6, seed=0, shift=3.0):
    """n bags of 2 to 9 instances, y: in class 1 the first instance is shifted in feature 0."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    bags = [rng.normal(size=(2 + i % 8, d)).astype(np.float32) for i in range(n)]
    for bag, label in zip(bags, y, strict=True):
        bag[0, 0] += shift * label
    return bags, y


def three_splits(n=24):
    order = np.random.default_rng(1).permutation(n)
    splits = []
    for i in range(3):
        rolled = np.roll(order, 7 * i)
        splits.append((rolled[:16], rolled[16 : 20 - i % 2], rolled[20:]))
    return splits


def some_networks(name, bags, splits, seeds, embed=()):
    from lab.histcode.heads import mean_and_sd, sums_of
    from lab.histcode.networks import SlideModel

    models, sums = [], [sums_of(bag) for bag in bags]
    for (train, _, _), seed in zip(splits, seeds, strict=True):
        torch.manual_seed(seed)
        models.append(SlideModel(name, *mean_and_sd(sums, train), 2, embed, 8))
    return models


def learn(name, bags, y, splits, seeds, epochs=3, batch=2, lr=1e-2, **more):
    """What a network of each split has learned: a list of dicts."""
    from lab.histcode.heads import train_heads

    o = argparse.Namespace(lr=lr, weight_decay=1e-4, epochs=epochs, batch=batch)
    done = train_heads(
        some_networks(name, bags, splits, seeds),
        bags.__getitem__,
        lambda rows: torch.from_numpy(y[rows]),
        histcode.cross_entropy,
        splits,
        seeds,
        o,
        torch.device("cpu"),
        **more,
    )
    learned = []
    for m in range(len(splits)):
        learned.append(
            {
                "model": {k: v[m] for k, v in done["model"].items()},
                "epoch": int(done["epochs"][m]),
                "losses": done["losses"][:, m],
                "tests": done["tests"][m],
            }
        )
    return learned


def write_bag_table(path, n=30, header=False, **change):
    """A multiple-instance table: label, bag, features. -> its rows"""
    bags, y = planted_bags(n, shift=6.0)
    rows = []
    for i, bag in enumerate(bags):
        for instance in bag:
            rows.append([str(y[i]), f"b{i}", *(f"{v:.4f}" for v in instance)])
    lines = [",".join(row) for row in rows]
    if header:
        lines.insert(0, "label,bag,a,b,c,d,e,f")
    path.write_text("\n".join(lines) + "\n")
    return rows


# ----- Diagnosis ----------------------------------------------------------------------------------


def write_slides(folder, patients=12, prefix="p", labels=("0", "1"), d=8, seed=0, extra=""):
    """A cohort of .h5 features; tumour slides have a few shifted tiles.

    Every third patient has a normal slide too.
    """
    (folder / "h5").mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), ["slide,patient,project,tumor"]
    for p in range(patients):
        for label in [0, 1] if p % 3 == 2 else [p % 2]:
            x = rng.normal(size=(12 + p % 5, d))
            x[:3, 0] += 6 * label
            name = f"{prefix}{p:02d}_{label}"
            with h5py.File(folder / "h5" / f"{name}.h5", "w") as h:
                h["features"] = x.astype(np.float16)
                h["coords"] = tile_cloud(len(x), p)
            rows.append(f"{name},{prefix}{p:02d},X,{labels[label]}")
    (folder / "samples.csv").write_text("\n".join(rows) + "\n" + extra)
    return folder


def diagnose(cohort, *argv):
    usual = "--epochs 4 --lr 0.01 --hidden 8 --device cpu --folds 6"
    return main("diagnose", cohort, "--features", cohort / "h5", *usual.split(), *argv)


def section(run):
    """What a report says at its top and under What saw whom."""
    text = (run / "report.md").read_text()
    top = text.split("\n## ")[0].split("\n| ")[0]
    ledger = text.split("## What saw whom")[1].split("\n## ")[0]
    return top, ledger


def opening_of(report):
    """The five sentences that a report opens with."""
    said = dict(re.findall(r"^- \*\*(.*)\.\*\* (.*)$", report, re.M))
    assert list(said) == ["Asked", "Patients", "Found", "Null", "Not to be concluded"]
    return said


# ----- Differential expression --------------------------------------------------------------------

MODELS = {
    "linear": [],
    "ridge": ["--ridge", "auto"],
    "joint": ["--model", "attention"],
    "mean": ["--model", "attention", "--pooling", "mean"],
    "max": ["--model", "attention", "--pooling", "max", "--embed", "5"],
    "per-gene": [
        *("--model", "attention", "--per-gene", "--genes", "UP0,NO0,HALF"),
        *("--decoys", "0"),  # which take the time of so many genes
    ],
}


def write_pairs(folder, patients=9, d=8, seed=0, normals=2):
    """A cohort of .h5 features with tumour and normal expression of each patient -> folder.

    `normals` of three patients have a normal slide too. UP0 to UP2: their fold change follows
    feature 1 of the tumour slide. NO0, NO1: noise. HALF: unknown in two pairs. OFF: nothing in most
    normal samples. SAME: one fold change for all. Feature 0: tumour tiles.
    """
    (folder / "h5").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    slides, rows = ["slide,patient,project,sample,tumor"], []
    genes = ["UP0", "UP1", "UP2", "NO0", "NO1", "HALF", "OFF", "SAME"]
    for p in range(patients):
        who, content = f"TCGA-AA-{p:04d}", rng.normal()
        for label in (1, 0)[: 1 + (p % 3 < normals)]:
            x = rng.normal(size=(9 + p % 4, d))
            x[:4, 0] += 6 * label
            x[:, 1] += 2 * content * label
            with h5py.File(folder / "h5" / f"s{p}_{label}.h5", "w") as h:
                h["features"] = x.astype(np.float16)
                h["coords"] = tile_cloud(len(x), p)
            slides.append(f"s{p}_{label},{who},X,{who}-{'01A' if label else '11A'},{label}")
        up = np.exp(np.r_[content + rng.normal(0, 0.1, 3), rng.normal(0, 1.5, 3)])
        normal = np.r_[np.exp(rng.normal(0, 0.5, 6)), p < 3, 2]
        normal[5] *= p > 1
        rows.append([f"{who}-01A", *(up * np.maximum(normal[:6], 0.5)), 1 + p, 4])
        rows.append([f"{who}-11A", *np.maximum(normal[:5], 0.5), *normal[5:]])
    (folder / "samples.csv").write_text("\n".join(slides) + "\n")
    table = ([name, *(f"{1000 * v:.6g}" for v in values)] for name, *values in rows)
    save_csv(folder / "expression.csv", ("sample", *genes), table)
    return folder


def change_table(path, change):
    header, rows = read_rows(path)
    save_csv(path, header, change(rows))


def express(cohort, *argv):
    usual = "--epochs 3 --lr 0.01 --hidden 4 --device cpu --folds 3"
    return main("expression", cohort, "--features", cohort / "h5", *usual.split(), *argv)


def folds_in(run):
    from lab.runs import load_checkpoint

    return [load_checkpoint(path, "cpu") for path in sorted(run.glob("fold*.pt"))]


def tiles_in(cohort, slide):
    from lab.cohort.features import load_features

    return load_features(cohort, (cohort / "h5").resolve(), slide)[0]


def spoken_by_hand(saved, h):
    """Output of each gene (G,) for a bag h (T, D), and attention (M, T), of a fold's checkpoint.

    By `SlideModel`, one network after another, and NumPy.
    """
    from lab.histcode.networks import SlideModel

    out, attention = [], []
    for m in range(len(next(iter(saved["model"].values())))):
        D = h.shape[1]
        shape = (saved[k] for k in ("outputs", "embed", "hidden"))
        model = SlideModel(saved["pooling"], np.zeros(D), np.ones(D), *shape)
        model.load_state_dict({k: v[m] for k, v in saved["model"].items()})
        with torch.no_grad():
            got, a = model(torch.from_numpy(h)[None], torch.ones(1, len(h), dtype=torch.bool))
        out.append(got[0, -1].double().numpy())
        attention.append(a[0].double().numpy())
    if saved["kind"] != "linear":
        return np.concatenate(out), np.stack(attention)
    order = sorted(range(len(h)), key=lambda i: (-a[0, i].item(), i))
    n = min(histcode.ENDS, len(h) // 2)
    ends = [h[order[:n]], h[order[len(h) - n :]]]
    x = np.concatenate([end.mean(0, dtype=np.float64) for end in ends])
    y = x @ saved["weights"].double().numpy() + saved["bias"].double().numpy()
    return y, np.stack(attention)


# ----- Drawn slides -------------------------------------------------------------------------------


def drawn_run(command, cohort, *argv):
    usual = "--tile-um 25 --epochs 2 --lr 0.01 --hidden 4 --folds 3 --device cpu"
    return main(command, cohort, *usual.split(), *argv)


def gmt_of(cohort):
    path = cohort.parent / "sets.gmt"
    path.write_text("T cells\tx\tCD3D\tCD3E\nproliferation\tx\tMKI67\n")
    return path


def maps_of(cohort, run, *argv):
    return main("heatmap", cohort / "runs" / run, *argv, "--device", "cpu")
