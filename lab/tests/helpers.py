"""lab.tests.helpers"""

import argparse
import csv
import gzip
import importlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

import he2rna
import histcode
import lab.files as lab_files
import tiling
from lab.files import InputError, load_json, read_rows, save_csv, save_json, save_text
from lab.histcode.networks import SlideModel

ROOT = Path(__file__).parents[2]  # where the programs lie
REAL_DATA = os.environ.get("REAL_DATA", "")


# tiling.py
H_E = {
    "eosin": (225, 150, 185),
    "pale eosin": (238, 205, 220),
    "nuclei": (110, 75, 150),
    "red cells": (190, 85, 95),
}


def options(*argv):
    """Parsed options of a tiling command, as main() leaves them."""
    from lab.commands.slide_options import add_options

    parser = argparse.ArgumentParser()
    add_options(parser)
    o = parser.parse_args(["--device", "cpu", "--weights", "random", *argv])
    o.tile_seed, o.seed = o.seed, o.seed or 0
    return o


def painted(background=(243, 243, 243), light=None, noise=2.0, h=160, w=200):
    """A thumbnail with two pieces of tissue (pale and dark areas, JPEG-like noise); returns rgb, truth (h, w)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    truth = ((y - 70) ** 2 / 45**2 + (x - 60) ** 2 / 40**2 < 1) | (
        (abs(y - 110) < 30) & (abs(x - 150) < 30)
    )
    dye = (
        np.where((x // 7 + y // 5) % 3 == 0, 1, 0)[..., None]
        * np.subtract(H_E["nuclei"], H_E["eosin"])
        + H_E["eosin"]
    )
    dye = np.where(y[..., None] > 120, H_E["pale eosin"], dye) / 243.0
    rgb = np.where(truth[..., None], dye, 1) * np.array(background, float)
    rgb = rgb * (1 if light is None else light(x / w, y / h)[..., None]) + rng.normal(
        0, noise, (h, w, 3)
    )
    return rgb.clip(0, 255).astype(np.uint8), truth


def write_pyramid(path, rgb, mpp=0.5, levels=3):
    """A tiled pyramidal TIFF as scanners write them, by tifffile."""
    with tifffile.TiffWriter(path) as t:
        for i in range(levels):
            small = np.asarray(Image.fromarray(rgb).reduce(2**i)) if i else rgb
            t.write(
                small,
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                subfiletype=1 if i else 0,
                resolution=(1e4 / mpp / 2**i,) * 2 if mpp else (1, 1),
                resolutionunit="CENTIMETER" if mpp else "NONE",
                metadata=None,
            )


def random_resnet(stages=4):
    """With BatchNorm statistics as training leaves them, so that folding is put to the test."""
    torch.manual_seed(0)
    net = tiling.ResNet50(stages).eval()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1), m.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(m.weight, 0.3, 0.9), torch.nn.init.normal_(m.bias, 0, 0.1)
    return net


def relative(a, b):
    return float(
        np.linalg.norm(np.asarray(a, float) - np.asarray(b, float))
        / np.linalg.norm(np.asarray(b, float))
    )


def inertia(points, centers):
    return (((points[:, None] - centers[None]) ** 2).sum(2).min(1)).sum()


def tile_cloud(n, seed=0):
    """n tile positions of an irregular piece of tissue."""
    rng = np.random.default_rng(seed)
    side = int((n * 3) ** 0.5) + 4
    y, x = np.nonzero(ndimage.gaussian_filter(rng.random((side, side)), side / 12) > 0.5)
    keep = np.sort(rng.permutation(len(x))[:n])
    return np.stack([x[keep], y[keep]], 1) * 448


def folder_bytes(folder, ending=""):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).rglob("*" + ending)) if p.is_file()}


def fill_disk(monkeypatch, at):
    """The disk is full at the `at`-th file written: the kernel says so, by /dev/full. Returns the count of files begun."""
    count = [0]

    def full(path, mode="r", **more):
        count[0] += "b" in mode and mode != "rb"
        if mode != "wb" or count[0] != at:
            return open(path, mode, **more)
        open(path, mode).close()  # an empty file still has room
        return open("/dev/full", mode)

    monkeypatch.setattr(lab_files, "open", full, raising=False)
    return count


def status_of(capsys, *argv):
    """(exit status, lines on stderr) of a program's command as the shell sees them."""
    from lab.commands.options import run as options_run

    before = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        options_run(lambda: argv[0].main([str(a) for a in argv[1:]]))
    signal.signal(signal.SIGTERM, before)
    return e.value.code, capsys.readouterr().err.splitlines()


