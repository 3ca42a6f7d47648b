"""What the tests of HE2RNA share: cohorts with planted genes, runs, GDC files, MSI studies."""

import gzip
import json
import re

import h5py
import numpy as np
import pytest
import torch

import he2rna
from lab.files import InputError, load_json, save_json, save_text
from lab.tests.helpers import read_csv, tile_cloud


def main(*argv):
    from lab.commands.he2rna import main

    return main([str(word) for word in argv])


# ----- Bags ---------------------------------------------------------------------------------------


def bags(rng, n_tiles, d=6, pad=0.0):
    """x (B, T, d), mask (B, T) of slides with these numbers of tiles; padding holds `pad`."""
    x = torch.full((len(n_tiles), max(n_tiles), d), float(pad))
    mask = torch.zeros(len(n_tiles), max(n_tiles), dtype=torch.bool)
    for i, n in enumerate(n_tiles):
        x[i, :n] = torch.from_numpy(rng.normal(size=(n, d))).float()
        mask[i, :n] = True
    return x, mask


def direct(model, x, mask, k):
    """The published way: every tile scored for every gene, all scores kept for backward."""
    return he2rna.top_k_mean(model.tile_scores(x), mask, k)


# ----- Slides with planted genes ------------------------------------------------------------------


def planted_slides(n=60, noise=0.1):
    """Slides whose first features carry the first 3 of 6 genes: slides, y, projects, patients."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(n, 3)).astype(np.float32)
    slides = []
    for one in level:
        tiles = rng.normal(size=(rng.integers(5, 9), 8)).astype(np.float32) * 0.3
        tiles[:, :3] += one
        slides.append(tiles)
    y = np.hstack([level, rng.normal(size=(n, 3))]) + noise * rng.normal(size=(n, 6)) + 2
    projects = np.array(["X", "Y"] * (n // 2))
    return slides, y.astype(np.float32), projects, np.array([f"p{i}" for i in range(n)])


def small_model(y):
    """A small network for those slides, as it starts."""
    torch.manual_seed(1)
    return he2rna.HE2RNA(8, y.shape[1], (16, 8), ks=(1, 2, 5)).start_at(y.mean(0))


# ----- A cohort and its runs ----------------------------------------------------------------------


def write_cohort(folder, rng, patients=12, genes=6, d=8, per_patient=1, tiles=30):
    """A cohort of .h5 features whose first genes follow planted features of the tiles."""
    (folder / "h5").mkdir(parents=True, exist_ok=True)
    rows = ["slide,patient,project"]
    table = [",".join(["slide", *(f"G{g}" for g in range(genes))])]
    for p in range(patients):
        for s in range(per_patient):
            level, name = rng.normal(size=3), f"s{p:02d}_{s}"
            x = rng.normal(size=(tiles + p % 5, d)) * 0.3
            x[:, :3] += level
            with h5py.File(folder / "h5" / f"{name}.h5", "w") as h:
                h["features"] = x.astype(np.float16)
                h["coords"] = tile_cloud(len(x), p)
            rows.append(f"{name},p{p:02d},{'XY'[p % 2]}")
            a = 10 ** np.r_[3 + 0.5 * level, 3 + 0.5 * rng.normal(size=genes - 3)]
            table.append(",".join([name, *(f"{v:.5g}" for v in a)]))
    (folder / "samples.csv").write_text("\n".join(rows) + "\n")
    (folder / "expression.csv").write_text("\n".join(table) + "\n")


def train(cohort, *argv):
    usual = "--hidden 32,16 --ks 1,5,20 --device cpu --folds 3 --valid .25"
    return main("train", cohort, "--features", cohort / "h5", *usual.split(), *argv)


def tune(cohort, *argv):
    usual = "--device cpu --epochs 2 --ks 1,5,20"
    return main("finetune", cohort, "he2rna", *usual.split(), *argv)


def same_runs(a, b):
    """Two runs have the same genes, folds, predictions and log, but for its times."""
    for name in ("genes.csv", "folds.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    ours, theirs = np.load(a / "predictions.npz"), np.load(b / "predictions.npz")
    assert all((ours[k] == theirs[k]).all() for k in ours.files)

    def log_of(run):
        entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for entry in entries:
            entry.pop("seconds", None)
        return entries

    assert log_of(a) == log_of(b)


def mixed_up(run, command, column):
    """A fold or a setting changed by hand is refused by a command; mended, it goes on."""
    folds, config = run / "folds.csv", run / "config.json"
    table, settings = folds.read_text(), load_json(config)
    patient = read_csv(folds)[0]["patient"]
    stranger = table.replace(f",{patient},", ",Somebody,")
    changes = [
        (stranger, "no model of the run knows the patients Somebody"),
        (table.replace(",", "|"), "wanted are rows with slide and patient"),
        ("", "wanted are rows"),
        ("\x00" * 9, r"folds\.csv"),
    ]
    if column == "test_fold":
        next_fold = lambda m: f"{m[1]},{(int(m[2]) + 1) % 3}"  # noqa: E731
        moved = re.sub(r"^(.*?,.*?,.*?),(\d)", next_fold, table, count=2, flags=re.MULTILINE)
        changes.append((moved, "were tested in other folds than it says"))
    for text, why in changes:
        folds.write_text(text)
        with pytest.raises(InputError, match=why):
            command()
    folds.write_text("\ufeff" + table)  # as a spreadsheet saves it: nothing else changed
    odd = "was changed since its run was made|is a run of version|: not a run"
    for key in ("folds", "features", "seed", "version", "command"):
        without = {k: v for k, v in settings.items() if k != key}
        for change in (without, {**settings, key: 2}, {**settings, key: ["x"]}):
            save_json(config, change)
            with pytest.raises(InputError, match=odd):
                command()
    save_json(config, settings)
    assert command() == 0


# ----- The GDC's files ----------------------------------------------------------------------------

OLD_GENES = [  # GENCODE 22
    "ENSG00000000003.13",
    "ENSG00000000005.5",
    "ENSG00000182378.11",
    "ENSGR0000182378.11",
    "ENSG00000281849.1",
]
NEW_GENES = [  # GENCODE 36
    "ENSG00000000003.15",
    "ENSG00000290825.1",
    "ENSG00000182378.15",
    "ENSG00000182378.15_PAR_Y",
    "ENSG00000000005.6",
]
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
STAR = ".rna_seq.augmented_star_gene_counts.tsv"
FILES = (
    ("f3.FPKM-UQ.txt.gz", "TCGA-LUAD", "TCGA-AA-0002-01A", "Primary Tumor", OLD_GENES),
    ("f1" + STAR, "TCGA-LUSC", "TCGA-AA-0001-01A", "Primary Tumor", NEW_GENES),
    ("f9.FPKM-UQ.txt.gz", "TCGA-LUSC", "TCGA-AA-0001-01A", "Primary Tumor", OLD_GENES),
    ("f4.FPKM-UQ.txt", "TCGA-LUAD", "TCGA-AA-0002-01B", "Primary Tumor", OLD_GENES[::-1]),
    ("f5" + STAR + ".gz", "TCGA-LUAD", "TCGA-AA-0002-11A", "Solid Tissue Normal", NEW_GENES),
    ("f6" + STAR, "TCGA-BRCA", "TCGA-AA-0003-06A", "Metastatic", NEW_GENES),
    ("f7" + STAR, "TCGA-BRCA", "TCGA-AA-0004-01A", "Primary Tumor", NEW_GENES[::-1]),
    ("f8.htseq.counts.gz", "TCGA-BRCA", "TCGA-AA-0005-01A", "Primary Tumor", []),
)
NO_EXPRESSION = (
    "f1/logs/f1.parcel",
    "f1/f1.FPKM-UQ.txt.gz.partial",
    "f1/annotations.txt",
    "MANIFEST.txt",
)


def gdc_file(folder, name, values, genes):
    """One download in a folder of its own: the older format, or today's for .tsv."""
    path = folder / name.split(".")[0] / name
    path.parent.mkdir(parents=True)
    columns = "gene_id gene_name gene_type unstranded fpkm_unstranded fpkm_uq_unstranded"
    lines = []
    if "FPKM-UQ" not in name:
        lines += ["# gene-model: GENCODE v36", columns.replace(" ", "\t")]
        for count in ("unmapped", "multimapping", "noFeature", "ambiguous"):
            lines.append(f"N_{count}\t\t\t7\t\t")
    for j, (gene, value) in enumerate(zip(genes, values, strict=True)):
        biotype = "protein_coding" if j % 2 else "lncRNA"
        more = "" if "FPKM-UQ" in name else f"S{j}\t{biotype}\t5\t1.5\t"
        lines.append(f"{gene}\t{more}{value!r}")
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def plain_gene(name):
    """A gene's name without its version."""
    return re.sub(r"\.\d+", "", name.replace("ENSGR0000182378.11", SHARED[3]))


def gdc_folder(folder, seed=0):
    """Eight files of six samples, in both formats, and their sheet.

    -> {sample: {gene without version: value}}
    """
    rng = np.random.default_rng(seed)
    rows, truth = [SHEET], {}
    for name, project, sample, kind, genes in FILES:
        values = np.round(10 ** rng.uniform(0, 6, len(genes)), 4).tolist()
        gdc_file(folder, name, values, genes)
        rows.append((name.split(".")[0], name, "T", "G", project, sample[:12], sample, kind))
        if genes and name != "f9.FPKM-UQ.txt.gz":
            truth[sample] = dict(zip(map(plain_gene, genes), values, strict=True))
    sheet = folder / "gdc_sample_sheet.2026-01-01.tsv"
    save_text(sheet, ["\t".join(row) for row in rows])
    (folder / "f1" / "logs").mkdir()
    for name in NO_EXPRESSION:
        (folder / name).write_text("not expression")
    return truth


# ----- Hospital A, hospital B ---------------------------------------------------------------------


def study(rng, patients=45, d=24, genes=20, slides=1):
    """A study of `slides` slides a patient: expression follows the features, MSI-H a programme."""
    z = rng.normal(size=(patients, 4)).repeat(slides, 0)
    x = z @ rng.normal(size=(4, d)) + rng.normal(size=(len(z), d))
    y = z @ rng.normal(size=(4, genes)) + 0.3 * rng.normal(size=(len(z), genes))
    low = np.where(z[:, 1] > 1, "MSI-L", "MSS")
    return {
        "features": x.astype(np.float32),
        "expression": y.astype(np.float32),
        "genes": np.array([f"G{j}" for j in range(genes)]),
        "patients": np.array([f"P{i:03d}" for i in range(patients)]).repeat(slides),
        "msi": np.where(z[:, 0] > 0.6, "MSI-H", low),
    }


def run_study(tmp_path, z, *argv, name="run"):
    path = tmp_path / "study.npz"
    np.savez(path, **z)
    return main("msi", path, "--name", tmp_path / name, "--device", "cpu", *argv)