# Places from QuPath, slides in a larger frame, turned pictures. Authorities: matplotlib's outlines, what QuPath 0.3 to 0.6 write, Pillow, tifffile.
def feature(kind, coordinates, name=None, **properties):
    named = (
        dict(classification=name if isinstance(name, dict) else dict(name=name, color=[1, 2, 3]))
        if name
        else {}
    )
    return dict(
        type="Feature",
        id="6f7ab1",
        geometry=dict(type=kind, coordinates=coordinates),
        properties=dict(properties, **named),
    )


def real(*parts):
    path = Path(REAL_DATA, *parts)
    return path if REAL_DATA and path.exists() else pytest.skip("REAL_DATA is not set")


# Colour, tissue as HistCode's code finds it, encoders from files
STAIN_PAIRS = {
    name: np.array(pair) / np.linalg.norm(pair, axis=1, keepdims=True)
    for name, pair in (
        ("reference", tiling.REFERENCE),
        ("reddish", [[0.650, 0.704, 0.286], [0.21, 0.91, 0.35]]),
        ("bluish", [[0.75, 0.60, 0.28], [0.35, 0.83, 0.43]]),
    )
}


def stained(stains, strength=(1.0, 1.0), n=40_000, noise=0.0, seed=0):
    """Pixels (n, 3) uint8 of known concentrations (n, 2) of two stains: some pure, some glass, most mixed."""
    rng = np.random.default_rng(seed)
    c = rng.gamma(3, 0.4, (n, 2)) + 0.3  # eosin dims red by MIN_OD at least
    c[: n // 20, 1] = c[n // 20 : n // 10, 0] = 0  # pure haematoxylin, pure eosin: 5 % each
    c[n // 10 : n // 5] = 0  # glass
    c = rng.permutation(c * strength)
    light = tiling.LIGHT * np.exp(-c @ stains) - 1 + rng.normal(0, noise, (n, 3))
    return light.round().clip(0, 255).astype(np.uint8), c


def degrees_between(a, b):
    return np.degrees(
        np.arccos(
            np.clip((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1), -1, 1)
        )
    )


def tiny_encoder(path, seed=0):
    """A small network as a TorchScript file."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 9, 4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 7, 5, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    ).eval()
    torch.jit.script(net).save(path)
    return net


def pixels_of(cohort, name, px=224):
    """Every tile of a slide, read one by one; the slide, its coords and the edge of a tile."""
    from lab.cohort.slides import open_slide
    from lab.cohort.tiles import tiles_of

    slide, (arrays, _) = open_slide(cohort / "slides" / f"{name}.tif"), tiles_of(cohort, name)
    tile, coords = float(arrays["tile"]), arrays["coords"]
    return (
        np.concatenate([tiling.read_tiles(slide, [c], tile, px) for c in coords]),
        slide,
        coords,
        tile,
    )


# The simulated cohort
SMALL = dict(patients=6, edge_px=600)


def read_csv(path):
    with open(path) as f:
        return list(csv.DictReader(f))


def same(ours, theirs, tolerance=1e-10):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def random_list_loop(r, significant, signature, n_lists, rng):
    """The direct way, one cancer and one signature: (R_p, f_p, R_o, f_o, p of R, p of f)."""
    genes = np.flatnonzero(~np.isnan(r))
    own = np.intersect1d(genes, signature)
    r_p, f_p, r_lists, f_lists = r[own].mean(), significant[own].mean(), [], []
    for _ in range(n_lists):
        chosen = rng.choice(genes, len(own), replace=False)
        r_lists.append(r[chosen].mean())
        f_lists.append(significant[chosen].mean())
    reached = [
        (1 + np.sum(np.array(lists) >= value - 1e-9)) / (1 + n_lists)
        for lists, value in ((r_lists, r_p), (f_lists, f_p))
    ]
    return r_p, f_p, np.mean(r_lists), np.mean(f_lists), *reached


# ----- Outlines ------------------------------------------------------------------------------
def star(rng, k, center, radius):
    angle = np.sort(rng.random(k)) * 2 * np.pi
    return (
        np.stack([np.cos(angle), np.sin(angle)], 1) * (radius * rng.uniform(0.3, 1, (k, 1)))
        + center
    )


# he2rna.py
def bags(rng, n_tiles, d=6, pad=0.0):
    """x (B, T, d), mask (B, T) of slides with these numbers of tiles; padding holds `pad`."""
    x, mask = (
        torch.full((len(n_tiles), max(n_tiles), d), float(pad)),
        torch.zeros(len(n_tiles), max(n_tiles), dtype=torch.bool),
    )
    for i, n in enumerate(n_tiles):
        x[i, :n], mask[i, :n] = torch.from_numpy(rng.normal(size=(n, d))).float(), True
    return x, mask


def direct(model, x, mask, k):
    """The published way: every tile scored for every gene, all scores kept for the backward pass."""
    return he2rna.top_k_mean(model.tile_scores(x), mask, k)


def write_cohort(folder, rng, patients=12, genes=6, d=8, per_patient=1, tiles=30):
    """A cohort of .h5 features whose first genes follow planted features of the tiles; returns the expression table."""
    (folder / "h5").mkdir(parents=True, exist_ok=True)
    rows, table = ["slide,patient,project"], [",".join(["slide", *(f"G{g}" for g in range(genes))])]
    for p in range(patients):
        for s in range(per_patient):
            level, name = rng.normal(size=3), f"s{p:02d}_{s}"
            x = rng.normal(size=(tiles + p % 5, d)) * 0.3
            x[:, :3] += level
            with h5py.File(folder / "h5" / f"{name}.h5", "w") as h:
                h["features"], h["coords"] = x.astype(np.float16), tile_cloud(len(x), p)
            rows.append(f"{name},p{p:02d},{'XY'[p % 2]}")
            a = 10 ** np.r_[3 + 0.5 * level, 3 + 0.5 * rng.normal(size=genes - 3)]
            table.append(",".join([name, *(f"{v:.5g}" for v in a)]))
    (folder / "samples.csv").write_text("\n".join(rows) + "\n")
    (folder / "expression.csv").write_text("\n".join(table) + "\n")


def train(cohort, *argv):
    from lab.commands.he2rna import main as he2rna_main

    return he2rna_main(
        [
            "train",
            str(cohort),
            "--features",
            str(cohort / "h5"),
            "--hidden",
            "32,16",
            "--ks",
            "1,5,20",
            "--device",
            "cpu",
            "--folds",
            "3",
            "--valid",
            ".25",
            *argv,
        ]
    )


def same_runs(a, b):
    for name in ("genes.csv", "folds.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    pa, pb = np.load(a / "predictions.npz"), np.load(b / "predictions.npz")
    assert all((pa[k] == pb[k]).all() for k in pa.files)
    drop = lambda run: [
        {k: v for k, v in json.loads(line).items() if k != "slides_per_s"}
        for line in (run / "log.jsonl").read_text().splitlines()
    ]
    assert drop(a) == drop(b)


WHOLE_TILES = dict(
    coords=np.arange(10, dtype=np.int32).reshape(5, 2),
    size=np.array([99, 99]),
    tile=2.0,
    mpp=0.5,
    found=5,
    settings=np.array("{}"),
)


def mixed_up(run, command, column):
    """What names the fold of a patient or a setting, changed by hand, is refused by a command on the run, which then goes on as before."""
    folds, config = run / "folds.csv", run / "config.json"
    table, settings = folds.read_text(), load_json(config)
    patient = read_csv(folds)[0]["patient"]
    moved = re.sub(
        r"^(.*?,.*?,.*?),(\d)",
        lambda m: f"{m[1]},{(int(m[2]) + 1) % 3}",
        table,
        count=2,
        flags=re.MULTILINE,
    )
    for text, why in (
        (
            table.replace(f",{patient},", ",Somebody,"),
            "no model of the run knows the patients Somebody",
        ),
        (table.replace(",", ";"), "wanted are rows with slide and patient"),
        ("", "wanted are rows"),
        ("\x00" * 9, "folds.csv"),
        *[(moved, "were tested in other folds than it says")] * (column == "test_fold"),
    ):
        folds.write_text(text)
        with pytest.raises(InputError, match=why):
            command()
    folds.write_bytes(
        "\ufeff".encode() + table.encode()
    )  # as a spreadsheet saves it: nothing else changed
    for key in ("folds", "features", "seed", "version", "command"):
        for change in (
            {k: v for k, v in settings.items() if k != key},
            {**settings, key: 2},
            {**settings, key: ["x"]},
        ):
            save_json(config, change)
            with pytest.raises(
                InputError,
                match="was changed since its run was made|is a run of version|: not a run",
            ):
                command()
    save_json(config, settings)
    assert command() == 0


# The GDC's files: what is written here is what the test expects, read back by NumPy and csv alone.
OLD_GENES = [
    "ENSG00000000003.13",
    "ENSG00000000005.5",
    "ENSG00000182378.11",
    "ENSGR0000182378.11",
    "ENSG00000281849.1",
]  # GENCODE 22


NEW_GENES = [
    "ENSG00000000003.15",
    "ENSG00000290825.1",
    "ENSG00000182378.15",
    "ENSG00000182378.15_PAR_Y",
    "ENSG00000000005.6",
]  # 36


SHARED = ["ENSG00000000003", "ENSG00000000005", "ENSG00000182378", "ENSG00000182378_PAR_Y"]


SHEET = (
    "File ID",
    "File Name",
    "Data Category",
    "Data Type",
    "Project ID",
    "Case ID",
    "Sample ID",
    "Sample Type",
)


def gdc_file(folder, name, values, genes):
    """One download in a folder of its own: the older format, or today's for .tsv."""
    path = folder / name.split(".")[0] / name
    path.parent.mkdir(parents=True)
    if "FPKM-UQ" in name:
        text = "".join(f"{g}\t{v!r}\n" for g, v in zip(genes, values))
    else:
        text = "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\tunstranded\tfpkm_unstranded\tfpkm_uq_unstranded\n"
        text += "".join(
            f"N_{n}\t\t\t7\t\t\n" for n in ("unmapped", "multimapping", "noFeature", "ambiguous")
        )
        text += "".join(
            f"{g}\tS{j}\t{'protein_coding' if j % 2 else 'lncRNA'}\t5\t1.5\t{v!r}\n"
            for j, (g, v) in enumerate(zip(genes, values))
        )
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def gdc_folder(folder, seed=0):
    """Eight files of six samples, in both formats, and their sheet. -> {sample: {gene without version: value}}"""
    rng, rows, truth, new = (
        np.random.default_rng(seed),
        [],
        {},
        ".rna_seq.augmented_star_gene_counts.tsv",
    )
    for name, project, sample, kind, genes in (
        ("f3.FPKM-UQ.txt.gz", "TCGA-LUAD", "TCGA-AA-0002-01A", "Primary Tumor", OLD_GENES),
        ("f1" + new, "TCGA-LUSC", "TCGA-AA-0001-01A", "Primary Tumor", NEW_GENES),
        ("f9.FPKM-UQ.txt.gz", "TCGA-LUSC", "TCGA-AA-0001-01A", "Primary Tumor", OLD_GENES),
        ("f4.FPKM-UQ.txt", "TCGA-LUAD", "TCGA-AA-0002-01B", "Primary Tumor", OLD_GENES[::-1]),
        ("f5" + new + ".gz", "TCGA-LUAD", "TCGA-AA-0002-11A", "Solid Tissue Normal", NEW_GENES),
        ("f6" + new, "TCGA-BRCA", "TCGA-AA-0003-06A", "Metastatic", NEW_GENES),
        ("f7" + new, "TCGA-BRCA", "TCGA-AA-0004-01A", "Primary Tumor", NEW_GENES[::-1]),
        ("f8.htseq.counts.gz", "TCGA-BRCA", "TCGA-AA-0005-01A", "Primary Tumor", []),
    ):
        values = np.round(10 ** rng.uniform(0, 6, len(genes)), 4).tolist()
        gdc_file(folder, name, values, genes)
        rows.append((name.split(".")[0], name, "T", "G", project, sample[:12], sample, kind))
        if genes and name != "f9.FPKM-UQ.txt.gz":
            truth[sample] = dict(
                zip(
                    [
                        re.sub(r"\.\d+", "", g.replace("ENSGR0000182378.11", SHARED[3]))
                        for g in genes
                    ],
                    values,
                )
            )
    save_text(
        folder / "gdc_sample_sheet.2026-01-01.tsv", ["\t".join(row) for row in (SHEET, *rows)]
    )
    (folder / "f1" / "logs").mkdir()
    for name in (
        "f1/logs/f1.parcel",
        "f1/f1.FPKM-UQ.txt.gz.partial",
        "f1/annotations.txt",
        "MANIFEST.txt",
    ):
        (folder / name).write_text("not expression")
    return truth


def tune(cohort, *argv):
    from lab.commands.he2rna import main as he2rna_main

    return he2rna_main(
        [
            "finetune",
            str(cohort),
            "he2rna",
            "--device",
            "cpu",
            "--epochs",
            "2",
            "--ks",
            "1,5,20",
            *argv,
        ]
    )


# ----- Hospital A, hospital B
def study(rng, patients=45, d=24, genes=20, slides=1):
    """A study of `slides` slides a patient: expression follows the features, MSI-H the first programme."""
    z = rng.normal(size=(patients, 4)).repeat(slides, 0)
    x = (z @ rng.normal(size=(4, d)) + rng.normal(size=(len(z), d))).astype(np.float32)
    y = (z @ rng.normal(size=(4, genes)) + 0.3 * rng.normal(size=(len(z), genes))).astype(
        np.float32
    )
    names = np.array([f"P{i:03d}" for i in range(patients)]).repeat(slides)
    return dict(
        features=x,
        expression=y,
        genes=np.array([f"G{j}" for j in range(genes)]),
        patients=names,
        msi=np.where(z[:, 0] > 0.6, "MSI-H", np.where(z[:, 1] > 1, "MSI-L", "MSS")),
    )


def run_study(tmp_path, z, *argv, name="run"):
    from lab.commands.he2rna import main as he2rna_main

    np.savez(tmp_path / "study.npz", **z)
    return he2rna_main(
        [
            "msi",
            str(tmp_path / "study.npz"),
            "--name",
            str(tmp_path / name),
            "--device",
            "cpu",
            *argv,
        ]
    )


def pictures(n, px, seed=0):
    """Smooth random colours, (n, 3, px, px) float in 0..1."""
    x = ndimage.gaussian_filter(np.random.default_rng(seed).random((n, 3, px, px)), (0, 0, 2, 2))
    return torch.from_numpy(((x - x.min()) / np.ptp(x)).astype(np.float32))


TINY = [
    "--tile-px",
    "36",
    "--view-px",
    "32",
    "--batch",
    "8",
    "--tiles-per-slide",
    "2",
    "--device",
    "cpu",
    "--precision",
    "float32",
]


def pretrain(cohort, *argv):
    from lab.commands.histcode import main as histcode_main

    return histcode_main(
        ["pretrain", str(cohort), "--weights", str(cohort / "start.pth"), *TINY, *argv]
    )


def data_of(cohort, px=36, colour="none"):
    from lab.histcode.tiles import find_data, slides_of

    o = options("--workers", "2", "--colour", colour)
    o.tile_px = px
    return find_data(cohort, slides_of(cohort), o)[0]


def saved(path):
    return torch.load(path, weights_only=True)


def ridge_at(x, y, penalties, new):
    from lab.ridge import ridge

    weights, bias = ridge(x, y, penalties)
    return new @ weights + bias[:, None]


def planted_bags(n=24, d=6, seed=0, shift=3.0):
    """n bags of 2 to 9 instances; in those of class 1 the first instance is shifted in feature 0. -> bags, y."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    bags = [rng.normal(size=(2 + i % 8, d)).astype(np.float32) for i in range(n)]
    for bag, label in zip(bags, y):
        bag[0, 0] += shift * label
    return bags, y


def some_networks(name, bags, splits, seeds, embed=()):
    from lab.histcode.heads import mean_and_sd, sums_of

    models, sums = [], list(map(sums_of, bags))
    for (train, _, _), seed in zip(splits, seeds):
        torch.manual_seed(seed)
        models.append(SlideModel(name, *mean_and_sd(sums, train), 2, embed, 8))
    return models


def learn(name, bags, y, splits, seeds, epochs=3, batch=2, **more):
    from lab.histcode.heads import train_heads

    o = argparse.Namespace(lr=1e-2, weight_decay=1e-4, epochs=epochs, batch=batch)
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
    return [
        dict(
            model={k: v[m] for k, v in done["model"].items()},
            epoch=int(done["epochs"][m]),
            losses=done["losses"][:, m],
            tests=done["tests"][m],
        )
        for m in range(len(splits))
    ]


def three_splits(n=24):
    order = np.random.default_rng(1).permutation(n)
    return [
        (
            np.roll(order, 7 * i)[:16],
            np.roll(order, 7 * i)[16 : 20 - i % 2],
            np.roll(order, 7 * i)[20:],
        )
        for i in range(3)
    ]


def write_bag_table(path, n=30, header=False, **change):
    bags, y = planted_bags(n, shift=6.0)
    rows = [
        [str(y[i]), f"b{i}", *(f"{v:.4f}" for v in instance)]
        for i, bag in enumerate(bags)
        for instance in bag
    ]
    path.write_text(
        "\n".join([*(["label,bag," + ",".join("abcdef")] if header else []), *map(",".join, rows)])
        + "\n"
    )
    return rows


def write_slides(folder, patients=12, prefix="p", labels=("0", "1"), d=8, seed=0, extra=""):
    """A cohort of .h5 features; tumour slides have a few shifted tiles; every third patient has a normal slide too."""
    (folder / "h5").mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), ["slide,patient,project,tumor"]
    for p in range(patients):
        for label in [0, 1] if p % 3 == 2 else [p % 2]:
            x = rng.normal(size=(12 + p % 5, d))
            x[:3, 0] += 6 * label
            with h5py.File(folder / "h5" / f"{prefix}{p:02d}_{label}.h5", "w") as h:
                h["features"], h["coords"] = x.astype(np.float16), tile_cloud(len(x), p)
            rows.append(f"{prefix}{p:02d}_{label},{prefix}{p:02d},X,{labels[label]}")
    (folder / "samples.csv").write_text("\n".join(rows) + "\n" + extra)
    return folder


def diagnose(cohort, *argv):
    from lab.commands.histcode import main as histcode_main

    return histcode_main(
        [
            "diagnose",
            str(cohort),
            "--features",
            str(cohort / "h5"),
            "--epochs",
            "4",
            "--lr",
            "0.01",
            "--hidden",
            "8",
            "--device",
            "cpu",
            "--folds",
            "6",
            *argv,
        ]
    )


def section(run):
    """What a report says at its top and under What saw whom."""
    text = (run / "report.md").read_text()
    return text.split("\n## ")[0].split("\n| ")[0], text.split("## What saw whom")[1].split(
        "\n## "
    )[0]


# ----- Differential expression: runs ---------------------------------------------------------------------------------
def write_pairs(folder, patients=9, d=8, seed=0, normals=2):
    """A cohort of .h5 features, tumour and normal expression of each patient; `normals` of three have a normal slide too.

    UP0 to UP2: their fold change follows feature 1 of the tumour slide. NO0, NO1: noise. HALF: unknown in two pairs. OFF:
    nothing in most normal samples. SAME: one fold change for all. Feature 0: tumour tiles. -> folder
    """
    (folder / "h5").mkdir(parents=True)
    rng, slides, rows = np.random.default_rng(seed), ["slide,patient,project,sample,tumor"], []
    genes = ["UP0", "UP1", "UP2", "NO0", "NO1", "HALF", "OFF", "SAME"]
    for p in range(patients):
        who, content = f"TCGA-AA-{p:04d}", rng.normal()
        for label in (1, 0)[: 1 + (p % 3 < normals)]:
            x = rng.normal(size=(9 + p % 4, d))
            x[:4, 0], x[:, 1] = x[:4, 0] + 6 * label, x[:, 1] + 2 * content * label
            with h5py.File(folder / "h5" / f"s{p}_{label}.h5", "w") as h:
                h["features"], h["coords"] = x.astype(np.float16), tile_cloud(len(x), p)
            slides.append(f"s{p}_{label},{who},X,{who}-{'01A' if label else '11A'},{label}")
        up = np.exp(np.r_[content + rng.normal(0, 0.1, 3), rng.normal(0, 1.5, 3)])
        normal = np.r_[np.exp(rng.normal(0, 0.5, 6)), p < 3, 2]
        normal[5] *= p > 1
        rows.append([f"{who}-01A", *(up * np.maximum(normal[:6], 0.5)), 1 + p, 4])
        rows.append([f"{who}-11A", *np.maximum(normal[:5], 0.5), *normal[5:]])
    (folder / "samples.csv").write_text("\n".join(slides) + "\n")
    save_csv(
        folder / "expression.csv",
        ("sample", *genes),
        ([r[0], *(f"{v:.6g}" for v in r[1:])] for r in rows),
    )
    return folder


def change_table(path, change):
    header, rows = read_rows(path)
    save_csv(path, header, change(rows))


def express(cohort, *argv):
    from lab.commands.histcode import main as histcode_main

    return histcode_main(
        [
            "expression",
            str(cohort),
            "--features",
            str(cohort / "h5"),
            "--epochs",
            "3",
            "--lr",
            "0.01",
            "--hidden",
            "4",
            "--device",
            "cpu",
            "--folds",
            "3",
            *argv,
        ]
    )


MODELS = {
    "linear": [],
    "ridge": ["--ridge", "auto"],
    "joint": ["--model", "attention"],
    "mean": ["--model", "attention", "--pooling", "mean"],
    "max": ["--model", "attention", "--pooling", "max", "--embed", "5"],
    "per-gene": ["--model", "attention", "--per-gene", "--genes", "UP0,NO0,HALF"],
}


def folds_in(run):
    from lab.runs import load_checkpoint

    return [load_checkpoint(path, "cpu") for path in sorted(run.glob("fold*.pt"))]


def tiles_in(cohort, slide):
    from lab.cohort.features import load_features

    return load_features(cohort, (cohort / "h5").resolve(), slide)[0]


def spoken_by_hand(saved, h):
    """Output of each gene for a bag h (T, D) of a fold's checkpoint by `SlideModel` and NumPy, (G,); attention (M, T)."""
    out, attention = [], []
    for m in range(len(next(iter(saved["model"].values())))):
        D = h.shape[1]
        shape = (saved[k] for k in ("outputs", "embed", "hidden"))
        model = SlideModel(saved["pooling"], np.zeros(D), np.ones(D), *shape)
        model.load_state_dict({k: v[m] for k, v in saved["model"].items()})
        with torch.no_grad():
            got, a = model(torch.from_numpy(h)[None], torch.ones(1, len(h), dtype=torch.bool))
        out.append(got[0, -1].double().numpy()), attention.append(a[0].double().numpy())
    if saved["kind"] != "linear":
        return np.concatenate(out), np.stack(attention)
    order, n = (
        sorted(range(len(h)), key=lambda i: (-a[0, i].item(), i)),
        min(histcode.ENDS, len(h) // 2),
    )
    x = np.concatenate(
        [
            np.mean([h[i] for i in rows], 0, dtype=np.float64)
            for rows in (order[:n], order[len(h) - n :])
        ]
    )
    return x @ saved["weights"].double().numpy() + saved["bias"].double().numpy(), np.stack(
        attention
    )


# ----- Maps of drawn slides, and encoders against each other -----------------------------------------------------------
GENES = "CD3D,CD3E,MKI67,ACTB,ZG16,COL1A1"


def small_encoder(path, seed):
    torch.manual_seed(seed)
    parts = (
        torch.nn.AvgPool2d(8),
        torch.nn.Conv2d(3, 6, 5, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
    )
    torch.jit.script(torch.nn.Sequential(*parts, torch.nn.Flatten()).eval()).save(path)


def drawn_run(command, cohort, *argv):
    from lab.commands.histcode import main as histcode_main

    return histcode_main(
        [
            command,
            str(cohort),
            "--tile-um",
            "25",
            "--epochs",
            "2",
            "--lr",
            "0.01",
            "--hidden",
            "4",
            "--folds",
            "3",
            "--device",
            "cpu",
            *argv,
        ]
    )


def gmt_of(cohort):
    path = cohort.parent / "sets.gmt"
    path.write_text("T cells\tx\tCD3D\tCD3E\nproliferation\tx\tMKI67\n")
    return path


def maps_of(cohort, run, *argv):
    from lab.commands.histcode import main as histcode_main

    return histcode_main(["heatmap", str(cohort / "runs" / run), *argv, "--device", "cpu"])


def our_modules():
    """The modules of this program and its tests that are loaded now."""
    names = ("lab", "tiling", "stats", "he2rna", "histcode", "conftest")
    for name, module in list(sys.modules.items()):
        top = name.split(".")[0]
        if top in names or top.startswith("test_"):
            yield module


def swap(monkeypatch, module, name, value):
    """Replace a name in the module that defines it and in every module that imported it."""
    home = importlib.import_module(module)
    if not hasattr(home, name):
        homes = [m.__name__ for m in our_modules() if name in vars(m)]
        pytest.fail(f"swap: {module} has no {name}; it stands in {homes or 'no module'}")
    old = getattr(home, name)
    for there in our_modules():
        for key, bound in list(vars(there).items()):
            if bound is old and (key == name or callable(old)):
                monkeypatch.setattr(there, key, value)
