"""HE2RNA: the expression of every gene from a slide, learned from slide-level RNA-Seq alone.

Schmauch et al., "A deep learning model to predict RNA-Seq expression of tumours from whole slide images", Nature
Communications 11:3877 (2020), doi:10.1038/s41467-020-17678-4 (preprint bioRxiv 760173). A multilayer perceptron scores
every tile for every gene; the slide's prediction is the mean of the k highest tile scores, k drawn anew at each
iteration. Cross-validated by patient, R per gene within each cancer, significance corrected over all genes. The file
reads in the order of the paper's Methods; the commands stand at its end.

    python he2rna.py expression GDC_DIR --sheet FILE --out COHORT/expression.npz     a folder of GDC downloads -> a table
    python he2rna.py samples COHORT --sheet FILE     COHORT/slides of TCGA, joined to that table -> COHORT/samples.csv
    python he2rna.py train                   draws a simulated cohort into demo/, trains on it, writes a report
    python he2rna.py train COHORT            your slides and expression table -> per-gene, per-cancer report
    python he2rna.py train COHORT --features DIR     the same from features made elsewhere (CLAM, TRIDENT: .h5, .pt)
    torchrun --nproc-per-node 5 he2rna.py train COHORT       the same, a fold for each process
    python he2rna.py finetune COHORT RUN --project LIHC --genes CD3D,CD3E,CD3G,CD247     all tiles, one cancer, chosen genes
    python he2rna.py predict RUN SLIDE...    expression of slides that have none -> RUN/predict/<slide>.csv
    python he2rna.py signatures RUN --gmt F...   python he2rna.py enrich RUN --gmt F...  pathways of the well-predicted genes
    python he2rna.py heatmap RUN SLIDE... --genes CD3D,CD3E      where on the slide, best and worst tiles, against the truth
    python he2rna.py msi COHORT|FILE.npz     hospital A's transcriptome for MSI in hospital B: what it is worth
    python he2rna.py choices                 where paper and authors' code differ or are silent, and what is done here
    python he2rna.py audit [COHORT]          each that --code can turn, turned alone: what it changes

COHORT holds samples.csv (slide,patient,project[,sample,...]), slides/ and expression.csv (.csv.gz, .npz). What comes out
stands in COHORT/runs/<name>/: report.md and its pictures, genes.csv, predictions.npz, folds.csv, fold*.pt, log.jsonl.

Glossary: B slides of a batch, S all slides, T (super-)tiles of a slide, N tiles of several slides end to end, D features, H
neurons of the last hidden layer, G genes, P cancers (in msi: patients), M models, k tiles kept (in evaluation: folds), K
values of k, n samples, g genes of a block, a FPKM-UQ.
Tags: [HE2RNA ...] the paper, [HE2RNA code] only the authors' released code, [ours] our choice.
"""

import argparse
import csv
import difflib
import gzip
import hashlib
import io
import json
import math
import re
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import embedding_bag, pad

import stats
import tiling
from tiling import (InputError, chosen_of, clock, digest, each_slide, every_tile, features_as, few, flipped, held_out, number,
                    pick_genes, progress, read_expression, read_rows, save_csv, save_file, save_json, save_text, saw,
                    say_left_out, switches, table)

# ---------------------------------------------------------------------------------------------------------------------
# Constants
# ---------------------------------------------------------------------------------------------------------------------
FINE_EPOCHS = 50             # on all tiles                             [HE2RNA Methods, Training and evaluation]
FINE_PATIENCE = 30           #                                          [HE2RNA code]
FINE_BATCH = 4               # slides per iteration, all tiles          [HE2RNA code]
KS_SUPERTILES = (1, 2, 5, 10, 20, 50, 100)                        #     [HE2RNA Methods, Model architecture]
KS_TILES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)          # all tiles   [HE2RNA Methods, Model architecture]
BLOCK_SCORES = 2 ** 23       # scores held at a time, 32 MB: 2 ** 22 to 24 take the same time [ours]
GATHER = {"cpu": 1 / 3, "cuda": 1 / 50}  # gradients by gathering tiles where k < this share of T, else by products [ours];
#   steps on 2 cores: k = 2,000 of 8,000 8.4 and 9.3 s, k = 50 of 100 3.0 and 2.3 s; the GPU's reckoned from bandwidth
RESCORE = (36, 1 / 5)       # bfloat16 chooses tiles where k + 36 < T / 5: they are scored again, which must cost less [ours]
HIDDEN = (1024, 1024)        # neurons of the hidden layers             [HE2RNA code]
DROPOUT = 0.25               # between consecutive layers               [HE2RNA code]
LEARNING_RATE = 3e-4         # Adam                                     [HE2RNA code]
BATCH_SLIDES = 16            # slides per iteration, super-tiles        [HE2RNA code]
EPOCHS = 200                 # on super-tiles                           [HE2RNA Methods, Training and evaluation]
PATIENCE = 50                # epochs without a better validation R     [HE2RNA code]
FOLDS = 5                    #                                          [HE2RNA Methods, Training and evaluation]
VALID_SHARE = 0.1            # of the training patients, for stopping   [HE2RNA code]
ALPHA = 0.05                 # after correction over genes              [HE2RNA Methods, Statistics]
DEMO_EPOCHS = 60             # on the simulated cohort: a lesson's time [ours]
DEMO_VALID = 0.3             # there: R over the 7 slides of a tenth is chance, and stops at the wrong epoch [ours]
PRIMARY = ("primary tumor", "primary tumour", "tumor", "tumour")   # sample_type values, or 01, meant by the
#                              "samples from primary tumors only"       [HE2RNA Methods, TCGA Pan-Cancer Dataset]
SAMPLE_TYPES = {"01": "Primary Tumor", "02": "Recurrent Tumor", "03": "Primary Blood Derived Cancer - Peripheral Blood",
                "05": "Additional - New Primary", "06": "Metastatic", "07": "Additional Metastatic",
                "11": "Solid Tissue Normal"}  # characters 14-15 of a TCGA barcode, as the GDC's sheets spell them
FPKM_UQ = re.compile(r"(\.FPKM-UQ\.txt|_star_gene_counts\.tsv)(\.gz)?$")   # GDC's files of it: to release 31, from 32
UQ_COLUMN = "fpkm_uq_unstranded"
UQ_GENES = 19029             # protein-coding genes on autosomes, by which GDC divides FPKM-UQ since release 32: says its page
#                              "mRNA Analysis Pipeline". The upper quartile of a file's positive values is near 1e5 before,
UQ_BORDER = 1000             # 5 since: between them                                                        [ours]
UQ_LEAST = 1000              # positive values that tell it                                                 [ours]
SLIDE_BARCODE = re.compile(r"(TCGA-\w\w-\w{4})-(\d\d)([A-Z])-\d\d-(DX|TS|BS|MS)")     # patient, type, vial, kind
FROZEN = ("TS", "BS", "MS")  # slides of the frozen block, its top, bottom or middle; DX: diagnostic, FFPE, the paper's
#                              choice [HE2RNA Methods, TCGA Pan-Cancer Dataset]; HistCode: frozen [HistCode Methods]
MERGED = {"LUNG": ("LUAD", "LUSC"), "KIDN": ("KICH", "KIRC", "KIRP"), "UTER": ("UCS", "UCEC")}  # [HE2RNA Table 1]
NULL_MODELS = 3              # untrained models behind the null         [ours; the paper has one]
SMALL_FOLD = 8               # test slides of a cancer; with fewer the report warns [ours]
MIN_NULL = 2000              # their R, at least: few genes get more outputs [ours]
SHIFTS = 199                 # random shifts behind a p over tiles; five times as many over spots [ours]
MSI_HIDDEN = (1024, 256)     # A: 2048-1024-256-G, the autoencoders 2048-1024-256-1024-2048   [HE2RNA Methods, MSI status]
MSI_CLASSIFIER = (256, 128)  # B, direct; on a 256-d representation the 128 alone             [HE2RNA Methods, MSI status]
MSI_EPOCHS = 50              #                                          [HE2RNA Methods, MSI status]
MSI_EPOCHS_CODE = 100        # of the autoencoders                      [HE2RNA code]
MSI_RATE = 1e-3              # Adam                                     [HE2RNA code]
MSI_BATCH = 10               # slides per iteration, classifiers        [HE2RNA code]
MSI_GENE_BATCH = 32          # genes [HE2RNA code]; autoencoders        [ours]
MSI_FOLDS = 3                # in A and in B                            [HE2RNA Methods, MSI status]
MSI_REPEATS = 10             # of the cross-validation in B             [HE2RNA Results, MSI status prediction]
MSI_SPLITS = 50              # of the patients into A and B             [HE2RNA Methods, MSI status]
MSI_SHARES = tuple(map(Fraction, ("1/6", "1/3", "1/2", "2/3", "3/4", "5/6")))     # of the patients in A [HE2RNA Fig. 5b]
MSI_INTERVAL = (0.16, 0.84)  # 68 %                                     [HE2RNA Fig. 5b]
MSI_BLOCK = {"cpu": 2 ** 19, "cuda": 2 ** 28}  # parameters trained at a time, at least one network [ours]: a CPU's cache
#   holds them and Adam's moments; 90 direct classifiers take 12.7 s by ones, 14.1 by twos, 17.6 by fours
MSI_ARMS = {"transcriptome": "transcriptome of A", "direct": "direct, one network", "ensemble": "direct, ensemble",
            "autoencoder-a": "autoencoder of A", "autoencoder-b": "autoencoder of B"}
#   the ensemble: the mean of as many direct networks as A has folds, as many as stand behind its representation [ours]
MSI_LINES = {"transcriptome": ("tab:blue", "-"), "direct": ("tab:red", "-"),                # [HE2RNA Fig. 5b]
             "ensemble": ("tab:red", "--"), "autoencoder-a": ("tab:grey", "-"), "autoencoder-b": ("tab:grey", "--")}   # [ours]
AUDIT_EPOCHS = 8             # of each run of audit on the simulated cohort: all in a quarter of an hour        [ours]
AUDIT_SEEDS = 3              # runs of each choice                                       [ours]
VERSION = 3                  # of a run's files; another is refused     [ours]


# ---------------------------------------------------------------------------------------------------------------------
# Choices that a switch turns. What the paper leaves open as a mere number stands above, with its tag.
# ---------------------------------------------------------------------------------------------------------------------
# Rule: the paper; where it is silent or ambiguous, the authors' code; where that is a defect or a leak, the correct thing.
# A row: command and name for its --code NAME,..; the paper; the authors' code; ours; the other side, which --code turns
# this one choice to (code or paper: that side, as --follow does with all of its; else in words); the tag of ours.
CHOICES = (
    ("train", "colour", "silent", "each channel of each tile shifted and stretched to 0..255",
     "as on the slide", "code", "[ours]"),
    ("train", "genes", "those of positive median over all samples", "no such filter on this path",
     "the paper's", "code", "[HE2RNA Methods, Cleaning]"),
    ("train", "padding", "silent", "padded rows of zeros score 0 and compete: tiles of -1, -2, -3 give 0 for every k",
     "padding never counts: tiles of -1, -2, -3 give -1 for k = 1", "code", "[ours]"),
    ("train", "relu", "silent", "predictions pass a ReLU before metrics", "no ReLU", "code", "[ours]"),
    ("train", "k", "a k drawn \"at every iteration and for every gene\"", "one k an iteration, for all genes",
     "the code's", "paper", "[HE2RNA code]"),
    ("train", "folds", "5, patients whole, projects evenly spread",
     "5 of the sorted patients, blind to projects, as the 10 % of the others who choose the epoch",
     "the paper's", "code", "[HE2RNA Methods, Training and evaluation]"),
    ("train", "epochs", "a fixed number of epochs, all training patients learn",
     "the best epoch by R of a part of the training patients, who do not learn",
     "the code's, of at most the paper's epochs", "paper", "[HE2RNA code]"),
    ("train", "bias", "silent", "the last bias starts at the training mean",
     "the code's", "the last bias starts as torch draws it", "[HE2RNA code]"),
    ("train", "merged", "LUNG, KIDN and UTER count, not their subtypes", "the same",
     "the paper's; subtypes stand beside", "subtypes count, not LUNG, KIDN and UTER", "[HE2RNA Table 1]"),
    ("train", "pooled", "R of each fold, their mean", "the same",
     "the paper's", "one R over the test slides of all folds", "[HE2RNA Results, prediction of gene expression]"),
    ("finetune", "--epochs", "50", "100, or 30 without a better R",
     "the paper's", "--epochs 100", "[HE2RNA Methods, Training and evaluation]"),
    ("msi", "--project", "COAD", "COAD and READ pooled", "all of the cohort", "--project COAD,READ", "[ours]"),
    ("msi", "scaling", "silent", "features scaled over the whole cohort, its test patients too",
     "features scaled over training patients", "code", "[ours]"),
    ("msi", "genes", "genes chosen by their median over the whole cohort",
     "genes chosen by their median over the whole cohort", "genes chosen by hospital A's median", "code", "[ours]"),
    ("msi", "autoencoder", "trained on A or on B", "autoencoder B learns from all of hospital B, its test patients too",
     "autoencoder B learns from training patients of B", "code", "[ours]"),
    ("msi", "epochs", "silent on autoencoders; 50 for the other networks", "autoencoders trained for 100 epochs",
     "50, as the others", "code", "[ours]"),
    ("msi", "msi-l", "counts as not MSI-H", "MSI-L left out", "the paper's", "code", "[HE2RNA Methods, MSI status]"))
AUDIT_MSI = dict(splits=5, ratios=(Fraction(3, 4),), repeats=2, folds=MSI_FOLDS,  # audit's study: short, B small   [ours]
                 arms=("transcriptome", "direct", "autoencoder-b"))
MAY_SEE = {"gene filter": "as the paper words it, over all samples: it decides which genes are asked for",
           "untrained null": None}   # steps that see test patients and why they may; None: they judge     [ours]
SHARED = ("train", "finetune", "msi")    # commands whose folds or splits several processes share out              [ours]
SAME_MODELS = ("merged", "pooled")   # they judge otherwise: nothing is trained again for them


# ---------------------------------------------------------------------------------------------------------------------
# Expression  [HE2RNA Methods, Cleaning and Preprocessing]
# ---------------------------------------------------------------------------------------------------------------------
def expressed(a):
    """(G,) bool: genes with a positive median over the samples, a (n, G) >= 0; 60,483 -> 30,839 on TCGA.

    The median is positive where at least half of the values are; so counted, without sorting the whole table.
    [HE2RNA Methods, Cleaning]
    """
    return 2 * np.count_nonzero(a, axis=0) >= len(a)


def log_expression(a):
    """a -> log10(1 + a), so that a few strong genes don't rule the squared error. [HE2RNA Methods, Preprocessing]"""
    return np.log10(1 + a)


def join(samples, key, ids, path="expression"):
    """Rows of samples.csv that have expression -> (kept sample rows, their row in the table, lines on what is left out).

    Joined by slide, or by `sample` (several slides of a sample share its row) where the table's first column says so, or
    doesn't say and samples.csv has that column.
    """
    key = key or ("sample" if "sample" in samples[0] else "slide")
    if key not in samples[0]:
        raise InputError(f"{path}: its rows are samples, but samples.csv has no column sample")
    at = {name: i for i, name in enumerate(ids)}
    kept = [s for s in samples if s[key] in at]
    alone = [s["slide"] for s in samples if s[key] not in at]
    owner = {}
    for s in kept:
        if owner.setdefault(s[key], s["patient"]) != s["patient"]:
            raise InputError(f"samples.csv: sample {s[key]} is of two patients, {owner[s[key]]} and {s['patient']}: its "
                             "expression would stand on both sides of a fold")
    unused = [i for i in ids if i not in owner]
    if not kept:
        raise InputError(f"{path}: none of its {len(ids)} rows (the first is {ids[0]!r}) is a {key} of samples.csv (the "
                         f"first is {samples[0][key]!r}); are genes the rows and {key}s the columns, "
                         "or does the first column name the wrong one of slide and sample?")
    return kept, np.array([at[s[key]] for s in kept]), {"slides without expression": alone,
                                                        f"expression rows ({key}) without a slide": unused}


def select(samples, types, project, what="slide", path="samples.csv"):
    """Rows of primary tumours (or of the given sample types), and of one project. -> (rows, what was left out)."""
    left, kind = {}, lambda text: SAMPLE_TYPES.get(text.strip(), text.strip()).lower()
    if "sample_type" in samples[0] and types != "all":
        wanted = list(map(kind, types.split(","))) if types else PRIMARY
        kept = [s for s in samples if kind(s["sample_type"]) in wanted]
        if not kept or types and set(wanted) - {kind(s["sample_type"]) for s in kept}:
            there = ", ".join(sorted({s["sample_type"] for s in samples}))
            raise InputError(f"no {what} has sample_type {', '.join(wanted)}; {path} has {there}: choose with --types, "
                             "or --types all")
        left[f"{what}s of other sample types than " + (types or "primary tumour")] = [
            s[what] for s in samples if kind(s["sample_type"]) not in wanted]
        samples = kept
    if project:
        names = sorted({s["project"] for s in samples})
        wanted = [{short(p.strip()), *MERGED.get(short(p.strip()), ())} for p in project.split(",")]
        if not all(w & set(map(short, names)) for w in wanted):
            raise InputError(f"--project {project}: {path} has {', '.join(names)}")
        samples = [s for s in samples if short(s["project"]) in set.union(*wanted)]
    return samples, left


def short(project):
    return project.removeprefix("TCGA-")


# The GDC's downloads: a folder of one file for each sample; whose it is stands in a sample sheet alone.
def read_sheet(folder, path=None):
    """(rows of a GDC sample sheet as dicts of file, project, patient, barcode, sample, sample_type; its path); by default
    the folder's only one. Columns are named as by the portal or by R (File.Name)."""
    there = [Path(path)] if path else sorted(Path(folder).glob("gdc_sample_sheet*.tsv"))
    if len(there) != 1:
        raise InputError(f"{folder}: {len(there) or 'no'} gdc_sample_sheet*.tsv there: name the one with --sheet FILE (GDC "
                         "portal, cart, Sample Sheet)")
    path, (header, lines) = there[0], read_rows(there[0])
    at = {re.sub(r"[\W_]+", " ", c).lower(): j for j, c in enumerate(header)}
    if {"id", "filename", "md5"} <= set(at):
        raise InputError(f"{path} is a manifest, which has no barcodes: download the Sample Sheet of the same cart (GDC "
                         "portal) for --sheet; expression --manifest checks files against this one")
    wanted = dict(file="file name", project="project id", patient="case id", barcode="sample id")
    lost = [c for c in wanted.values() if c not in at]
    if lost:
        raise InputError(f"{path}: no column {', '.join(lost)}; it has {few(header)[:80] or 'nothing'}: wanted the Sample "
                         "Sheet of a cart (GDC portal)")
    odd = next((i for i, row in enumerate(lines) if len(row) != len(header)), None)
    if odd is not None or not lines:
        raise InputError(f"{path}: " + ("no rows" if odd is None else f"row {odd + 1} has {len(lines[odd])} fields, the "
                                        f"header {len(header)}: is it whole?"))
    rows = [{name: row[at[c]].strip() for name, c in wanted.items()} for row in lines]
    for row, line in zip(rows, lines):
        tcga = row["barcode"].startswith("TCGA-")                              # an aliquot's goes on after the sample's 16
        row["sample"] = row["barcode"][:16] if tcga else row["barcode"]
        code = row["sample"][13:15] if tcga else "unknown"                     # newer sheets have no Sample Type
        row["sample_type"] = line[at["sample type"]].strip() if "sample type" in at else SAMPLE_TYPES.get(code, code)
    return rows, path


def ungzipped(name):
    return name.removesuffix(".gz")


def gdc_files(folder):
    """{name without .gz: path} of the files of FPKM-UQ in a folder, at any depth; logs and .partial have other names."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    found = {}
    for p in sorted(Path(folder).rglob("*")):
        if FPKM_UQ.search(p.name) and not p.name.startswith(".") and p.is_file():
            if found.setdefault(ungzipped(p.name), p) != p:
                raise InputError(f"{p} is there twice, also as {found[ungzipped(p.name)]}: remove one")
    return found


def read_manifest(path, found):
    """({name: md5}, {name: what is wrong}) of the files of FPKM-UQ in a GDC manifest: each must be found, of its size."""
    header, lines = read_rows(path)
    if not {"filename", "md5", "size"} <= set(header):
        raise InputError(f"--manifest {path}: no column filename, md5 or size; it has {few(header) or 'nothing'}")
    odd = next((i for i, line in enumerate(lines)
                if len(line) != len(header) or not line[header.index("md5")].strip()), None)
    if odd is not None:
        raise InputError(f"--manifest {path}: row {odd + 2} has no md5, or is not whole: download the manifest again")
    rows = [dict(zip(header, line)) for line in lines]                         # the portal's archives: filename id/name
    rows = {ungzipped(Path(row["filename"]).name): row for row in rows if FPKM_UQ.search(row["filename"])}
    size = {name: found[name].stat().st_size for name in rows if name in found}
    wrong = {name: f"{name}: " + (f"{size[name]} bytes, not {row['size']}" if name in size else "not there")
             for name, row in rows.items() if str(size.get(name)) != row["size"]}
    return {name: row["md5"].strip() for name, row in rows.items()}, wrong


def gene_name(text):
    """An Ensembl id without its version, which differs between GENCODE 22 (to release 31) and 36 (from 32); the copy of a
    gene on Y, ENSGR0000182378.11 in the one and ENSG00000182378.14_PAR_Y in the other, is ENSG00000182378_PAR_Y. [ours]"""
    return re.sub(r"^(ENS[A-Z]*\d+)\.\d+", r"\1", re.sub(r"^ENSGR(\d+\.?\d*)$", r"ENSG0\1_PAR_Y", text))


def read_gdc(path, md5=None):
    """(gene model, {column: texts}) of one file of FPKM-UQ; the older format has two columns and no header."""
    data = path.read_bytes()
    if md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{path.name}: its md5 is not the manifest's")
    try:
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise InputError(f"{path.name}: not whole ({e})") from None
    model = lines[0].removeprefix("# gene-model: ") if lines and lines[0].startswith("#") else "the older format"
    lines = [line for line in lines if line and not line.startswith(("#", "N_"))]
    header = lines.pop(0).split("\t") if lines and "_star_gene_counts" in path.name else ["gene_id", UQ_COLUMN]
    if not {"gene_id", UQ_COLUMN} <= set(header):
        raise InputError(f"{path.name}: no column gene_id or no {UQ_COLUMN}; it has {few(header)[:80]}")
    odd = next((line for line in lines if line.count("\t") != len(header) - 1), None)
    if odd is not None or not lines:
        raise InputError(f"{path.name}: " + ("no gene in it" if odd is None else f"{odd[:40]!r} is no line of {len(header)} "
                                        "columns: not whole, or no file of FPKM-UQ"))
    fields = "\t".join(lines).split("\t")                                      # a list a line would take three times as long
    return model, {c: fields[j::len(header)] for j, c in enumerate(header)}


def gather(files, tick):
    """The files as one table: [(path, sample, md5 or None)] -> a dict of a (n, G) float32, genes, shared (G,) bool, bad
    {row: why}, models {gene model: dict of files, genes}, symbols [(gene, name, biotype)], scaled and newer.

    shared: genes of all gene models there [ours]. FPKM-UQ stays as it is; only where files from before and since release 32
    meet, the newer are brought to the older scale, the paper's (scaled files) [ours]; newer: all are of the newer scale.
    """
    a, genes, places, models, symbols, bad, quartile = None, [], {}, {}, [], {}, np.full(len(files), np.nan)
    for i, (path, sample, md5) in enumerate(files):
        tick()
        try:
            model, column = read_gdc(path, md5)
            ids = tuple(column["gene_id"])
            values = tiling.parse_row(column[UQ_COLUMN], ids, sample, path.name)
        except (InputError, OSError) as e:
            bad[i] = f"{path.name}: {e.strerror}" if isinstance(e, OSError) else str(e)
            continue
        if (model, ids) not in places:
            own = {gene_name(g): j for j, g in enumerate(ids)}
            if len(own) < len(ids):
                raise InputError(f"{path}: {len(ids) - len(own)} of its {len(ids):,} genes stand there twice")
            if a is None:
                genes, shared, a = list(own), np.ones(len(own), bool), np.empty((len(files), len(own)), np.float32)
            first = models.setdefault(model, dict(path=path, genes=set(own), files=0))
            if set(own) != first["genes"]:
                raise InputError(f"{path} has {len(own):,} genes, {first['path']} {len(first['genes']):,}; "
                                 f"{len(set(own) ^ first['genes']):,} are not in both, though both are of {model}: one is "
                                 "not whole or was changed; download them again")
            places[model, ids] = np.array([own.get(g, 0) for g in genes])
            shared &= [g in own for g in genes]
            if "gene_name" in column and not symbols:
                symbols = list(zip(own, column["gene_name"], column.get("gene_type", [""] * len(ids))))
        a[i] = values[places[model, ids]]
        models[model]["files"] += 1
        if np.count_nonzero(values) >= UQ_LEAST:
            quartile[i] = np.quantile(values[values > 0], .75)
    newer = np.flatnonzero(quartile < UQ_BORDER) if (quartile > UQ_BORDER).any() else []
    for i in newer:                                                            # in place: the table may be all of the memory
        a[i] *= UQ_GENES
    return dict(a=a, genes=genes, shared=shared if genes else [], bad=bad, models=models, symbols=symbols, scaled=len(newer),
                newer=bool((quartile < UQ_BORDER).any() and not len(newer)))


def print_counts(rows, **columns):
    """How many different patients, samples ... each project has, merged ones first [HE2RNA Table 1]. columns: title=key."""
    groups = {**cancers([r["project"] for r in rows]), "all": np.ones(len(rows), bool)}
    print("".join(f"{title:>12}" for title in ("project", *columns)))
    for name, group in groups.items():
        counts = (len({r[key] for r, g in zip(rows, group) if g}) for key in columns.values())
        print(f"{name:>12}" + "".join(f"{n:12,}" for n in counts))


def load_bags(cohort, source, slides):
    """Super-tiles of all slides, read once: x (S, T, D) float16 tensor, mask (S, T) bool; T of the longest slide."""
    folder = Path(cohort) / "supertiles" / source
    S, T, D = len(slides), *tiling.whole_arrays(folder / f"{slides[0]}.npz")["means"].shape
    x, mask = torch.zeros((S, T, D), dtype=torch.float16), torch.zeros((S, T), dtype=torch.bool)
    for i, slide in enumerate(tiling.counted("super-tiles", slides, "slides")):
        z = tiling.whole_arrays(folder / f"{slide}.npz")
        x[i], mask[i] = torch.from_numpy(z["means"]), torch.from_numpy(z["mask"])
    longest = int(mask.sum(1).max())                                           # small slides have fewer than 100
    return x[:, :longest].contiguous(), mask[:, :longest].contiguous()


def in_memory(x, mask):
    """Batches of super-tiles: a function of [rows (b,), ...] that yields rows, x (b, T, D) float16 and mask (b, T) of
    each."""
    return lambda parts: ((rows, x[rows], mask[rows]) for rows in parts)


def from_disk(cohort, source, slides):
    """The same with all tiles of the slides, read ahead by a thread: memory holds a few batches, not the cohort."""
    def read(rows):
        bags = [tiling.load_features(cohort, source, slides[r])[0] for r in rows]
        x = np.zeros((len(bags), max(map(len, bags)), bags[0].shape[1]), np.result_type(*bags))
        mask = np.zeros(x.shape[:2], bool)
        for i, bag in enumerate(bags):
            x[i, :len(bag)], mask[i, :len(bag)] = bag, True
        return torch.from_numpy(x), torch.from_numpy(mask)

    def batches(parts):
        for rows, got in tiling.ordered_map(read, parts, 1):
            if isinstance(got, Exception):
                raise got
            yield rows, *got
    return batches


# ---------------------------------------------------------------------------------------------------------------------
# Model  [HE2RNA Methods, Model architecture]
# ---------------------------------------------------------------------------------------------------------------------
def top_k_mean(scores, mask, k):
    """Mean of the k highest tile scores of each gene: one slide-level prediction.

    scores (B, T, G) of any sign; mask (B, T) True for real tiles, at least one a slide; k >= 1. Returns (B, G).
    A slide with fewer than k tiles uses all it has. [HE2RNA Methods, Model architecture]
    The authors' code gives padding a score of 0, which outranks real negative tiles; here padding never counts. [ours]
    """
    k = min(k, scores.shape[1])
    top = scores.masked_fill(~mask[:, :, None], -torch.inf).topk(k, dim=1).values                   # (B, k, G)
    kept = mask.sum(1).clamp(max=k)                                                                 # (B,)
    return top.masked_fill(top == -torch.inf, 0).sum(1) / kept[:, None]


def padded_top_k_mean(scores, mask, k, rows):
    """The same as the authors' code does it: bags are padded to `rows` rows, whose score is 0 and competes for the k places,
    of which the first min(k, n) are averaged: tiles of -1, -2, -3 and five padded rows give 0 for every k. [HE2RNA code]
    """
    more = max(0, min(rows - scores.shape[1], k))                              # beyond k zeros none is kept
    scores = pad(scores * mask[:, :, None], (0, 0, 0, more))
    top = scores.topk(min(k, scores.shape[1]), dim=1).values                                        # (B, k, G), falling
    counts = torch.arange(top.shape[1], device=mask.device) < mask.sum(1, keepdim=True)             # (B, k)
    return (top * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True)


def rank_weights(n, ks):
    """(n,) weight of the tile of rank 1..n in the test-time prediction of a slide of n tiles: mean over ks of
    [rank <= k] / k.

    A k beyond n is n; the weights sum to 1. [HE2RNA Methods, Model architecture: "equivalent to calculating a weighted
    mean"]
    """
    k = torch.tensor(ks).clamp(max=n)[:, None]                                                      # (K, 1)
    return ((torch.arange(n) < k) / k).mean(0)


# The same two means without the (B, T, G) scores. [ours] A tile that is not among the k highest has no gradient, so:
#   forward    scores of a block of genes, of which only the *numbers* of the k highest tiles are kept (top_k_tiles);
#   backward   with M (G, N), 1/k of the incoming gradient at each chosen tile and 0 elsewhere, dW = M h and dh = M' W.
# k << T: M is sparse, and both products are sums of a few rows (embedding_bag). Else M is rebuilt, a block of genes at a
# time, for two matrix products. k >= T: the mean of the scores is the score of the mean. All three are exact.
def by_rows(function, scores):
    """A numpy function of the rows of a CPU tensor, spread over torch's threads where that pays (they take .5 ms to start).
    numpy's sort and partition use the vector unit: 12 and 16 µs for a gene of 8,000 tiles, where torch's take 80 and 440."""
    n = torch.get_num_threads() if scores.numel() > 2 ** 17 else 1
    if n == 1:
        return torch.from_numpy(function(scores.numpy()))
    with ThreadPoolExecutor(n) as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(lambda rows: function(rows.numpy()), scores.chunk(n)))))


def top_k_tiles(scores, k):
    """Which tiles are the k highest of each gene, in no order: scores (g, n) -> (g, k) int32."""
    if scores.is_cuda:
        return scores.topk(k, dim=1, sorted=False).indices.int()
    return by_rows(lambda rows: np.argpartition(rows, -k, axis=1)[:, -k:].astype(np.int32), scores)


def gene_blocks(n_genes, n_tiles):
    """Slices of genes whose scores of all tiles are at most BLOCK_SCORES numbers: what bounds the memory."""
    size = max(1, BLOCK_SCORES // n_tiles)
    return [slice(g, min(g + size, n_genes)) for g in range(0, n_genes, size)]


class TopKHead(torch.autograd.Function):
    """top_k_mean(h @ weight.T + bias, k) of the slides' tiles laid end to end: h (N, H), weight (G, H), bias (G,) -> (B, G).

    sizes: tiles of each slide, summing to N. Value and gradients are those of the direct way; between tiles of exactly
    equal score either may be chosen. precision "bfloat16": tiles are chosen by rounded scores, their mean stays float32.
    """

    @staticmethod
    def forward(ctx, h, weight, bias, sizes, k, precision):
        prediction, kept, number = h.new_empty(len(sizes), len(weight)), [], torch.int16 if len(h) < 2 ** 15 else torch.int32
        half = precision == "bfloat16" and k + RESCORE[0] < max(sizes) * RESCORE[1]
        if half:                                                               # what all tiles share does not rank them
            rounded = (h - h.mean(0)).bfloat16()
        for g in gene_blocks(len(weight), len(h)):                             # scores (g, N)
            scores = (weight[g].bfloat16() @ rounded.T).float() if half else torch.addmm(bias[g, None], weight[g], h.T)
            first = 0
            for b, (n, part) in enumerate(zip(sizes, scores.split(sizes, 1))):
                tiles = top_k_tiles(part, min(k, n))                                                # (g, k)
                if half:                                                       # float32 again, of the chosen alone
                    chosen = embedding_bag(tiles, h[first:first + n], mode="mean")                  # (g, H)
                    prediction[b, g] = (chosen * weight[g]).sum(1) + bias[g]
                else:
                    prediction[b, g] = part.gather(1, tiles.long()).mean(1)
                kept.append((tiles + first).to(number))
                first += n
        ctx.save_for_backward(h, weight)
        ctx.kept, ctx.sizes, ctx.k = kept, sizes, k
        return prediction

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):                                                   # (B, G)
        (h, weight), kept, slides = ctx.saved_tensors, iter(ctx.kept), range(len(ctx.sizes))
        dh, dweight = torch.zeros_like(h), torch.empty_like(weight)
        every = torch.arange(len(h), dtype=torch.int32, device=h.device)
        for g in gene_blocks(len(weight), len(h)):
            blocks = [next(kept) for _ in slides]
            share = torch.cat([(grad[b, g, None] / t.shape[1]).expand(t.shape) for b, t in zip(slides, blocks)], 1)
            tiles = torch.cat(blocks, 1).int()                               # (g, K), the non-zeros of M; share their values
            if ctx.k < max(ctx.sizes) * GATHER[h.device.type]:
                dweight[g] = embedding_bag(tiles, h, per_sample_weights=share, mode="sum")          # of each gene, its tiles
                tile, order = tiles.flatten().sort(stable=True)
                start = torch.searchsorted(tile, every, out_int32=True)        # of each tile, its genes
                dh += embedding_bag((order // tiles.shape[1]).int(), weight[g], start, mode="sum",
                                    per_sample_weights=share.flatten()[order])
            else:
                m = h.new_zeros(len(tiles), len(h)).scatter_(1, tiles.long(), share)                # (g, N)
                torch.mm(m, h, out=dweight[g])
                dh.addmm_(m.T, weight[g])
        return dh, dweight, grad.sum(0), None, None, None


def top_k_head(h, mask, layer, k, precision="float32"):
    """top_k_mean(layer(h), mask, k), exactly, in a fraction of its time and memory. h (B, T, H), mask (B, T) -> (B, G)."""
    sizes, h = mask.sum(1).tolist(), h.flatten(0, 1) if mask.all() else h[mask]                     # (N, H): real tiles
    if k >= max(sizes):
        return layer(torch.stack([tiles.mean(0) for tiles in h.split(sizes)]))
    return TopKHead.apply(h, layer.weight, layer.bias, sizes, k, precision)


def all_k_head(h, mask, layer, ks):
    """The mean over ks of top_k_mean(layer(h), mask, k): one pass and one sort for all k. Without gradient. (B, G)"""
    sizes, h = mask.sum(1).tolist(), h.flatten(0, 1) if mask.all() else h[mask]
    weights = [rank_weights(n, ks).flip(0).to(h) for n in sizes]                                    # the highest comes last
    prediction = h.new_empty(len(sizes), len(layer.weight))
    for g in gene_blocks(len(layer.weight), len(h)):
        scores = torch.addmm(layer.bias[g, None], layer.weight[g], h.T)                             # (g, N)
        for b, part in enumerate(scores.split(sizes, 1)):
            ranked = part.sort(1).values if h.is_cuda else by_rows(lambda rows: np.sort(rows, axis=1), part)
            prediction[b, g] = ranked @ weights[b]
    return prediction


class HE2RNA(nn.Module):
    """A multilayer perceptron on every tile, then the mean of the k best tiles of each gene.

    n_features D, n_genes G; hidden layers with ReLU, dropout between consecutive layers; ks: the list k is drawn from.
    The paper's "1D convolutions of kernel size 1" is the same linear layer on every tile. `precision`: see TopKHead.
    code: the flipped ones of CHOICES, of which padding, relu and k are the model's; pad_to: rows the authors pad a bag to.
    [HE2RNA Methods, Model architecture; hidden sizes and dropout: HE2RNA code]
    """

    def __init__(self, n_features, n_genes, hidden=HIDDEN, ks=KS_SUPERTILES, dropout=DROPOUT, precision="float32", code=(),
                 pad_to=tiling.N_SUPERTILES):
        super().__init__()
        sizes = (n_features, *hidden, n_genes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.dropout, self.ks, self.precision = nn.Dropout(dropout), tuple(ks), precision
        self.code, self.pad_to = tuple(code), pad_to

    def representation(self, x):
        """x (..., D) -> the last hidden layer (..., H), what the genes are read from."""
        for layer in self.layers[:-1]:
            x = self.dropout(layer(x).relu())
        return x

    def tile_scores(self, x):
        """x (B, T, D) -> score of every tile for every gene (B, T, G)."""
        return self.layers[-1](self.representation(x))

    def forward(self, x, mask, k=None):
        """x (B, T, D), mask (B, T) -> slide-level prediction (B, G), in log10(1 + FPKM-UQ).

        Training: one k for all slides and genes of an iteration, drawn from ks (torch's generator) if not given; the paper's
        "selects a number k at every iteration and for every gene" can also be read as a k per gene [HE2RNA code: one k].
        Evaluation: the mean over all of ks, and its positive part where relu is flipped.
        """
        if not self.training and "relu" in self.code:
            return self.slide_scores(x, mask, k).relu()                                             # [HE2RNA code]
        return self.slide_scores(x, mask, k)

    def slide_scores(self, x, mask, k):
        """The slide-level means of forward, before a ReLU."""
        per_gene = self.training and k is None and "k" in self.code
        if self.training and k is None and not per_gene:
            k = self.ks[int(torch.randint(len(self.ks), ()))]
        if per_gene or "padding" in self.code:                                 # the direct way: slower, for these two alone
            mean = lambda s, k: (padded_top_k_mean(s, mask, k, self.pad_to) if "padding" in self.code else
                                 top_k_mean(s, mask, k))
            scores = self.tile_scores(x)                                                            # (B, T, G)
            if not per_gene:
                return torch.stack([mean(scores, k) for k in ([k] if k is not None else self.ks)]).mean(0)
            drawn = torch.randint(len(self.ks), (scores.shape[2],)).to(x.device)                    # (G,) a k for each gene
            out = torch.empty_like(scores[:, 0])                                                    # (B, G)
            for i, k in enumerate(self.ks):
                out[:, drawn == i] = mean(scores[:, :, drawn == i], k)
            return out
        h, last = self.representation(x), self.layers[-1]                                           # (B, T, H)
        if k is not None:
            return top_k_head(h, mask, last, k, self.precision)
        if torch.is_grad_enabled():                                            # someone asks which tiles matter
            return torch.stack([top_k_head(h, mask, last, k) for k in self.ks]).mean(0)
        return all_k_head(h, mask, last, self.ks)


# ---------------------------------------------------------------------------------------------------------------------
# Training  [HE2RNA Methods, Training and evaluation]
# ---------------------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def predict_slides(model, bags, rows, batch=BATCH_SLIDES, tick=lambda n: None):
    """Predictions (len(rows), G) float32 numpy of the slides `rows`, in evaluation mode; bags: in_memory or from_disk."""
    model.eval()
    device, parts = next(model.parameters()).device, []
    for part, x, mask in bags(torch.as_tensor(rows).split(batch)):
        parts.append(model(x.to(device).float(), mask.to(device)).cpu().numpy())
        tick(len(part))
    return np.concatenate(parts)


def mean_r(prediction, y, projects):
    """One number to stop by: R per gene within each project, mean over genes, then over projects; None if there is none.
    [HE2RNA code; the paper is silent on stopping]"""
    per_project = []
    for p in np.unique(projects):
        if (projects == p).sum() >= stats.MIN_R:
            r = stats.pearson(prediction[projects == p], y[projects == p])                          # (G,)
            per_project += [r[~np.isnan(r)].mean()] if not np.isnan(r).all() else []
    return float(np.mean(per_project)) if per_project else None


def train_fold(model, bags, y, projects, names, train, valid, o, fold, folder):
    """Train one fold and leave `model` with the weights of its best epoch. Returns a dict on how it went.

    bags: in_memory or from_disk; y (S, G) float32 targets; names (S,); train, valid: rows. The state is saved after each
    epoch, and every draw of an epoch comes from (seed, fold, epoch): a run that was interrupted ends as one that was not.
    """
    device, state_file = next(model.parameters()).device, folder / f"fold{fold}.state.pt"
    mark, part_of_log = tiling.mark_of(state_file), tiling.log_path(folder, o.share)
    optimizer = torch.optim.Adam(model.parameters(), lr=o.lr, fused=True)        # one pass over memory, not seven
    state = dict(epoch=0, best_score=-np.inf, best_epoch=0, best=None, seconds=0.0, saw={})
    if state_file.is_file():
        state = tiling.load_checkpoint(state_file, device, model, [*state, "model", "optimizer"])
        optimizer.load_state_dict(state["optimizer"])
    by_r = max(np.unique(projects[valid], return_counts=True)[1], default=0) >= stats.MIN_R   # else too few slides for an R
    start, first, before, due = time.time(), state["epoch"], state["seconds"], tiling.seldom()
    later = len(range(fold, o.folds, o.share[1])) - 1                          # folds after this one, of this process
    for epoch in range(first + 1, o.epochs + 1):
        if epoch - 1 - state["best_epoch"] >= o.patience and state["best"] is not None:
            break
        draw = int(np.random.default_rng([o.seed, fold, epoch]).integers(2 ** 62))
        torch.manual_seed(draw)                                                # dropout, k
        order, loss_sum, began = torch.from_numpy(np.random.default_rng(draw).permutation(train)), 0.0, time.time()
        tick = progress(f"fold{fold} epoch {epoch}", len(train) + len(valid), "slides", end=False)
        saw(state["saw"], "weights of the network", order)
        model.train()
        for rows, x, mask in bags(order.split(o.batch)):
            prediction = model(x.to(device).float(), mask.to(device))                               # (B, G)
            loss = (prediction - torch.from_numpy(y[rows]).to(device)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(rows)
            tick(len(rows))
            if not np.isfinite(loss_sum):
                break
        if not np.isfinite(loss_sum) or not all(v.isfinite().all() for v in model.parameters()):
            raise InputError(f"fold {fold} epoch {epoch}: loss or weights are not finite any more, at the slides "
                             f"{few(names[rows.numpy()].tolist())}; {state_file} keeps epoch {epoch - 1}; a lower --lr "
                             "may help")
        rate = len(train) / (time.time() - began)
        r, valid_loss, score = None, None, epoch                           # nobody to choose by: the last epoch is the best
        if len(valid):
            saw(state["saw"], "choice of the epoch", valid)
            p = predict_slides(model, bags, valid, o.batch, tick)
            r, valid_loss = mean_r(p, y[valid], projects[valid]), float(np.square(p - y[valid]).mean())
            score = -valid_loss if not by_r else -1.0 if r is None else r
        if score > state["best_score"]:
            state.update(best_score=score, best_epoch=epoch, best={k: v.clone() for k, v in model.state_dict().items()})
        state.update(run=mark, epoch=epoch, model=model.state_dict(), optimizer=optimizer.state_dict(),
                     seconds=before + time.time() - start)
        entry = dict(fold=fold, epoch=epoch, loss=loss_sum / len(train), valid_loss=valid_loss, valid_r=r,
                     best_epoch=state["best_epoch"], slides_per_s=round(rate, 1))
        with open(part_of_log, "a") as f:
            f.write(json.dumps(entry) + "\n")
        save_file(state_file, lambda f: torch.save(state, f))
        if not due(epoch == o.epochs or epoch - state["best_epoch"] >= o.patience):
            continue
        left = (time.time() - start) / (epoch - first) * (o.epochs - epoch + o.epochs * later)
        show = lambda v, f: "  -  " if v is None else f"{v:{f}}"
        tiling.say(f"fold{fold} epoch {epoch:3d}/{o.epochs}  loss {entry['loss']:.4f}  "
                   f"valid loss {show(valid_loss, '.4f')}  valid R {show(r, '.3f')}  best epoch {state['best_epoch']:3d}  {rate:6.1f} slides/s  "
                   f"at most {clock(left)} left")
    model.load_state_dict(state["best"])
    by = "R" if by_r else f"loss ({len(valid)} validation slides are too few for R)" if len(valid) else "none: the last"
    return dict(best_epoch=state["best_epoch"], epochs=state["epoch"], seconds=state["seconds"], by=by, saw=state["saw"])


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation  [HE2RNA Methods, Training and evaluation; Statistics and reproducibility]
# ---------------------------------------------------------------------------------------------------------------------
def cancers(projects):
    """{name: (S,) bool} of the groups within which R is computed, never over several: merged subtypes first (LUNG =
    LUAD + LUSC ...) and each subtype beside it [HE2RNA Table 1], then every other project."""
    names, groups = np.array([short(p) for p in projects]), {}
    for merged, parts in MERGED.items():
        if sum((names == p).any() for p in parts) > 1:
            groups[merged] = np.isin(names, parts)
    for p in np.unique(names):
        groups[str(p)] = names == p
    return groups


def fold_r(prediction, y, fold, group, k):
    """R of each gene in each fold's test slides of one group: (k, G), nan where there is no value."""
    r = np.full((k, y.shape[1]), np.nan)
    for f in range(k):
        rows = group & (fold == f)
        if rows.sum() >= stats.MIN_R:
            r[f] = stats.pearson(prediction[rows], y[rows])
    return r


def judged_in(fold, config):
    """(fold of each slide, number of folds) within which R is computed: all one fold where `pooled` is flipped."""
    return (np.zeros_like(fold), 1) if "pooled" in config["code"] else (fold, config["folds"])


def mean_of_values(r):
    """Mean over the first axis of what has a value; nan where nothing has."""
    n = (~np.isnan(r)).sum(0)
    return np.where(n > 0, np.nansum(r, 0) / np.maximum(n, 1), np.nan)


def evaluate(prediction, y, fold, projects, k, untrained=None, null="t"):
    """Per cancer: a dict with its slides, R of each fold (k, G), R their mean (G,), and one-sided p under each null.

    t: one R of n slides, nothing correlated, n those of the folds that gave an R. permutation: slides change places within
    their fold; over all orders a fold's R has mean 0 and variance 1 / (n_f - 1) exactly, so their mean scatters as one R
    of 1 + 1 / variance slides: nothing needs to be drawn. untrained: stats.null_fit of the R of untrained models, given as
    {cancer: (null R of each gene, G)}. `null` names the one whose p, corrected over the genes, decides: hs, bh. [HE2RNA
    Methods, Statistics: the untrained model, Holm-Šidák; Benjamini-Hochberg beside it; the other two nulls are ours]
    """
    results = {}
    for name, group in cancers(projects).items():
        r = fold_r(prediction, y, fold, group, k)                              # (k, G)
        size = np.array([(group & (fold == f)).sum() for f in range(k)])[:, None] * ~np.isnan(r)   # slides behind each R
        variance = mean_of_values(np.where(size > 0, 1 / np.maximum(size - 1, 1), np.nan)) / np.maximum((size > 0).sum(0), 1)
        mean, n, m = mean_of_values(r), size.sum(0), 1 + 1 / variance          # (G,), (G,), (G,)
        p = dict(t=stats.pearson_p(mean, n), permutation=stats.pearson_p(mean, m))
        fits = dict(t=(0.0, n.max(initial=0)), permutation=(0.0, np.nan_to_num(m).max(initial=0)))
        if untrained is not None:
            fits["untrained"] = stats.null_fit(untrained[name])
            p["untrained"] = stats.null_p(mean, *fits["untrained"])
        results[name] = dict(slides=int(group.sum()), folds=r, r=mean, n=n, all_p=p, fits=fits, null=null, p=p[null],
                             hs=stats.holm_sidak(p[null]), bh=stats.benjamini_hochberg(p[null]))
    return results


def r_sign(e, null):
    """The smallest R that is significant under a null: its p is the first Šidák step over the cancer's genes. [HE2RNA Fig.
    2a]"""
    tested = max(1, int((~np.isnan(e["r"])).sum()))
    return float(stats.null_threshold(-np.expm1(np.log1p(-ALPHA) / tested), *e["fits"][null]))


def separate(names, code=()):
    """Cancers that count, each slide once: a merged cancer stands for its subtypes [HE2RNA Table 1: 28 cancers], or they
    for it where `merged` is flipped."""
    merged = [m for m in MERGED if m in names]
    others = merged if "merged" in code else {p for m in merged for p in MERGED[m]}
    return [n for n in names if n not in others]


def code_of(folder):
    """The flipped choices of a run."""
    return (tiling.load_json(Path(folder) / "config.json") or {}).get("code", [])


@torch.inference_mode()
def untrained_r(config, data, bags, o, device, folder):
    """{cancer: (M copies, G)} R of M models of the same architecture that learned nothing; kept in null.npz of the run.

    Each predicts every held-out slide, a new one for each fold, as trained ones do. Few genes: more outputs, each judged
    against a gene, so that there is a null to fit. [HE2RNA Methods, Statistics and reproducibility]
    """
    y, fold, groups = data["y"], data["fold"], cancers(data["projects"])
    within, k = judged_in(fold, config)
    M, G = o.null_models, y.shape[1]
    copies = -(-MIN_NULL // (M * G))
    saved = tiling.load_arrays(folder / "null.npz") or {}
    if saved.pop("models", None) == M and saved.keys() == groups.keys():
        return saved
    r, tick = {name: [] for name in groups}, progress("untrained models", M * config["folds"], "folds")
    for m in range(M):
        prediction = np.zeros((len(y), G * copies), np.float32)
        for f in range(config["folds"]):
            torch.manual_seed(int(np.random.default_rng([o.seed, f, 1 + m]).integers(2 ** 62)))
            model = HE2RNA(config["n_features"], G * copies, config["hidden"], config["ks"], code=config["code"],
                           pad_to=config["pad_to"]).to(device)
            if {"padding", "relu", "pooled"} & set(config["code"]) and "bias" not in config["code"]:
                # a shift of a fold's scores changes no R within it, but where zeros or other folds have a say
                model.layers[-1].bias.copy_(torch.from_numpy(np.tile(y[fold != f].mean(0), copies)))
            rows = np.flatnonzero(fold == f)
            if len(rows):
                prediction[rows] = predict_slides(model, bags, rows, o.batch)
            tick()
        for name, group in groups.items():
            for c in range(copies):
                r[name].append(mean_of_values(fold_r(prediction[:, c * G:(c + 1) * G], y, within, group, k)))
    r = {name: np.array(rows, np.float32) for name, rows in r.items()}
    save_file(folder / "null.npz", lambda f: np.savez(f, models=M, **r))
    return r


def write_genes(path, genes, results):
    """genes.csv: a row per cancer and gene, best first, with p under each null; hs and bh correct the one that decides.

    An empty R means no value (the gene or its prediction is constant).
    """
    one = next(iter(results.values()))
    nulls, k = sorted(one["all_p"]), len(one["folds"])
    header = ["gene", "project", "n", "R", *(f"p_{null}" for null in nulls), "p_holm_sidak", "p_bh", "significant_hs",
              "significant_bh", *(f"R_fold{f}" for f in range(k))]

    def quoted(cells):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue()[:-1]

    def write(f):
        names = [quoted([g]) for g in genes]
        row = "%d,%.6g" + ",%.6g" * len(nulls) + ",%.6g,%.6g,%d,%d" + ",%.6g" * k + "\n"   # one formatting per row: fast
        f.write((quoted(header) + "\n").encode())
        for name, e in results.items():
            order, project = np.lexsort((-np.nan_to_num(e["r"], nan=-2), e["p"])), quoted([name])
            columns = (e["n"], e["r"], *(e["all_p"][null] for null in nulls), e["hs"], e["bh"],
                       e["hs"] < ALPHA, e["bh"] < ALPHA, *e["folds"])
            cells = zip(*(c[order].tolist() for c in columns))
            f.write("".join(f"{names[j]},{project}," + (row % c).replace("nan", "")         # no value: an empty cell
                            for j, c in zip(order.tolist(), cells)).encode())
    save_file(path, write)


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------
def plot_r(results, path, code=()):
    """R per cancer, the smallest significant R (triangle) and the number of significant genes (Fig. 2a); beside it, how
    many genes are significant in at least so many cancers (Fig. 2b)."""
    at_least = stats.recurrent(np.array([results[n]["hs"] < ALPHA for n in separate(results, code)]))[1]
    with tiling.figure(path, 1, 2, figsize=(max(8, 4 + .8 * len(results)), 4),
                       width_ratios=(max(2, .4 * len(results)), 1)) as (ax, many):
        for i, (name, e) in enumerate(results.items()):
            r = e["r"][~np.isnan(e["r"])]
            if len(r) > 1 and np.ptp(r) > 0:
                drawn = ax.violinplot(r, [i], widths=.8, showextrema=False, showmedians=True)
                drawn["cmedians"].set_color(tiling.BLUE)
                drawn["bodies"][0].set_facecolor(tiling.BLUE)
            label = f"R for significance (Holm–Šidák, {e['null']} null)" if i == 0 else None
            ax.plot(i, r_sign(e, e["null"]), "k^", ms=6, label=label)
            ax.annotate(f"{(e['hs'] < ALPHA).sum():,}", (i, 1.02), ha="center", color=tiling.ORANGE, annotation_clip=False)
        ax.axhline(0, color="grey", lw=.5)
        ax.set(xticks=range(len(results)), ylabel="R over slides, mean of the folds", ylim=(-1, 1.12))
        ax.set_xticklabels([f"{name}\nn = {e['slides']}" for name, e in results.items()], fontsize=8)
        ax.set_title("Prediction of each gene; number: significant genes", fontsize=10)
        ax.legend(loc="lower right", fontsize=8)
        many.bar(range(1, len(at_least) + 1), np.maximum(at_least, .5), color=tiling.BLUE)
        many.set(xlabel="in at least so many cancers", ylabel="significant genes", yscale="log", ylim=(.5, None))
        many.set_xticks(range(1, len(at_least) + 1))


def plot_null(results, untrained, permuted, path):
    """R of untrained models, of permuted slides, and the laws fitted to them, by cancer; and where R becomes significant."""
    columns, rows, grid = min(4, len(results)), -(-len(results) // 4), np.linspace(-1, 1, 801)
    with tiling.figure(path, rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False) as axes:
        for ax in axes.flat[len(results):]:
            ax.axis("off")
        for ax, (name, e) in zip(axes.flat, results.items()):
            if np.isnan(e["r"]).all():
                continue
            for r, what, look in ((untrained[name], "untrained models", dict(color=tiling.BLUE, alpha=.5)),
                                  (permuted[name], "slides permuted", dict(color="grey", histtype="step")),
                                  (e["r"], "trained", dict(color=tiling.ORANGE, histtype="step"))):
                ax.hist(r[~np.isnan(r)], 60, density=True, label=what, **look)
            for null, style in (("untrained", "k-"), ("permutation", "k:")):
                tail = stats.null_p(grid, *e["fits"][null])
                ax.plot((grid[1:] + grid[:-1]) / 2, -np.diff(tail) / np.diff(grid), style, lw=1,
                        label=f"{null}: n = {e['fits'][null][1]:.0f}")
            ax.set(xlim=(-1, 1), ylim=(0, 1.6 * ax.get_ylim()[1]), yticks=[], xlabel="R")
            ax.set_title(f"{name}: {e['slides']} slides, R_sign {r_sign(e, 'untrained'):.2f}", fontsize=9)
            ax.legend(fontsize=6)


def best_genes(results, n=6):
    """The n (project, gene index, R) of smallest p, each gene once."""
    rows = sorted((e["p"][j], -e["r"][j], name, j) for name, e in results.items()
                  for j in np.argsort(np.where(np.isnan(e["p"]), 2, e["p"]))[:n] if not np.isnan(e["p"][j]))
    seen = set()
    return [(name, j, -r) for _, r, name, j in rows if not (j in seen or seen.add(j))][:n]


def interval(prediction, y, patients, fold, rows, rng):
    """'low to high' of R of one gene, prediction and y (S, 1), over the patients of some rows."""
    low_high = stats.bootstrap_r(*(v[rows] for v in (prediction, y, patients, fold)), stats.N_DRAWS, rng)
    return "{:.2f} to {:.2f}".format(*(v[0] for v in low_high))


def plot_scatter(best, genes, prediction, y, fold, groups, path):
    """Predicted against true expression of six genes; colours are folds, each predicted by the model that never saw it."""
    with tiling.figure(path, 2, 3, figsize=(9, 6)) as axes:
        for ax, (name, j, r) in zip(axes.flat, best):
            rows = groups[name]
            ax.scatter(y[rows, j], prediction[rows, j], c=fold[rows], cmap="viridis", s=14)
            ax.set_title(f"{genes[j]} in {name}: R = {r:.2f}", fontsize=9)
            ax.set(xlabel="true log10(1 + FPKM-UQ)", ylabel="predicted")
        for ax in axes.flat[len(best):]:
            ax.axis("off")


def summary(results):
    """Rows of the table of cancers: name, slides, genes with a value, mean and median R, significant genes."""
    for name, e in results.items():
        r = e["r"][~np.isnan(e["r"])]
        mean, median = (f"{np.mean(r):.3f}", f"{np.median(r):.3f}") if len(r) else ("no value", "no value")
        yield name, e["slides"], len(r), mean, median, *(int((e[c] < ALPHA).sum()) for c in ("hs", "bh"))


def planted(cohort, genes, results):
    """For a simulated cohort: by programme, how many genes were found; what follows nothing must not be. Rows, or None."""
    own = tiling.planted_programmes(cohort, genes)
    return own and [(p, name, int(of.sum()), f"{mean_of_values(e['r'][of]):.3f}",
                     *(int((e[c][of] < ALPHA).sum()) for c in ("hs", "bh"))) for p, of in own.items() for name, e in results.items()]


def nulls_table(results):
    for name, e in results.items():
        for null in ("t", "permutation", "untrained"):
            p, n = e["all_p"][null], e["fits"][null][1]
            yield (name, null, f"{n:.0f}", f"{r_sign(e, null):.3f}", *(int((f(p) < ALPHA).sum()) for f in
                                                                       (stats.holm_sidak, stats.benjamini_hochberg)))


NULLS_HEADER = ("cancer", "null", "n", "R_sign", "HS", "BH")
SUMMARY_HEADER = ("cancer", "slides", "genes", "mean R", "median R", "significant HS", "significant BH")


def certificate(data, k):
    """Lines on how even the folds are: patients of each project in each, and chi-square of projects against folds."""
    counts, chi2, freedom, p = stats.fold_balance(data["patients"], data["projects"], data["fold"], k)
    return [table(("project", *(f"fold {f}" for f in range(k))), [(name, *row) for name, row in counts.items()]), "",
            "Patients of each project. " + (
                f"Chi-square of projects against folds {chi2:.2f}, {freedom} degrees of freedom, p = {p:.2g}: near 1 where "
                "the folds are more even than by lot, small where a fold has more of a project than others." if freedom else
                "One project: nothing to spread evenly.")]


def write_report(folder, cohort, config, data, results, prediction, notes, ledgers, seconds):
    """report.md and its pictures; genes.csv, predictions.npz and folds.csv stand beside it."""
    genes, y, fold, coding, code = data["genes"], data["y"], data["fold"], data.get("coding"), config["code"]
    names, (within, k) = separate(results, code), judged_in(fold, config)
    groups, truth = cancers(data["projects"]), planted(cohort, genes, results)
    leaks, seen = tiling.ledger_lines(ledgers, tested_in(data, config["folds"]), MAY_SEE, data["encoder"])
    plot_r(results, folder / "r_distribution.png", code)
    plot_scatter(best_genes(results), genes, prediction, y, fold, groups, folder / "scatter.png")
    small = [name for name, rows in groups.items() if 0 < rows.sum() < SMALL_FOLD * k]
    significant = {c: np.array([results[n][c] < ALPHA for n in names]) for c in ("hs", "bh")}       # (P, G)
    (in_hs, at_least), (in_bh, _) = (stats.recurrent(s) for s in significant.values())
    mean = mean_of_values(np.array([results[n]["r"] for n in names]))                               # (G,)
    order = np.lexsort((-np.nan_to_num(mean), -in_hs))
    save_csv(folder / "recurrent.csv", ("gene", "cancers_hs", "cancers_bh", "mean_R"), (
        (genes[j], in_hs[j], in_bh[j], "" if np.isnan(mean[j]) else f"{mean[j]:.4g}") for j in order))

    interval_of = lambda j, name: interval(prediction[:, j:j + 1], y[:, j:j + 1], data["patients"], within, groups[name],
                                           np.random.default_rng(config["seed"]))
    text = [
        f"# HE2RNA: {folder.name}", "",
        *(["**SIMULATED cohort: drawn slides and planted expression, no patient.**", ""] if truth else []),
        *leaks,
        *(["Turned to their other side (`python he2rna.py choices`): "
           + "; ".join(f"{c}: {switches(CHOICES, 'train')[c]}" for c in code) + ".", ""] if code else []),
        f"{len(y)} slides of {len(set(data['patients']))} patients, {len(genes):,} genes "
        + (f"of the run {config['from_run']['name']}, its models fine-tuned on all tiles" if "from_run" in config else
           "unfiltered" if "genes" in code else f"with a positive median (of {config['genes_in_table']:,})")
        + f", {config['folds']} folds by {config['folds_by']}. R is Pearson's over the slides of a cancer "
        + ("of all folds together" if "pooled" in code else "within a fold's test part")
        + ", never over several cancers" + ("" if "pooled" in code else ", and the mean of the folds")
        + ". HS is Holm–Šidák, BH Benjamini–Hochberg, over all genes of "
        f"the cancer, significant below {ALPHA}, of the one-sided p under the {results[names[0]]['null']} null.", "",
        table(SUMMARY_HEADER, summary(results)), "", "![Distribution of R](r_distribution.png)", "",
        "## The three nulls", "", "The smallest R that is significant (first Šidák step) and the genes significant by "
        "Holm–Šidák and by Benjamini–Hochberg under each. t: one R of n slides. permutation: the mean of folds of so many "
        "slides. untrained: R of models of the same architecture that learned nothing; n there is of how many slides one R "
        "scatters as theirs do.", "", table(NULLS_HEADER, nulls_table(results)), "",
        *([f"**Folds of fewer than {SMALL_FOLD} test slides ({', '.join(small)}): no null holds there**; of runs on noise "
           "with 5 folds of 4 slides one in six has a false gene by Holm–Šidák, with 5 of 8 one in twenty.", ""]
          if small else []),
        "![Nulls](null.png)", "",
        "## Best genes", "", "95 % interval: over patients drawn with replacement, the models as they are.", "",
        table(("gene", "cancer", "n", "R", "95 %", "p (HS)"), [
            (genes[j], name, results[name]["n"][j], f"{r:.3f}", interval_of(j, name), f"{results[name]['hs'][j]:.2g}")
            for name, j, r in best_genes(results, 20)]), "", "![Predicted against true](scatter.png)", ""]
    if truth:
        text += ["## Against what was planted", "", "Housekeeping and noise genes follow nothing on the slide.", "",
                 table(("programme", "cancer", "genes", "mean R", "significant HS", "significant BH"), truth), ""]
    text += ["## Genes significant in several cancers", ""]
    if coding is None:
        text += [table(("at least", "genes"), enumerate(at_least, 1)), ""]
    else:
        both = zip(range(1, len(at_least) + 1), at_least, stats.recurrent(significant["hs"][:, coding])[1])
        text += [table(("at least", "genes", "protein-coding"), both), "", "## Protein-coding genes", "",
                 table(("cancer", "HS", "BH"), [(name, *(int((e[c][coding] < ALPHA).sum()) for c in ("hs", "bh")))
                                                for name, e in results.items()]), data["coding_note"], ""]
    if len(names) > 1 and in_hs.max(initial=0) > 1:
        text += ["First (all in recurrent.csv) by number of cancers, then by mean R: "
                 + ", ".join(f"{genes[j]} ({in_hs[j]})" for j in order[:30] if in_hs[j] > 1) + ".", ""]
    text += ["## Folds", "", table(("fold", "test slides", "best epoch", "epochs run", "chosen by", "training time"),
             [(f, int((fold == f).sum()), n["best_epoch"], n["epochs"], n["by"], clock(n["seconds"]))
              for f, n in enumerate(notes)]), "", *certificate(data, config["folds"]), "",
             *seen, "## Left out", "",
             *([f"- {len(names)} {what}: {', '.join(names)}" for what, names in data["left_out"].items() if names]
               + [f"- slide {name} failed: {why}" for name, why in data["failed"].items()] or ["Nothing."]),
             "", "## Settings", "", *(f"- {k}: {v}" for k, v in config.items()),
             f"- run time of this call: {clock(seconds)}", ""]
    save_text(folder / "report.md", text)


# ---------------------------------------------------------------------------------------------------------------------
# Signatures and enrichment  [HE2RNA Results; Methods, GSEA signatures, Statistics and reproducibility; Fig. 2c-e, 3]
# ---------------------------------------------------------------------------------------------------------------------
def read_results(folder):
    """genes.csv of a run: (genes, {cancer: dict of r (G,), hs and bh (G,) bool}); a gene without R is nan and False."""
    path, tables = Path(folder) / "genes.csv", {}
    if not path.is_file():
        raise InputError(f"{path} is missing: give the folder of a finished run, such as COHORT/runs/he2rna")
    header, rows = read_rows(path)
    if not {"gene", "project", "R", "significant_hs", "significant_bh"} <= set(header) or not rows:
        raise InputError(f"{path}: not the genes.csv of a run; it has the columns {few(header)}")
    odd = next((row for row in rows if len(row) != len(header)), None)
    gene, project, r, hs, bh = (header.index(c) for c in ("gene", "project", "R", "significant_hs", "significant_bh"))
    for row in rows if odd is None else ():
        tables.setdefault(row[project], {})[row[gene]] = number(row[r]), row[hs] == "1", row[bh] == "1"
    if len({frozenset(table) for table in tables.values()}) != 1:
        why = "its cancers have different genes" if odd is None else f"{','.join(odd)[:40]!r} is no row of it"
        raise InputError(f"{path}: not whole, {why}: run the command that made it again")
    genes = sorted(next(iter(tables.values())))
    return genes, {name: dict(zip(("r", "hs", "bh"), map(np.array, zip(*(table[g] for g in genes)))))
                   for name, table in tables.items()}


def read_gene_table(path):
    """({id without version: symbol}, ids and symbols that are protein-coding, or None) of a csv or tsv with columns for the
    id (gene_id, ensembl), the name (symbol, gene_name) and, if it has one, the biotype (gene_type): GENCODE's or BioMart's
    names."""
    options = dict(id=("gene_id", "ensembl", "ensembl_gene_id", "gene stable id", "id"),
                   symbol=("symbol", "gene_name", "hgnc_symbol", "gene name", "gene"),
                   biotype=("biotype", "gene_type", "gene_biotype", "gene type"))
    header, rows = read_rows(path)
    lower = [c.lower() for c in header]
    column = {k: next((lower.index(n) for n in names if n in lower), None) for k, names in options.items()}
    if (column["id"] is None and column["symbol"] is None) or (column["symbol"] is None and column["biotype"] is None):
        raise InputError(f"--gene-table {path}: wanted two of the columns gene_id, symbol and biotype; it has {few(header)}")
    rows = [[row[j].strip() if j is not None else "" for j in column.values()] for row in rows if len(row) == len(header)]
    rows = [(i.split(".")[0], symbol, biotype) for i, symbol, biotype in rows]                      # without the version
    coding = {name for *names, biotype in rows if biotype == "protein_coding" for name in names}
    return {i: symbol for i, symbol, _ in rows if i and symbol}, coding if column["biotype"] is not None else None


def as_symbols(genes, symbol):
    """Names as gene sets use them: Ensembl ids without version, by the table their symbols. -> (names, a line on what is
    lost)."""
    ids = [re.match(r"(ENS[A-Z]*G\d+)?", g).group(1) for g in genes]
    names = [symbol.get(i or g, i or g) for g, i in zip(genes, ids)]
    lost, twice = [g for g, i in zip(genes, ids) if i and i not in symbol], len(names) - len(set(names))
    said = [f"{len(lost):,} of {len(genes):,} genes have no symbol ({few(lost, 3)}) and count only in sets of Ensembl ids: "
            "give --gene-table"] * bool(lost) + [f"{twice:,} genes share a name with another"] * bool(twice)
    return names, "; ".join(said)


def read_sets(paths):                                                           # same in histcode.py
    """{set: genes} of .gmt files. InputError on what can't be read."""
    try:
        return stats.read_gmt(*paths)
    except (ValueError, OSError) as e:
        raise InputError(f"--gmt: {e}") from None


def pick_signatures(asked, sets):
    """{name: (genes, line on what is missing)}: the paper's six and housekeeping genes, or 'NAME=SET,SET', or a set's
    name."""
    wanted = {}
    for text in asked or [*stats.SIGNATURES, *(n for n in sets if "HOUSEKEEPING" in n.upper())]:
        name, _, parts = text.partition("=")
        sources = [p.strip() for p in parts.split(",") if p.strip()] or stats.SIGNATURES.get(name.strip()) or [name.strip()]
        there = [p for p in sources if p in sets]
        if asked and not there:
            near = difflib.get_close_matches(sources[0].upper(), list(sets), 3)
            nearest = f"; nearest: {', '.join(near)}" if near else ""
            raise InputError(f"--signature {text}: the .gmt files have no set {', '.join(sources)}{nearest}; built in: "
                             + ", ".join(stats.SIGNATURES))
        missing = [p for p in sources if p not in sets]
        enough = len(there) >= min(2, len(sources))                            # a gene must stand in two of several sets
        line = f"without {', '.join(missing)}, in none of the .gmt files" + ("" if enough else ": two sets are needed")
        wanted[name.strip()] = stats.combine_sets([sets[p] for p in there]) if enough else (), line if missing else ""
    return wanted


def plot_signatures(path, observed, chance, names, n_cancers, label):
    """Each signature in each cancer: its value against that of random lists, with the identity line (Fig. 3)."""
    ends = [np.nanmin([observed, chance]), np.nanmax([observed, chance])]
    with tiling.figure(path, figsize=(6.4, 5)) as ax:
        for i, name in enumerate(names):
            ax.scatter(chance[i], observed[i], s=16, label=name, color=f"C{i % 10}")
        ax.plot(ends, ends, "k:", lw=.8)
        ax.set(xlabel=f"{label} of random lists", ylabel=f"{label} of the signature")
        ax.set_title(f"{n_cancers} cancer{'s' * (n_cancers > 1)}, a point each", fontsize=9)
        ax.legend(fontsize=7)


def signatures(o):
    """Are the genes of a pathway better predicted than random lists of as many genes? (Fig. 3)"""
    tiling.need_matplotlib()
    genes, results = read_results(o.run)
    if o.lists < 1:
        raise InputError(f"--lists {o.lists}: must be at least 1")
    names, note = as_symbols(genes, read_gene_table(o.gene_table)[0] if o.gene_table else {})
    wanted, projects = pick_signatures(o.signature, read_sets(o.gmt)), separate(results, code_of(o.run))
    r = np.stack([results[p]["r"] for p in projects], 1)                                            # (G, P)
    significant = np.stack([results[p][o.correction] for p in projects], 1)
    members = np.array([np.isin(names, list(g)) if g else np.zeros(len(names), bool) for g, _ in wanted.values()])  # (S, G)
    z = tiling.whole_arrays(Path(o.run) / "predictions.npz", genes="UG", truth="fSG")
    level, rng = dict(zip(z["genes"].tolist(), z["truth"].mean(0))), np.random.default_rng(o.seed)
    lost = [g for g in genes if not np.isfinite(level.get(g, np.nan))]
    if lost:
        raise InputError(f"{o.run}: predictions.npz has no expression of {few(lost)}, which genes.csv has: run the "
                         "command that made both again")
    bins = stats.expression_bins(np.array([level[g] for g in genes]))
    plain, matched = (stats.random_list_test(r, significant, members, o.lists, rng, b) for b in (None, bins))
    columns = {"R_p": plain["r"], "R_o": plain["r_random"], "p": plain["p_r"],                      # each (S, P)
               "f_p": plain["share"], "f_o": plain["share_random"], "p (share)": plain["p_share"],
               "R_o matched": matched["r_random"], "p matched": matched["p_r"],
               "f_o matched": matched["share_random"], "p (share) matched": matched["p_share"]}
    header = ("signature", "cancer", "genes in it", "with R", *columns)
    rows = [(name, p, len(g), plain["size"][i, c],
             *("" if np.isnan(v[i, c]) else f"{v[i, c]:.4g}" for v in columns.values()))
            for i, (name, (g, _)) in enumerate(wanted.items()) for c, p in enumerate(projects)]
    folder = Path(o.run) / "signatures"
    save_csv(folder / "signatures.csv", header, rows)
    for k, label in (("r", "mean R"), ("share", "share of significant genes")):
        if np.isfinite(plain[k]).any():
            plot_signatures(folder / f"{k}.png", plain[k], plain[k + "_random"], list(wanted), len(projects), label)
    beaten = [(name, f"{(t['p_r'][i] < ALPHA).sum()} and {(t['p_share'][i] < ALPHA).sum()}", which)
              for i, name in enumerate(wanted) for t, which in ((plain, "any genes"), (matched, "genes of like expression"))
              if t["size"][i].any()]
    empty = [name for i, name in enumerate(wanted) if not plain["size"][i].any()]
    remarks = [f"- {name}: {line}" for name, (_, line) in wanted.items() if line] + [
        f"- {name}: no gene of it was measured; no test" for name in empty] + [f"- {note}"] * bool(note)
    save_text(folder / "report.md", [
        f"# Signatures in {o.run}", "", f"{len(genes):,} genes, {len(projects)} cancers; {o.lists:,} random lists of the "
        "same length. R_p, f_p: mean R and share of significant genes of the signature; R_o, f_o: of the lists; p: share of "
        "lists (and the signature) that reach it, not corrected for the number of tests. matched: lists of genes of like "
        "mean expression. The genes of a signature vary together, those of a list do not: p tells that these genes stand "
        "out, not that their pathway would again. Who saw whom: the signatures, published sets, no patient of this run; the "
        "mean expression all of them, by design, for it judges and nothing learns from it.", "", *remarks, "",
        table(header, rows), "",
        "![R](r.png) ![Share](share.png)", "",
        f"## In how many of {len(projects)} cancers p < {ALPHA} (mean R and share)", "",
        table(("signature", "cancers", "against"), beaten), ""])
    print("\n".join([table(header, rows), *remarks, f"report: {folder / 'report.md'}"]))
    return 0


def enrich(o):
    """Which pathways the well-predicted genes belong to: Fisher's exact test of every set, Benjamini-Hochberg (Fig. 2c-e).
    """
    tiling.need_matplotlib()
    genes, results = read_results(o.run)
    symbol, known_coding = read_gene_table(o.gene_table) if o.gene_table else ({}, None)
    (names, note), sets, projects = as_symbols(genes, symbol), read_sets(o.gmt), separate(results, code_of(o.run))
    if o.min_r is not None and not -1 <= o.min_r <= 1:
        raise InputError(f"--min-r {o.min_r:g}: an R lies between -1 and 1")
    if o.at_least is not None and not 1 <= o.at_least <= len(projects):
        raise InputError(f"--at-least {o.at_least}: the run has {len(projects)} cancer{'s' * (len(projects) > 1)}")
    if o.at_least is not None and (o.project or o.min_r is not None):
        raise InputError("--at-least counts over all cancers: leave --project and --min-r out")
    groups = {}
    if o.at_least is not None:
        counted, _ = stats.recurrent(np.array([results[p][o.correction] for p in projects]))
        measured = np.any([~np.isnan(results[p]["r"]) for p in projects], axis=0)
        groups[f"at-least-{o.at_least}"] = counted >= o.at_least, measured
    else:
        asked = [short(o.project)] if o.project else projects
        if asked[0] not in results:
            raise InputError(f"--project {o.project}: the run has {', '.join(results)}")
        for p in asked:
            r, significant = results[p]["r"], results[p][o.correction]
            groups[p] = np.nan_to_num(r, nan=-2) > o.min_r if o.min_r is not None else significant, ~np.isnan(r)
    what = (f"significant ({o.correction.upper()}) in at least {o.at_least} cancers" if o.at_least is not None else
            f"R above {o.min_r:g}" if o.min_r is not None else f"significant ({o.correction.upper()})")
    folder = Path(o.run) / "enrichment"
    text = [f"# Enrichment in {o.run}", "", f"Hits: genes {what}. Fisher's exact test, one-sided, of {len(sets):,} sets "
            f"over the tested genes; BH over the sets. {note}", ""]
    for name, (hit, tested) in groups.items():
        universe = [n for n, t in zip(names, tested) if t and n]
        hits = [n for n, h in zip(names, hit & tested) if h and n]
        e = stats.enrichment(hits, sets, universe)
        order = np.lexsort((-np.nan_to_num(e["fold"]), np.nan_to_num(e["p"], nan=2)))
        keys, inside, file = list(sets), set(hits), re.sub(r"[^\w.-]", "_", name)
        save_csv(folder / f"{file}.csv", ("set", "genes tested", "hits", "expected", "fold", "p", "p_bh", "hit genes"), (
            (keys[i], e["size"][i], e["overlap"][i], f"{e['expected'][i]:.4g}", *("" if np.isnan(v) else f"{v:.4g}" for v in
             (e["fold"][i], e["p"][i], e["bh"][i])), " ".join(g for g in sets[keys[i]] if g in inside)) for i in order))
        best, found = [i for i in order[:15] if e["overlap"][i]], int((e["bh"] < ALPHA).sum())
        coding = f", {sum(h in known_coding for h in hits):,} of them protein-coding" if known_coding is not None else ""
        line = (f"{name}: {len(hits):,} hits of {len(universe):,} tested genes{coding}; {found} of "
                f"{(~np.isnan(e['p'])).sum():,} sets with a tested gene at BH < {ALPHA}")
        for i in best[:1]:
            line += f"; first: {keys[i]} ({e['overlap'][i]} of {e['size'][i]}, p (BH) {e['bh'][i]:.2g})"
        print(line)
        text += [f"## {name}", "", line + ".", "", table(("set", "hits", "tested", "expected", "p", "p (BH)"), [
            (keys[i], e["overlap"][i], e["size"][i], f"{e['expected'][i]:.1f}", f"{e['p'][i]:.2g}", f"{e['bh'][i]:.2g}")
            for i in best]), ""]
        if best:
            with tiling.figure(folder / f"{file}.png", figsize=(8, .7 + .28 * len(best))) as ax:
                ax.barh(range(len(best)), -np.log10(np.maximum(e["bh"][best], 1e-300)), color=tiling.BLUE)
                ax.axvline(-math.log10(ALPHA), color=tiling.ORANGE, lw=1)
                labels = [f"{keys[i][:60]} ({e['overlap'][i]}/{e['size'][i]})" for i in best]
                ax.set_yticks(range(len(best)), labels, fontsize=7)
                ax.invert_yaxis()
                ax.set_xlabel("−log$_{10}$ p, Benjamini–Hochberg; line: .05")
            text += [f"![{name}]({file}.png)", ""]
    save_text(folder / "report.md", text)
    print((f"{note}\n" if note else "") + f"report: {folder / 'report.md'}")
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Spatialization  [HE2RNA Results, virtual spatialization; Methods, Visual spatialization; Fig. 4]
# ---------------------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def score_tiles(models, features, block=4096):
    """Score of every tile for every gene of the models, in log10(1 + FPKM-UQ), their mean. features (n, D) -> (n, G)."""
    device, scores = next(models[0].parameters()).device, []
    for rows in range(0, len(features), block):
        x = torch.from_numpy(np.asarray(features[rows:rows + block], np.float32)).to(device)
        scores.append(sum(model.tile_scores(x) for model in models).cpu().numpy() / len(models))
    return np.concatenate(scores)


def provenance(scores, ks):
    """How much each tile counts in a slide's prediction of one gene: scores (T,) -> weights (T,), summing to 1.

    weights @ scores is the prediction: the tile of rank j weighs the mean over ks of [j <= k] / k. [HE2RNA Methods]
    """
    weights, order = np.empty(len(scores)), np.argsort(-scores, kind="stable")
    weights[order] = rank_weights(len(scores), ks).double().numpy()
    return weights


def read_outlines(folder, slide, origin, kind=None):                            # same in histcode.py
    """Polygons of regions/<slide>.geojson, of one class or all, as stats.inside takes them; None where there are none."""
    path, shapes = tiling.read_regions(folder, slide, kind)
    try:
        return None if shapes is None else [[ring + origin for ring in rings] for rings in stats.read_rings(shapes)]
    except ValueError as e:
        raise InputError(f"{path}: {e}") from None


def against_cells(scores, cells, coords, tile):
    """[(class, cells, R, p, rho, tiles called best, their median count, median of all)], and counts (n,) of each class."""
    counts = {kind: stats.count_points(points, coords, tile) for kind, points in cells.items()}
    best = np.argsort(-scores, kind="stable")[:max(1, min(tiling.BEST_TILES, len(scores) // 2))]
    r, p = stats.shift_p(scores, np.stack(list(counts.values()), 1), [coords], SHIFTS)           # the same shifts for all
    rows = [(kind, int(n.sum()), r[i], p[i], stats.spearman(scores, n.astype(float)), len(best), np.median(n[best]),
             np.median(n)) for i, (kind, n) in enumerate(counts.items())]
    return rows, counts


def as_log(measured):
    """Counts or FPKM of spots on the scale of the scores; what has negative values is on a scale of its own and stays."""
    return log_expression(measured) if np.nanmin(measured, initial=0) >= 0 else measured


def spot_table(spots, seed=0):
    """Scores against measured columns over the spots of several slides: (gene or column, R, p) rows, genes first.

    spots: a list, per slide, of (places (m, 2), group score (m,), {gene: (score, measured)}, {other column: measured}). A
    gene's own score against log10(1 + measured); any other column against the score of the genes asked for.
    """
    places, rows = [s[0] for s in spots], []
    for own, part in ((True, 2), (False, 3)):
        names = [c for c in spots[0][part] if all(c in s[part] for s in spots)]
        if names:
            measured = np.concatenate([np.stack([s[part][c][1] if own else s[part][c] for c in names], 1) for s in spots])
            scores = np.concatenate([np.stack([s[2][c][0] for c in names], 1) if own else s[1] for s in spots])
            tick = progress("spots", len(names), "columns", end=False)
            rows += zip([own] * len(names), names, *stats.shift_p(scores, measured, places, 5 * SHIFTS, seed, tick))
    return rows


def spot_summary(rows):
    """'mean R ... over G genes ...; column R (p)' of the rows of spot_table."""
    genes, others = ([(c, r, p) for own, c, r, p in rows if own == which and not np.isnan(r)] for which in (True, False))
    r, p = (np.array([row[i] for row in genes]) for i in (1, 2))
    text = [f"{len(r):,} genes, mean R {r.mean():.3f}, {(r > .2).sum():,} above .2, {(p < ALPHA).sum():,} with p < {ALPHA} "
            f"({ALPHA * len(p):,.0f} expected by chance)"] if len(r) else []
    return "; ".join(text + [f"{c} R {v:.3f} (p {q:.3f})" for c, v, q in others])


def group_r(run, genes):
    """R of the mean prediction against the mean expression of some genes, by cancer: [(cancer, n, R, interval, p)] [CD3 in
    LIHC: .43]."""
    z = tiling.whole_arrays(run["folder"] / "predictions.npz", genes="UG", prediction="fSG", truth="fSG", fold="iS",
                            project="US", patient="US")
    if z["genes"].tolist() != run["genes"]:
        raise InputError(f"{run['folder']}: predictions.npz and fold0.pt have different genes: run the command that made "
                         "them again")
    mean = [z[k][:, genes].mean(1, keepdims=True) for k in ("prediction", "truth")]                 # (S, 1)
    fold, k = judged_in(z["fold"], run["config"])
    results = evaluate(*mean, fold, z["project"], k)
    groups, rng = cancers(z["project"]), np.random.default_rng(run["config"]["seed"])
    return [(name, e["slides"], f"{e['r'][0]:.3f}", interval(*mean, z["patient"], fold, groups[name], rng),
             f"{e['p'][0]:.2g}") for name, e in results.items()]


def bag_of(features, coords, config):
    """What a run's models see of a slide: its tiles, or its super-tiles. -> (bag (T, D), the bag's row of each tile (n,)).
    """
    if config["bags"] == "all tiles":
        return np.array(features), np.arange(len(features))
    made = config["features"]["supertiles"]
    means, mask, cluster = tiling.half_supertiles(features, coords, made["k"], made["seed"])
    return means[mask], (np.cumsum(mask) - 1)[cluster]


def account_of(models, folds, features, coords, j, config):
    """The account of a slide's prediction of gene j: rows (fold, x, y, tiles, weight, score), weight of each tile, a sum a
    model."""
    bag, row = bag_of(features, coords, config)
    size = np.bincount(row)                                                    # tiles of each super-tile
    at = np.stack([np.bincount(row, axis) / size for axis in coords.T], 1)     # (T, 2) mean top-left
    rows, weights, sums = [], np.zeros(len(features)), []
    for f, model in zip(folds, models):
        s = score_tiles([model], bag)[:, j].astype(np.float64)
        w = provenance(s, model.ks)
        weights += (w / size)[row] / len(models)
        sums.append(w @ s)
        rows += [(f, f"{x:.0f}", f"{y:.0f}", n, f"{a:.9g}", f"{b:.9g}") for (x, y), n, a, b in zip(at, size, w, s)]
    return rows, weights, sums


def cells_on_map(o, folder, cells, scores, coords, tile):
    """A slide's scores against its cells -> (rows and counts of against_cells, lines of the report)."""
    if o.cells not in cells:                                                   # none on this slide, or nowhere?
        raw = (p.read_bytes() for p in folder.iterdir())
        field = re.compile(rb'[,\t"]' + re.escape(o.cells.encode()) + rb'[,\t"\r\n]')
        if not any(field.search(gzip.decompress(b) if b[:2] == b"\x1f\x8b" else b) for b in raw):
            raise InputError(f"--cells {o.cells}: no such class in {folder}; this slide has {few(list(cells))}")
        cells[o.cells] = np.zeros((0, 2))
    rows, counts = against_cells(scores, cells, coords, tile)
    return rows, counts, [
        "## Cells in each tile", "", f"p: a spatial shift of the scores ({SHIFTS} of them) gives an R as high.", "",
        table(("cells", "on tiles", "R", "p", "Spearman", "median in the best tiles", "in all"),
              [(c, f"{n:,}", f"{r:.3f}", f"{p:.3f}", f"{rho:.3f}", f"{top:g} ({m} tiles)", f"{of_all:g}")
               for c, n, r, p, rho, m, top, of_all in rows]), "", "![Scores and cells](cells.png)", ""]


def spots_on_map(run, use, device, spots, features, scores, coords, tile):
    """Spots that lie on a slide's tiles -> (what spot_table takes of the slide, or None; its rows; lines of the report)."""
    (places, measured), at = spots, {g: j for j, g in enumerate(run["genes"])}
    which = stats.holder(places, coords, tile)                                                      # (m,) -1: on no tile
    held, own = which >= 0, [c for c in measured if c in at]
    if held.sum() < 2:
        return None, [], []
    models = [model_of(run["folds"][f], device, [at[c] for c in own]).eval() for f in use] if own else []
    s = score_tiles(models, features[which[held]]) if own else None
    spots = (places[held], scores[which[held]], {c: (s[:, j], as_log(measured[c][held])) for j, c in enumerate(own)},
             {c: v[held] for c, v in measured.items() if c not in at})
    rows = spot_table([spots])
    line = f"{held.sum()} of {len(held)} spots lie on a tile: {spot_summary(rows)}. Each column: spots.csv"
    return spots, rows, ["## Spots", "", line, ""]


def map_slide(run, o, models, home, into, source, name, label, chosen, group):
    """Everything of one slide's map, written into RUN/heatmaps/LABEL/SLIDE/ at once. -> dict for the summary."""
    bags, (features, coords) = run["config"]["bags"], tiling.load_features(into, source, name)
    slide, (W, H), mpp, tile = tiling.map_ground(home, into, source, name, coords, o)
    use = held_out(run, name, home, o.all_models)
    used, genes = [models[f] for f in use], [run["genes"][j] for j in chosen]
    each = score_tiles(used, features)                                                              # (n, genes)
    scores = each.mean(1).astype(np.float64)                                                        # (n,)
    truth_in = home if any((home / d).is_dir() for d in ("points", "spots", "regions")) else run["cohort"]
    um, origin = tiling.qupath_frame(slide, mpp)
    cells, spots = tiling.read_places(truth_in, name, um, origin)
    outlines = read_outlines(truth_in, name, origin, o.regions)
    columns = {"score": scores, **({g: each[:, j] for j, g in enumerate(genes)} if len(genes) > 1 else {})}
    result = dict(name=name, use=use, tiles=len(coords),
                  project={r["slide"]: r["project"] for r in run["rows"]}.get(name, "new"))
    text = [f"# {label} on {name}", "", f"{len(coords):,} tiles of {tile * mpp:.0f} µm; score: mean of {few(genes)} in "
            f"log10(1 + FPKM-UQ), of the models of fold{'s' * (len(use) > 1)} {', '.join(map(str, use))}"
            + (", which did not learn from its patient" if len(use) < len(models) else
               ", also those that learned from its patient" if o.all_models else ", none of which knows the slide")
            + f". Run {run['folder']}.", "", "![Map](map.png)", "", "![Highest and lowest tiles](gallery.png)", ""]
    if cells:
        result["cells"], counts, lines = cells_on_map(o, truth_in / "points", cells, scores, coords, tile)
        columns.update({f"cells: {c}": n for c, n in counts.items()})
        text += lines
    if spots:
        device = next(used[0].parameters()).device
        on_tiles, spot_rows, lines = spots_on_map(run, use, device, spots, features, scores, coords, tile)
        result |= dict(spots=on_tiles) if on_tiles else {}
        text += lines
    if outlines:
        inside = stats.inside(coords + tile / 2, outlines)
        columns["inside"], result["auc"] = inside.astype(int), stats.roc_auc(inside, scores)
        text += ["## Outline" + f" of {o.regions}" * bool(o.regions), "", f"{inside.sum():,} of {len(inside):,} tiles have "
                 f"their centre inside; AUC of the scores {result['auc']:.3f}", ""]
    gene = o.provenance or genes[0]
    account, weights, sums = account_of(used, use, features, coords, genes.index(gene), run["config"])
    columns[f"weight: {gene}"], result["prediction"] = weights, float(np.mean(sums))
    text += [*group, "## Where the prediction comes from", "", f"{gene}: {np.mean(sums):.6f} in log10(1 + FPKM-UQ), the sum "
             f"of weight x score over the {bags} in provenance.csv"
             + (f", mean of the folds' {few([f'{v:.6f}' for v in sums])}" if len(sums) > 1 else "")
             + (". The run's own prediction differs from this sum: its padding or ReLU is the authors'"
                if {"padding", "relu"} & set(code_of(run["folder"])) else "")
             + ". tiles.csv has each tile's weight" + " (its super-tile's, shared among its tiles)" * (bags == "super-tiles")
             + ". This is of every tissue tile; predict uses the sample that training used" * (into.name == "all-tiles")
             + ".", ""]
    folder = run["folder"] / "heatmaps" / label / name
    with tiling.whole_folder(folder) as work:
        rgb, _ = tiling.thumbnail(slide, mpp, max(W, H) * mpp / 1500)
        counted, title = counts[o.cells] if cells else None, f"{label} on {name}"
        tiling.draw_heatmap(work / "map.png", rgb, (W, H), mpp, coords, tile, scores, title,
                            "score, log$_{10}$(1 + FPKM-UQ)", cells[o.cells] if cells else None, outlines)
        tiling.draw_gallery(work / "gallery.png", slide, coords, tile, scores, f"{title}: highest and lowest tiles", counted,
                            o.cells)
        if cells:
            tiling.draw_scatter(work / "cells.png", scores, counted, "score", f"{o.cells} in a tile", title)
        save_csv(work / "tiles.csv", ("x", "y", *columns), (
            (*xy, *(f"{v:.6g}" for v in row)) for xy, row in zip(coords, zip(*columns.values()))))
        save_csv(work / "provenance.csv", ("fold", "x", "y", "tiles", "weight", "score"), account)
        if "spots" in result:
            save_csv(work / "spots.csv", ("column", "R", "p"), ((c, f"{r:.4f}", f"{p:.4f}") for _, c, r, p in spot_rows))
        measured = np.stack(list(columns.values()), 1)
        save_json(work / "tiles.geojson", tiling.tiles_geojson(coords - origin, tile, measured, list(columns)))
        save_text(work / "report.md", text)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Hospital A, hospital B: MSI from few patients  [HE2RNA Results, MSI status prediction; Methods, MSI status; Fig. 5]
# ---------------------------------------------------------------------------------------------------------------------
# M small networks of one shape as one network with a leading model dimension: weights a list of (M, in, out), biases of
# (M, 1, out). Gradients by hand, three products a layer, into buffers that stay: a graph and an optimiser for each network
# would cost more than its arithmetic. [ours]
ACTIVATION = {"sigmoid": torch.sigmoid, "relu": torch.relu, "linear": lambda z: z}
SLOPE = {"sigmoid": lambda h: h * (1 - h), "relu": lambda h: (h > 0).to(h)}    # of the activation, from its value


def draw_networks(sizes, seeds, device="cpu"):
    """Networks each drawn from its own seed, uniform within 1 / sqrt(in) as torch's Linear [ours] -> (weights, biases, all).

    weights and biases, and their .grad, are views into one tensor of all parameters and its .grad: one for the optimiser.
    """
    shapes = [(len(seeds), a, b) for a, b in zip(sizes, sizes[1:])] + [(len(seeds), 1, b) for b in sizes[1:]]
    every = torch.empty(sum(map(math.prod, shapes)))
    views = lambda flat: [v.view(shape) for v, shape in zip(flat.split(list(map(math.prod, shapes))), shapes)]
    drawn, n = views(every), len(sizes) - 1
    for m, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for w, b in zip(drawn[:n], drawn[n:]):
            for p in (w, b):
                p[m].uniform_(-w.shape[1] ** -0.5, w.shape[1] ** -0.5, generator=generator)
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
    delta = (out[-1] - target) * share                                         # (M, b, K)
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
        x, target = torch.zeros(len(block), longest, sizes[0]), torch.zeros(len(block), longest, sizes[-1])
        share = torch.zeros(len(block), longest, 1)                            # of a row in its mini-batch's mean
        for j, m in enumerate(block):
            x[j, :n[j]], target[j, :n[j]] = (torch.from_numpy(v[trains[m]]) for v in inputs(m))
            for s in range(0, n[j], batch):
                share[j, s:min(s + batch, n[j])] = 1 / (min(s + batch, n[j]) - s)
        share *= 1 if activations[-1] == "sigmoid" else 2 / sizes[-1]          # the mean of squares, not half their sum
        x, target, share = x.flatten(0, 1).to(device), target.flatten(0, 1).to(device), share.to(device)
        weights, biases, every = draw_networks(sizes, [seeds[m] for m in block], device)
        optimizer = torch.optim.Adam([every], lr=MSI_RATE, fused=True)         # one pass over memory, not seven
        draws, rows = [np.random.default_rng(seeds[m]) for m in block], np.zeros((len(block), longest), int)
        for _ in range(epochs):
            for j, draw in enumerate(draws):
                rows[j, :n[j]] = draw.permutation(n[j]) + j * longest
            order = torch.from_numpy(rows).to(device)
            for part in zip(*(v.split(batch, 1) for v in (x[order], target[order], share))):       # (M, b, ...)
                write_gradients(weights, biases, activations, *part)
                optimizer.step()
        done = []
        for j, m in enumerate(block):
            own = torch.from_numpy(inputs(m)[0])[None].to(device)
            layers = layers_of(*([p[j:j + 1] for p in part] for part in (weights, biases)), activations, own)[1:]
            done.append((m, take([out[0].cpu().numpy() for out in layers])))
        return done

    alike = [np.flatnonzero(steps == s).tolist() for s in np.unique(steps)]
    jobs = [pool.submit(train_block, members[i:i + size]) for members in alike for i in range(0, len(members), size)]
    return (pair for job in jobs for pair in job.result())


def standardise(x, rows):
    """x (n, D) less the mean, over the SD, of some of its rows; a column that is constant there is only shifted."""
    sd = np.where(np.ptp(x[rows], axis=0) > 0, x[rows].std(0, dtype=np.float64), 1)
    return ((x - x[rows].mean(0, dtype=np.float64)) / sd).astype(np.float32)


def above_floor(y):
    """`expressed` of a log table y (n, G): above 0, or above the lowest value of log2(small + a), in half of the samples."""
    return np.median(y, axis=0) > min(0, y.min())


def hospital_a(high, share, rng):
    """Which of P patients are hospital A's: (P,) bool, share P of them, MSI-H in both hospitals alike.

    From the same rng a larger share holds the smaller one, so that shares are compared on one draw. [ours; the paper draws
    without regard to MSI, which in a small B can leave a fold without MSI-H]
    """
    place = np.empty(len(high))
    for kind in (True, False):
        members = rng.permutation(np.flatnonzero(high == kind))
        place[members] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
    in_a = np.zeros(len(high), bool)
    in_a[np.lexsort((~high, place))[:int(share * len(high))]] = True               # of equals MSI-H first: always as many
    return in_a


def compare_arms(d, in_a, arms, o, key, device):
    """One split: what the arms need is trained in hospital A, the classifiers in B -> ({arm: AUC (repeats, folds)}, note).

    d: of read_study; in_a (S,) the slides of hospital A; key: numbers that with --seed decide every draw. The note says
    whom each step learned from, as rows of tiling.what_saw_whom over the test folds of B.
    """
    x, every, folds, y, note = d["x"], np.arange(len(in_a)), range(o.folds), None, {}
    names, who = np.unique(d["patients"][~in_a], return_inverse=True)
    high = np.zeros(len(names), bool)
    high[who] = d["high"][~in_a]                                                                    # (P,) of hospital B
    fold = np.stack([stats.patient_folds(names, high.astype(str), o.folds, [o.seed, *key, r]) for r in range(o.repeats)])
    a, b = np.flatnonzero(in_a), np.flatnonzero(~in_a)
    fold_a = stats.patient_folds(d["patients"][a], d["projects"][a], o.folds, [o.seed, *key])
    trains_a, trains_b = [a[fold_a != f] for f in folds], [b[fold[r, who] != f] for r in range(o.repeats) for f in folds]
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    ledgers, tested = [{} for _ in trains_b], [names[fold[r] == f] for r in range(o.repeats) for f in folds]

    def learned(step, trains):                                                 # trains_b: each its own fold; else all
        for m, ledger in enumerate(ledgers):
            for rows in [trains[m]] if trains is trains_b else trains:
                saw(ledger, step, d["patients"][rows])
                saw(ledger, f"scaling of {step}", d["patients"][every if "scaling" in o.code else rows])
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))             # of each thread alone

    def networks(kind, hidden, activations, trains, epochs, batch, take, source=lambda m: x, target=None, outputs=None):
        known = lambda m: every if "scaling" in o.code else trains[m]          # what the inputs' mean and SD learn from
        inputs = lambda m: (scaled := standardise(source(m), known(m)), scaled if target is None else target(m))
        seeds = np.random.default_rng([o.seed, *key, kind]).integers(2 ** 62, size=len(trains)).tolist()
        D = source(0).shape[1]
        sizes = D, *hidden, D if target is None else outputs
        return train_networks(pool, sizes, activations, inputs, trains, seeds, epochs, batch, device, take)

    def autoencoders(trains):                                                  # 2048-1024-256-1024-2048
        return networks(1, (*MSI_HIDDEN, MSI_HIDDEN[0]), ("relu", "relu", "relu", "linear"), trains,
                        MSI_EPOCHS_CODE if "epochs" in o.code else MSI_EPOCHS, MSI_GENE_BATCH, lambda layers: layers[1])

    def classifiers(source, hidden, members=1):                                # 2048-256-128-1 or 256-128-1
        label = d["high"][:, None].astype(np.float32)
        return networks(2, hidden, ("sigmoid",) * (len(hidden) + 1), trains_b * members, MSI_EPOCHS, MSI_BATCH,
                        lambda layers: layers[-1][b, 0], source, lambda m: label, 1)

    try:                                                                       # the long ones first; all at once
        if "transcriptome" in arms:                                            # 2048-1024-256-G
            y = d["y"][:, above_floor(d["y"][d["has_y"] if "genes" in o.code else a])]
            learned("networks of A", trains_a)
            for ledger in ledgers:
                saw(ledger, "gene filter", d["patients"][d["has_y"] if "genes" in o.code else a])
            if not y.shape[1]:
                raise InputError(f"no gene is expressed in half of the {len(a)} slides of hospital A")
            of_a = networks(0, MSI_HIDDEN, ("sigmoid", "sigmoid", "linear"), trains_a, MSI_EPOCHS, MSI_GENE_BATCH,
                            lambda layers: (layers[1], layers[2][a]), target=lambda f: standardise(y, trains_a[f]),
                            outputs=y.shape[1])
        whole_b = "autoencoder" in o.code                                      # one of all of B, its test patients too
        coders = {"autoencoder-a": trains_a, "autoencoder-b": [b] if whole_b else trains_b}
        for arm in [arm for arm in coders if arm in arms]:
            learned(arm.replace("-a", " A").replace("-b", " B"), coders[arm])
        coder_a, coder_b = (autoencoders(trains) if arm in arms else () for arm, trains in coders.items())
        scores = {}
        learned("classifiers", trains_b)
        if {"direct", "ensemble"} & set(arms):
            scores["direct"] = classifiers(lambda m: x, MSI_CLASSIFIER, o.folds if "ensemble" in arms else 1)
        if y is not None:
            r, code = np.full((o.folds, y.shape[1]), np.nan), 0
            for f, (own, predicted) in of_a:
                code, test = code + own / o.folds, fold_a == f
                if test.sum() >= stats.MIN_R:
                    r[f] = stats.pearson(predicted[test], y[a[test]])
            note = dict(genes=y.shape[1], r_in_a=float(np.nanmean(r)) if not np.isnan(r).all() else None)
            scores["transcriptome"] = classifiers(lambda m: code, MSI_CLASSIFIER[1:])
        if coder_a:
            code_a = sum(own for _, own in coder_a) / o.folds
            scores["autoencoder-a"] = classifiers(lambda m: code_a, MSI_CLASSIFIER[1:])
        if coder_b:
            code_b = dict(coder_b)
            scores["autoencoder-b"] = classifiers(lambda m: code_b[0 if whole_b else m], MSI_CLASSIFIER[1:])
        scores = {arm: np.stack([s for _, s in sorted(of, key=lambda pair: pair[0])]) for arm, of in scores.items()}
    finally:
        pool.shutdown(cancel_futures=True)
    n, aucs, (note["saw"], note["leaks"]) = len(trains_b), {}, tiling.what_saw_whom(ledgers, tested, MAY_SEE)
    if "ensemble" in arms:
        scores["ensemble"] = scores["direct"].reshape(o.folds, n, -1).mean(0)
    for arm in arms:
        each = np.stack([np.bincount(who, s, len(names)) for s in scores[arm][:n]]) / np.bincount(who)              # (n, P)
        test = [fold[m // o.folds] == m % o.folds for m in range(n)]
        aucs[arm] = np.reshape([stats.roc_auc(high[t], e[t]) for e, t in zip(each, test)], (o.repeats, o.folds))
    return aucs, note


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------
def check_new(path, o):
    if path.exists() and not (o.overwrite or o.dry_run):
        raise InputError(f"{path} is there already: --overwrite replaces it")


def chosen_files(o):
    """The files of FPKM-UQ that expression reads: ({name: row of the sheet}, {name: path}, {name: md5}, {name: what is wrong});
    says what is left out, counts patients and samples."""
    found, (rows, sheet) = gdc_files(o.folder), read_sheet(o.folder, o.sheet)
    left_out = {"files there that the sheet doesn't name": sorted(set(found) - {ungzipped(r["file"]) for r in rows})}
    files = [r for r in rows if FPKM_UQ.search(r["file"])]
    if not files:
        raise InputError(f"{sheet} names no file of FPKM-UQ (*.FPKM-UQ.txt.gz, *_star_gene_counts.tsv); its first is "
                         f"{rows[0]['file']}")
    whose = next((r["file"] for r in files if not (r["patient"] and r["sample"] and r["project"])), None)
    if whose:
        raise InputError(f"{sheet}: file {whose} has no case id, sample id or project id: download the sheet again")
    rows, other_types = select(files, o.types, o.project, "file", sheet)
    rows.sort(key=lambda r: (r["sample"], ungzipped(r["file"]) not in found, r["barcode"], r["file"]))
    first = {}
    for r in rows:                                                             # a file a sample, there if possible [ours]
        first.setdefault(r["sample"], r)
    chosen = {ungzipped(r["file"]): r for r in first.values()}
    if len(chosen) < len(first):
        raise InputError(f"{sheet}: {len(first) - len(chosen)} of its files stand there for two samples")
    md5, bad = read_manifest(o.manifest, found) if o.manifest else ({}, {})
    bad.update({n: f"{r['file']}: not there" for n, r in chosen.items() if n not in found})
    say_left_out({**other_types, **left_out,
                  "more files of samples that have one (the first by barcode, then by name, is taken)": [
                      r["file"] for r in rows if first[r["sample"]] is not r],
                  "files that the manifest doesn't name": [n for n in chosen if o.manifest and n not in md5]})
    print_counts(first.values(), patients="patient", samples="sample")
    return chosen, found, md5, bad


def expression(o):
    """A folder of GDC downloads and their sample sheet -> the expression table of a cohort, a row a sample."""
    out = Path(o.out or "expression.npz")
    names = out.with_name(out.name.partition(".")[0] + "_genes.csv")
    if not o.dry_run and not (o.out or "").endswith((".npz", ".csv", ".csv.gz")):
        raise InputError(f"--out {o.out or 'is missing'}: wanted a .npz, .csv or .csv.gz, such as COHORT/expression.npz")
    for path in (out, names):
        check_new(path, o)
    chosen, found, md5, bad = chosen_files(o)

    def check(files):
        said = f"{o.folder}: {len(bad)} files are missing or not whole: {few(list(bad.values()), 5)}"
        if bad and not (o.dry_run or o.partial and files):
            raise InputError(f"{said}: download them again" + ", or --partial makes a table without them" * (not o.partial))
        if bad:
            print(said)
        return files
    files = check([n for n in chosen if n not in bad])
    if o.dry_run:
        print("dry run: no file was read, none written")
        return 0
    t = gather([(found[n], chosen[n]["sample"], md5.get(n)) for n in files], progress("expression", len(files), "files"))
    if t["bad"]:
        bad.update({files[i]: why for i, why in t["bad"].items()})
        check([n for n in files if n not in bad])
    genes, models = {g: None for g, s in zip(t["genes"], t["shared"]) if s}, t["models"]
    for model, m in models.items():
        print(f"{m['files']:,} files of {model}: {len(m['genes']):,} genes, {len(genes):,} of them in all files")
    if 2 * len(genes) < max(len(m["genes"]) for m in models.values()):
        raise InputError(f"{o.folder}: only {len(genes):,} genes are in all files: some are not whole, or of another kind")
    if t["scaled"]:
        print(f"{t['scaled']:,} files, of release 32 or later, were multiplied by {UQ_GENES:,}: the scale of the others")
    elif t["newer"]:
        print(f"FPKM-UQ of release 32 or later, {UQ_GENES:,} times below the paper's: log10(1 + a) flattens weak genes more")
    rows = [i for i in range(len(files)) if i not in t["bad"]]
    tick = progress("writing", len(rows), "samples")
    tiling.save_expression(out, "sample", [chosen[files[i]]["sample"] for i in rows], list(genes),
                           (tick() or t["a"][i, t["shared"]] for i in rows))
    print(f"{out}: {len(rows):,} samples x {len(genes):,} genes")
    if t["symbols"]:
        columns = 3 if any(row[2] for row in t["symbols"]) else 2              # of an empty biotype no gene would be coding
        save_csv(names, ("gene_id", "symbol", "biotype")[:columns],
                 (row[:columns] for row in t["symbols"] if row[0] in genes))
        print(f"{names}: their symbols, for --gene-table")
    return 1 if bad else 0


def samples(o):
    """A cohort's TCGA slides joined to its expression table by their barcodes -> its samples.csv."""
    cohort, project, of, rows, left_out, several = Path(o.cohort), {}, {}, [], {}, {}
    check_new(cohort / "samples.csv", o)
    sheet, path = read_sheet(cohort, o.sheet)
    for r in sheet:
        if project.setdefault(r["patient"], r["project"]) != r["project"]:
            raise InputError(f"{path}: patient {r['patient']} is of {project[r['patient']]} and of {r['project']}")
    key, ids, _, _ = read_expression(cohort)
    if key == "slide":
        raise InputError(f"{cohort}/expression: its rows are slides already: wanted samples, as expression makes it")
    for i in sorted(ids):
        of.setdefault(i[:15], []).append(i)                                    # patient and type: TCGA-XX-XXXX-01
    for slide in tiling.find_slides(cohort):
        found = SLIDE_BARCODE.match(slide.upper())
        patient, code, vial, kind = found.groups() if found else (None,) * 4
        group = "frozen" if kind in FROZEN else kind
        why = ("slides whose name is no TCGA slide's barcode" if not found else
               "slides whose name can't be that of a file here: control characters, or over 200 bytes" if
               not tiling.can_be_named(slide) else
               f"slides of other kinds than --kind {o.kind}" if o.kind not in ("all", group) else
               "slides of patients that the sheet doesn't name" if patient not in project else "")
        if why:
            left_out.setdefault(why, []).append(slide)
            continue
        own = f"{patient}-{code}{vial}"                                        # Z of a diagnostic slide is any vial [ours]
        there = of.get(own[:15], [])
        if len(there) > 1 and own not in there:
            several[own[:15]] = f"{there[0]} ({', '.join(there[1:])})"
        sample = own if own in there or not there else there[0]
        rows.append(dict(slide=slide, patient=patient, project=project[patient], sample=sample,
                         sample_type=SAMPLE_TYPES.get(code, code), kind=kind))
    lost = [r["slide"] for r in rows if r["sample"] not in set(ids)]
    say_left_out({**left_out, "slides in samples.csv have no expression: train leaves them out": lost,
                  "samples have several vials of expression; the first by barcode is taken": list(several.values())})
    if len(lost) == len(rows):
        raise InputError(f"{cohort}: " + (f"none of {len(rows)} slides (the first is {lost[0]}) has its patient and type in "
                                          f"the expression table (its first sample is {ids[0]})" if rows else
                                          "no slide is left for samples.csv"))
    print_counts(rows, patients="patient", samples="sample", slides="slide")
    if o.dry_run:
        print("dry run: nothing was written")
        return 0
    save_csv(cohort / "samples.csv", rows[0], (r.values() for r in rows))
    print(f"{cohort / 'samples.csv'}: {len(rows):,} slides")
    return 0


def check_options(o):
    for name, value, low in (("--epochs", o.epochs, 1), ("--patience", o.patience, 1), ("--batch", o.batch, 1),
                             ("--folds", o.folds, 2), ("--null-models", o.null_models, 1)):
        if value < low:
            raise InputError(f"{name} {value}: must be at least {low}")
    if not (0 <= o.dropout < 1 and o.lr > 0 and 0 <= o.valid < 1):
        raise InputError(f"--dropout {o.dropout:g} must lie in [0, 1), --lr {o.lr:g} above 0, --valid {o.valid:g} in [0, 1)")
    if Path(o.name).name != o.name or o.name in ("", ".", ".."):
        raise InputError(f"--name {o.name}: the name of a folder in runs/, not a path")


def training_options(a, epochs, patience, batch, ks, more):
    a("--epochs", type=int, default=epochs, help=f"at most (default {epochs}, the paper's{more})")
    a("--patience", type=int, default=patience, help="stop after N epochs without a better validation R "
      f"(default {patience})")
    a("--batch", type=int, default=batch, help=f"slides per iteration (default {batch})")
    a("--lr", type=float, default=LEARNING_RATE, help=f"of Adam (default {LEARNING_RATE:g}); lower if the loss jumps")
    a("--null", choices=("untrained", "t", "permutation"), default="untrained", help="whose p decides what is significant: "
      "untrained models (default, the paper's), the t of one R, or permuted slides; genes.csv has all")
    a("--null-models", type=int, default=NULL_MODELS, help=f"untrained models behind it (default {NULL_MODELS}; paper: 1)")
    a("--ks", type=numbers, default=ks, metavar="K,..", help="tiles kept: one k drawn per iteration, all averaged at test "
      f"time (default {','.join(map(str, ks))})")


def numbers(text):
    """'1,2,5' -> (1, 2, 5), for argparse."""
    values = tuple(int(v) for v in text.split(","))
    if min(values) < 1:
        raise ValueError
    return values


def fractions(text):
    """'1/6,0.5' -> fractions between 0 and 1, for argparse."""
    try:
        values = tuple(dict.fromkeys(map(Fraction, text.split(","))))
    except ZeroDivisionError:
        raise ValueError from None
    if not all(0 < v < 1 for v in values):
        raise ValueError
    return values


def prepare(cohort, o):
    """Everything training needs, checked in the order of cost: tables, folds, then slides. -> (data, x, mask)."""
    samples = tiling.read_samples(cohort)
    key, ids, genes, a = read_expression(cohort)
    samples, wrong_type = select(samples, o.types, None)
    samples, rows, left_out = join(samples, key, ids, Path(cohort) / "expression")
    left_out = say_left_out({**wrong_type, **left_out})
    fold, validates = folds_of(samples, o), None                               # of all projects, then one is selected
    if "folds" in o.code and o.valid:
        inner = [set(valid.tolist()) for _, valid, _ in stats.authors_folds([s["patient"] for s in samples])]
        validates = {s["slide"]: [str(f) for f, rows in enumerate(inner) if i in rows] for i, s in enumerate(samples)}
    chosen, _ = select(samples, "all", o.project)
    failed = tiling.share_out(tiling.make_supertiles, cohort, [s["slide"] for s in chosen], o)
    ready = {s["slide"] for s in chosen} - set(failed)
    keep = np.array([s["slide"] in ready for s in samples])
    if not keep.any():
        tiling.report_failures(failed, len(chosen))
        raise InputError(f"{cohort}: no slide is left to train on")
    samples, rows, fold = [s for s, k in zip(samples, keep) if k], rows[keep], fold[keep]
    check_folds(cohort, samples, fold, o, failed)
    unique, seen = np.unique(rows), {}
    if "genes" in o.code:
        kept = np.arange(len(genes))
    else:
        kept = np.flatnonzero(expressed(a[unique]))                            # over samples, not slides
        saw(seen, "gene filter", [s["patient"] for s in samples])
    if not len(kept):
        raise InputError(f"{cohort}: no gene has a positive median over the {len(unique)} samples")
    x, mask = load_bags(cohort, tiling.source_name(o), [s["slide"] for s in samples])
    data = table_of(samples, fold, [genes[j] for j in kept], log_expression(a[np.ix_(rows, kept)]), left_out, failed)
    return dict(data, genes_in_table=len(genes), validates=validates, ledgers=[dict(seen) for _ in range(o.folds)],
                encoder=tiling.encoder_saw(cohort, tiling.features_of(o))), x, mask


def check_folds(cohort, samples, fold, o, failed):
    for f in range(o.folds):
        if len({s["patient"] for s, g in zip(samples, fold) if g != f}) < 2:
            raise InputError(f"{cohort}: fold {f} has fewer than 2 patients left to train and validate on, of "
                             f"{len(samples)} slides of project {o.project or 'all'}; {len(failed)} slides failed")


def table_of(samples, fold, genes, y, left_out, failed):
    """What training knows of its slides: a dict of columns, y (S, G) the targets, and what is missing."""
    column = {c + "s": np.array([s[c] for s in samples]) for c in ("slide", "patient", "project")}
    return dict(column, fold=fold, genes=genes, y=y.astype(np.float32), left_out=left_out, failed=failed)


def folds_of(samples, o):
    """Test fold of each sample, by patient, projects evenly spread. InputError says which --folds would work."""
    patients = [s["patient"] for s in samples]
    n = len(set(patients))
    if n < 3:
        raise InputError(f"{n} patients are too few: a fold needs one to test, one to validate and one to train on")
    if n < o.folds or n - -(-n // o.folds) < 2:                                # 2 training patients: one validates
        raise InputError(f"{n} patients don't go into --folds {o.folds}: --folds {min(n, max(3, o.folds))} would work")
    projects = [s["project"] for s in samples]
    if "folds" in o.code:                                                      # five, whatever the seed [HE2RNA code]
        tests = [test for _, _, test in stats.authors_folds(patients)]
        return sum(f * np.isin(np.arange(len(samples)), test) for f, test in enumerate(tests))
    if o.folds_by == "patient":
        return stats.patient_folds(patients, projects, o.folds, o.seed)
    odd = sorted({p for p in patients if not re.match(r"TCGA-\w\w-", p)})
    if odd:
        raise InputError(f"--folds-by site: samples.csv has the patient{'s' * (len(odd) > 1)} {few(odd)}, no TCGA barcode "
                         "(TCGA-XX-..., XX the site): leave --folds-by out")
    sites = [p[5:7] for p in patients]                                         # of the tissue source
    if len(set(sites)) < o.folds:
        raise InputError(f"--folds-by site: {len(set(sites))} sites ({few(sorted(set(sites)))}) don't go into --folds "
                         f"{o.folds}" + (f": --folds {len(set(sites))} would work" if len(set(sites)) > 1 else ""))
    fold = stats.site_folds(patients, projects, sites, o.folds, o.seed)
    if len(set(fold.tolist())) < o.folds:
        raise InputError(f"--folds-by site: the sites leave only {len(set(fold.tolist()))} of --folds {o.folds} with "
                         f"patients: --folds {len(set(fold.tolist()))} may work")
    return fold


def open_run(cohort, o, config, data, device, *seen):
    """Make or reopen COHORT/runs/NAME -> (folder, its settings for the report). A folder of other settings is refused.

    seen: what tells the slides' features from others, for digest.
    """
    columns = (data[k].tolist() for k in ("slides", "patients", "projects"))
    config = dict(config, data=digest(*seen, data["y"], data["fold"], *columns, data["genes"]), version=VERSION,
                  slides=len(data["y"]), genes=len(data["genes"]),
                  **{k: getattr(o, k) for k in ("lr", "batch", "epochs", "patience", "folds", "folds_by", "seed", "code")})
    folder = cohort / "runs" / o.within / o.name
    config = tiling.claim_folder(folder, config, "fold*.pt", o.share, cohort=str(cohort.resolve()), device=str(device),
                                 processes=o.share[1], features_folder=o.features and str(Path(o.features).resolve()))
    made = ", ".join(str(v) for k, v in config["features"].items() if k in ("source", "made", "weights", "precision"))
    print(f"{config['slides']} slides of {len(set(data['patients']))} patients, {config['genes']:,} genes, "
          f"{config['bags']}, {config['n_features']} features ({made}), {o.folds} folds, on {device}"
          + (f"; other side of {', '.join(o.code)}" if o.code else ""))
    return folder, config


def split_folds(data, o, folder, chooses=None):
    """[(train, valid, test) rows] of each fold, and folds.csv: each slide's test fold and the folds whose epoch it chooses;
    beside it folds.md, how even they are.

    chooses: {slide: [folds]} keeps an earlier run's choice, whose patients the models did not learn from, where there is
    one.
    """
    fold, patients, projects = data["fold"], data["patients"], data["projects"]
    splits, validates = [], np.full(len(fold), "", dtype=object)
    for f in range(o.folds):
        rest = np.flatnonzero(fold != f)
        inner = np.array([bool(chooses) and str(f) in chooses[s] for s in data["slides"][rest]])
        if o.valid and (not inner.any() or inner.all()):
            inner = stats.inner_split(patients[rest], projects[rest], o.valid, [o.seed, f])
        splits.append((rest[~inner], rest[inner], np.flatnonzero(fold == f)))
        validates[rest[inner]] = [f"{v} {f}".strip() for v in validates[rest[inner]]]
    if not o.share[0]:
        save_csv(folder / "folds.csv", ("slide", "patient", "project", "test_fold", "validates_folds"),
                 zip(data["slides"], patients, projects, fold, validates))
        save_text(folder / "folds.md", [f"# Folds of {folder.name}, by {o.folds_by}", "", *certificate(data, o.folds), ""])
    return splits


def tested_in(data, k):
    """Test patients of each fold, also of slides that only the run gone on from had."""
    return data.get("held_out") or [sorted(set(data["patients"][data["fold"] == f].tolist())) for f in range(k)]


def keep_saved(folder, k):
    """The log of the epochs that are saved, fold by fold: the others run again."""
    saved = [np.inf if (folder / f"fold{f}.pt").is_file() else
             tiling.load_checkpoint(path, "cpu", keys=("epoch",))["epoch"] if path.is_file() else 0
             for f in range(k) for path in [folder / f"fold{f}.state.pt"]]
    entries = [e for e in tiling.read_log(folder) if e.get("fold") in range(k) and isinstance(e.get("epoch"), int)
               and e["epoch"] <= saved[e["fold"]]]
    tiling.write_log(folder, sorted(entries, key=lambda e: (e["fold"], e["epoch"])))


def cross_validate(folder, config, o, data, bags, splits, first_model, start):
    """Train every fold that is not there yet, predict its test slides, test significance, write the report.

    first_model(fold, training rows) -> the model training starts from; start: when the command began. Of several processes
    each trains its folds, the first does the rest.
    """
    y, tested, ledgers, (rank, world) = data["y"], tested_in(data, config["folds"]), [], o.share
    prediction, notes, paths = np.zeros(y.shape, np.float32), [], [folder / f"fold{f}.pt" for f in range(config["folds"])]
    tiling.by_first(lambda: keep_saved(folder, config["folds"]))
    for f, (train_rows, valid_rows, _) in list(enumerate(splits))[rank::world]:
        if not paths[f].is_file():
            model = first_model(f, train_rows)
            note = train_fold(model, bags, y, data["projects"], data["slides"], train_rows, valid_rows, o, f, folder)
            for step, rows in note.pop("saw").items():
                saw(data["ledgers"][f], step, data["patients"][rows])
            settings = {k: config[k] for k in ("hidden", "n_features", "ks", "dropout", "features", "code", "pad_to")}
            saved = dict(version=VERSION, run=tiling.mark_of(paths[f]), model=model.state_dict(), note=note,
                         genes=data["genes"], **settings, test_patients=tested[f], saw=data["ledgers"][f])
            save_file(paths[f], lambda file: torch.save(saved, file))
        (folder / f"fold{f}.state.pt").unlink(missing_ok=True)
    tiling.of_all(None)
    if rank:
        return
    if world > 1:
        keep_saved(folder, config["folds"])
    tick = progress("test slides", len(y), "slides")
    for f, (train_rows, _, test_rows) in enumerate(splits):
        model = first_model(f, train_rows)
        saved = tiling.load_checkpoint(paths[f], next(model.parameters()).device, model)
        notes.append(saved["note"])
        ledgers.append(dict(saved["saw"]))
        saw(ledgers[f], "untrained null", data["patients"][test_rows])
        if len(test_rows):
            prediction[test_rows] = predict_slides(model, bags, test_rows, o.batch, tick)
    untrained = untrained_r(config, data, bags, o, next(model.parameters()).device, folder)
    within, k = judged_in(data["fold"], config)
    results = evaluate(prediction, y, within, data["projects"], k, untrained, o.null)
    save_file(folder / "predictions.npz", lambda f: np.savez_compressed(
        f, prediction=prediction, truth=y, genes=np.array(data["genes"]), slide=data["slides"], patient=data["patients"],
        project=data["projects"], fold=data["fold"]))
    write_genes(folder / "genes.csv", data["genes"], results)
    some, rng = np.sort(np.random.default_rng(o.seed).permutation(y.shape[1])[:500]), np.random.default_rng([o.seed, len(y)])
    permuted = {name: stats.permutation_null(prediction[rows][:, some], y[rows][:, some], within[rows], 20, rng)
                for name, rows in cancers(data["projects"]).items()}
    plot_null(results, untrained, permuted, folder / "null.png")
    write_report(folder, Path(config["cohort"]), config, data, results, prediction, notes, ledgers, time.time() - start)
    print("\n" + "".join("{:>12} {:>7} {:>7} {:>9} {:>9} {:>15} {:>15}\n".format(*row)
                         for row in [SUMMARY_HEADER, *summary(results)]))
    print("best: " + ", ".join(f"{data['genes'][j]} ({name}, R {r:.2f})" for name, j, r in best_genes(results)))
    print(f"report: {folder / 'report.md'}   ({clock(time.time() - start)})")


def settle_choices(o):
    """o.code: the choices that --follow, --code and --colour turn; the options that they stand for are set."""
    asked = {*o.code, *(["colour"] if o.colour == "stretch" else [])}
    o.code = flipped(CHOICES, "train", asked, o.follow)
    if "colour" in o.code and o.features and "colour" not in asked:
        print("--follow code: without colour, for features made elsewhere keep the colours they were made from")
        o.code.remove("colour")
    for name, wrong, why in (
            ("colour", o.features, f"--features {o.features} were made elsewhere; leave --features out"),
            ("colour", o.colour not in (None, "stretch"), f"it is --colour stretch, not --colour {o.colour}"),
            ("folds", o.folds != FOLDS, f"the authors' are {FOLDS} folds; leave --folds {o.folds} out"),
            ("folds", o.folds_by == "site", "the authors' go by patient; leave --folds-by site out"),
            ("folds", o.valid not in (None, 0, stats.AUTHORS_VALID), f"theirs set {stats.AUTHORS_VALID} of the training "
             f"patients aside; leave --valid {o.valid} out"),
            ("epochs", o.valid, "all training patients learn, none is left to choose an epoch; leave --valid "
             f"{o.valid} out")):
        if name in o.code and wrong:
            raise InputError(f"--code {name}: {why}")
    o.colour = "stretch" if "colour" in o.code else o.colour
    o.valid = 0 if "epochs" in o.code else stats.AUTHORS_VALID if "folds" in o.code and o.valid is None else o.valid


def train(o):
    """Cross-validate, test significance, write the report."""
    start, demo = time.time(), o.cohort is None
    settle_choices(o)
    o.cohort, o.weights = (o.cohort, o.weights) if not demo else ("demo", o.weights or "random")
    o.epochs = (DEMO_EPOCHS if demo else EPOCHS) if o.epochs is None else o.epochs
    o.valid = (DEMO_VALID if demo else VALID_SHARE) if o.valid is None else o.valid
    check_options(o)
    tiling.need_matplotlib()                                                   # better now than after a day
    device, cohort = tiling.pick_device(o.device), Path(o.cohort)
    if demo and not tiling.by_first((cohort / "samples.csv").is_file):
        print("no cohort given: drawing a SIMULATED one into demo/")
        tiling.by_first(lambda: tiling.simulate_cohort(cohort, seed=o.seed))
    if not cohort.is_dir():
        raise InputError(f"{cohort}: no such folder")
    tables = read_gene_table(o.gene_table) if o.gene_table else None
    if tables and tables[1] is None:
        raise InputError(f"--gene-table {o.gene_table}: it has no column biotype to count protein-coding genes by")
    data, x, mask = prepare(cohort, o)
    if tables:
        names, data["coding_note"] = as_symbols(data["genes"], tables[0])
        data["coding"] = np.array([n in tables[1] or g.split(".")[0] in tables[1] for n, g in zip(names, data["genes"])])
    config = dict(command="train", bags="super-tiles", project=o.project or "all", types=o.types or "primary tumours",
                  genes_in_table=data["genes_in_table"], features=tiling.provenance(cohort, o, data["slides"]),
                  tiles_per_slide=x.shape[1], n_features=x.shape[2], hidden=o.hidden, ks=o.ks, dropout=o.dropout,
                  valid=o.valid, pad_to=tiling.N_SUPERTILES)
    folder, config = open_run(cohort, o, config, data, device, x.numpy(), mask.numpy())
    if o.within and (folder / "report.md").is_file():                          # of audit: finished, of these very settings
        return tiling.report_failures(data["failed"], len(data["slides"]) + len(data["failed"]))
    for path in [o.models / f"fold{f}.pt" for f in range(o.folds)] if o.models else ():            # of audit: the same ones
        saved = dict(tiling.load_checkpoint(path, "cpu"), run=tiling.mark_of(folder / path.name))
        save_file(folder / path.name, lambda f: torch.save(saved, f))
    splits = split_folds(data, o, folder, data["validates"])

    def first_model(f, rows):
        torch.manual_seed(int(np.random.default_rng([o.seed, f]).integers(2 ** 62)))
        model = HE2RNA(x.shape[2], len(data["genes"]), o.hidden, o.ks, o.dropout, code=o.code)
        if "bias" not in o.code:
            saw(data["ledgers"][f], "start of the last bias", data["patients"][rows])
            with torch.no_grad():
                model.layers[-1].bias.copy_(torch.from_numpy(data["y"][rows].mean(0)))              # [HE2RNA code]
        return model.to(device)
    cross_validate(folder, config, o, data, in_memory(x, mask), splits, first_model, start)
    return 0 if o.share[0] else tiling.report_failures(data["failed"], len(data["slides"]) + len(data["failed"]), folder)


def audit(o):
    """The default once per seed, then each choice of train and msi alone, same seeds -> COHORT/runs/audit/audit.md.
    Without a cohort: on the simulated one, in fewer epochs."""
    if o.seeds < 1:
        raise InputError(f"--seeds {o.seeds}: must be at least 1")
    start, demo, folder = time.time(), o.cohort is None, Path(o.cohort or "demo") / "runs" / "audit"
    o.epochs = (AUDIT_EPOCHS if demo else EPOCHS) if o.epochs is None else o.epochs
    if o.colour == "stretch":
        raise InputError("--colour stretch: the choice colour turns it; leave it out")
    if demo and not (folder.parents[1] / "samples.csv").is_file():
        print("no cohort given: drawing a SIMULATED one into demo/")
        tiling.simulate_cohort(folder.parents[1], seed=o.seed)
    o.weights = o.weights or ("random" if demo else None)
    texts, seeds = {c: switches(CHOICES, c) for c in ("train", "msi")}, range(o.seed, o.seed + o.seeds)
    asked = {c: [name for name in texts[c] if name in (o.code or texts[c])] for c in texts}
    made, first = None if o.features else tiling.encoder_wants(o)["colour"], tiling.read_samples(folder.parents[1])[0]
    for c, names, why in (
            ("train", ["colour"], o.features and "features made elsewhere keep the colours they were made from"),
            ("train", ["colour"], made and f"{o.encoder} learned from --colour {made}"),
            ("train", ["folds"], (o.folds != stats.AUTHORS_FOLDS or o.folds_by == "site") and
             f"the authors' are {stats.AUTHORS_FOLDS} folds by patient"),
            ("train", ["merged"], demo and "the simulated cohort has no LUNG, KIDN or UTER"),
            ("msi", list(asked["msi"]), "msi" not in first and "samples.csv has no column msi")):
        for name in names:
            if why and name in asked[c]:
                asked[c].remove(name)
                print(f"without {c}'s {name}: {why}")
    if not any(asked.values()):
        raise InputError(f"--code {','.join(o.code)}: nothing is left to turn")

    def training(name, seed):                                                  # what a switch decides is not the default's
        own = dict(colour=dict(colour=None), folds=dict(valid=None), epochs=dict(valid=None)).get(name, {})
        return argparse.Namespace(**{**vars(o), "seed": seed, "follow": None, "code": () if name == "default" else (name,),
                                     "within": "audit", "name": f"{name}-seed{seed}", **own})

    def train_job(name, seed):
        run = training(name, seed)
        run.models = folder / f"default-seed{seed}" if name in SAME_MODELS else None
        status = train(run)
        results, saved = read_results(folder / run.name)[1], (folder / run.name).glob("fold*.pt")
        results = [results[c] for c in separate(results, code_of(folder / run.name))]
        r = mean_of_values(np.array([mean_of_values(e["r"]) for e in results]))
        seconds = None if name in SAME_MODELS else sum(tiling.load_checkpoint(p, "cpu")["note"]["seconds"] for p in saved)
        return dict(R=float(r), **{c.upper(): int(sum(e[c].sum() for e in results)) for c in ("hs", "bh")}), seconds, status

    def msi_job(name, seed):
        run = argparse.Namespace(**{**vars(training(name, seed)), **AUDIT_MSI, "study": str(folder.parents[1]), "name":
                                    f"audit/msi-{name}-seed{seed}", "scale": None})
        status, own = msi(run), folder.parent / run.name
        rows = read_rows(own / "results.csv")[1]
        seconds = sum(e["seconds"] for e in tiling.read_log(own))
        return ({f"AUC {arm}": float(np.mean([number(row[5]) for row in rows if row[2] == arm])) for arm in run.arms},
                seconds, status)

    for name in asked["train"]:
        settle_choices(training(name, o.seed))                                 # what can't be is said before hours of others
    jobs = {c: {(c, name, seed): lambda job=job, name=name, seed=seed: job(name, seed)
                for name in ("default", *asked[c]) for seed in seeds if asked[c]}
            for c, job in (("train", train_job), ("msi", msi_job))}
    settings = {k: getattr(o, k) for k in (
        "epochs", "batch", "patience", "lr", "ks", "hidden", "dropout", "folds", "folds_by", "valid", "null", "null_models",
        "project", "types", "encoder", "features", "weights", "colour", "tile_um", "min_tissue", "max_tiles", "precision")}
    what = (f"`python he2rna.py audit`{'' if demo else ' COHORT'}: at most {o.epochs} epochs, batches of {o.batch}. "
            f"{tiling.AUDIT_NOTE} R: mean over the genes of a cancer, then over cancers; HS, BH: significant genes, of all "
            "cancers. The seed draws folds (but the authors'), first weights, dropout and k. A choice of genes, folds or ways to "
            f"judge changes what R is of, too. msi: {AUDIT_MSI['splits']} splits for each seed, {AUDIT_MSI['ratios'][0]} of the "
            "patients in hospital A."
            + f" On the simulated cohort folds also lowers the share that chooses the epoch, from {DEMO_VALID} to "
              f"{stats.AUTHORS_VALID}." * demo)
    status = 0
    for c, wrong in (("train", ()), ("msi", InputError)):
        try:
            status |= tiling.run_audit(folder, jobs[c], texts, settings, what)
        except wrong as e:                                                     # such as too few MSI-H
            print(f"without the choices of msi: {e}")
            status = 1
    print(f"\nreport: {folder / 'audit.md'}   ({clock(time.time() - start)})")
    return status


def load_run(path):
    """A finished run: dict of its folder, config, fold checkpoints, genes, rows of folds.csv, cohort, and fold_of: the fold
    (in a list) whose model did not learn from a patient, also of those that only the run it was fine-tuned from knew."""
    folder, config = Path(path), tiling.read_config(path, VERSION)
    if config is None:
        raise InputError(f"{folder}: not a run (no config.json); give a folder such as COHORT/runs/he2rna")
    if config.get("version") != VERSION:
        raise InputError(f"{folder} is a run of version {config.get('version')} of this program's files, this one reads "
                         f"version {VERSION}: train it again, or use the program that made it")
    paths = [folder / f"fold{f}.pt" for f in range(config["folds"])]
    missing = [p.name for p in paths if not p.is_file()]
    if missing or not (folder / "folds.csv").is_file():
        raise InputError(f"{folder}: {', '.join(missing) or 'folds.csv'} is missing: the run is not finished; the command "
                         "that began it goes on")
    keys = "model genes test_patients hidden ks n_features dropout".split()
    saved, cohort = [tiling.load_checkpoint(p, "cpu", keys=keys) for p in paths], folder.resolve().parents[1]
    fold_of = {p: [f] for f, one in enumerate(saved) for p in one["test_patients"]}
    rows = tiling.read_folds(folder, fold_of)
    moved = [row["slide"] for row in rows if row.get("test_fold") != str(fold_of[row["patient"]][0])]
    if moved:
        raise InputError(f"{folder / 'folds.csv'}: the slides {few(moved)} were tested in other folds than it says; bring "
                         "it back as it was made")
    return dict(folder=folder, config=config, folds=saved, genes=saved[0]["genes"], rows=rows,
                fold_of=fold_of,                                               # the cohort may have moved:
                cohort=cohort if (cohort / "samples.csv").is_file() else Path(str(config.get("cohort"))))


def model_of(saved, device, genes=None, ks=None):
    """The network of one fold, with the output rows of the chosen genes."""
    state, last = dict(saved["model"]), f"layers.{len(saved['hidden'])}."
    if genes is not None:
        state.update({last + k: state[last + k][genes] for k in ("weight", "bias")})
    model = HE2RNA(saved["n_features"], len(state[last + "bias"]), saved["hidden"], ks or saved["ks"], saved["dropout"],
                   code=saved["code"], pad_to=saved["pad_to"])
    model.load_state_dict(state)
    return model.to(device)


def finetune(o):
    """Go on from a run's fold models with all tiles of one cancer's slides, for all or chosen genes, in the run's folds."""
    start, cohort = time.time(), Path(o.cohort)
    tiling.need_matplotlib()
    run = load_run(o.run if Path(o.run).is_dir() else cohort / "runs" / o.run)
    name, before, first = run["folder"].resolve().name, run["config"], run["folds"][0]
    o.name = o.name or "-".join([name, *([o.project] if o.project else []), "finetuned"])
    o.folds, o.valid, o.dropout = before["folds"], before["valid"], before["dropout"]
    o.code, o.folds_by = before["code"], before["folds_by"]
    check_options(o)
    device, chosen = tiling.pick_device(o.device), pick_genes(o.genes, run["genes"])
    precision = tiling.pick_precision(o.precision, device) if o.precision else "float32"           # of choosing tiles
    genes, of_run = [run["genes"][j] for j in chosen], {row["slide"]: row for row in run["rows"]}
    everyone, left_out = select(tiling.read_samples(cohort), "all", o.project)
    samples = [s for s in everyone if s["slide"] in of_run]
    if not samples:
        raise InputError(f"{cohort}: none of its {len(everyone)} slides of project {o.project or 'all'} is of the run "
                         f"{run['folder']}")
    for s in samples:
        if s["patient"] != of_run[s["slide"]]["patient"]:
            raise InputError(f"slide {s['slide']} is patient {s['patient']}'s in {cohort / 'samples.csv'}, "
                             f"{of_run[s['slide']]['patient']}'s in the run: its fold would be wrong")
    left_out[f"slides that are not of the run {name}"] = [s["slide"] for s in everyone if s["slide"] not in of_run]
    key, ids, names, a = read_expression(cohort)
    column = {g: j for j, g in enumerate(names)}
    missing = [g for g in genes if g not in column]
    if missing:
        raise InputError(f"{cohort}: expression has no gene {few(missing)}, which the run has")
    samples, rows, unmatched = join(samples, key, ids, cohort / "expression")
    left_out = say_left_out({**left_out, **{k: v for k, v in unmatched.items() if k.startswith("slides")}})
    fold_of = lambda: np.array([int(of_run[s["slide"]]["test_fold"]) for s in samples])
    check_folds(cohort, samples, fold_of(), o, {})                             # before hours of tiling, and after
    ready, into, source, failed = features_as(run, o, cohort, [s["slide"] for s in samples])
    o.features = ready.features
    keep = [i for i, s in enumerate(samples) if s["slide"] not in failed]
    samples = [samples[i] for i in keep]
    check_folds(cohort, samples, fold_of(), o, failed)
    y = log_expression(a[np.ix_(rows[keep], [column[g] for g in genes])])
    data = table_of(samples, fold_of(), genes, y, left_out, failed)
    data["held_out"], data["encoder"] = [one["test_patients"] for one in run["folds"]], tiling.encoder_saw(into, source)
    data["ledgers"] = [{f"{name}: {step}": whom for step, whom in one["saw"].items()} for one in run["folds"]]
    weights = [digest(*(v.numpy() for v in one["model"].values())) for one in run["folds"]]
    config = dict(command="finetune", bags="all tiles", project=o.project or "all", features=before["features"],
                  from_run=dict(name=name, weights=weights), n_features=first["n_features"],
                  hidden=first["hidden"], ks=o.ks, dropout=first["dropout"], valid=o.valid, selection=precision,
                  pad_to=tiling.MAX_TILES)
    made_by = [tiling.features_made_by(into, source, s["slide"]) for s in samples]
    folder, config = open_run(cohort, o, config, data, device, made_by)
    splits = split_folds(data, o, folder, {s["slide"]: of_run[s["slide"]]["validates_folds"].split() for s in samples})

    def first_model(f, _):
        model = model_of(run["folds"][f], device, chosen, o.ks)
        model.precision, model.pad_to = precision, config["pad_to"]
        return model
    cross_validate(folder, config, o, data, from_disk(into, source, data["slides"]), splits, first_model, start)
    return 0 if o.share[0] else tiling.report_failures(failed, len(samples) + len(failed), folder)


@torch.inference_mode()
def predict(o):
    """Predict the expression of slides that have none: the mean of the run's models, as a csv for each slide."""
    run, device, failed, done = load_run(o.run), tiling.pick_device(o.device), {}, 0
    models, folder = [model_of(saved, device).eval() for saved in run["folds"]], run["folder"] / "predict"
    for _, home, into, source, name in each_slide(run, o, failed):
        try:
            features, coords = tiling.load_features(into, source, name)
            use, (bag, _) = held_out(run, name, home, o.all_models), bag_of(features, coords, run["config"])
            x = torch.from_numpy(bag)[None]
            bags = in_memory(x, torch.ones(x.shape[:2], dtype=torch.bool))
            p = np.mean([predict_slides(models[f], bags, [0])[0] for f in use], axis=0).astype(float)                  # (G,)
            if not p.max() < 300:                                              # 10 ** p must be a number, too; nan is not
                raise InputError(f"its prediction is not finite: features up to {np.abs(features).max():.3g} are of another "
                                 "scale than the run's")
        except InputError as e:
            failed[name] = str(e)
            continue
        save_csv(folder / f"{name}.csv", ("gene", "log10_1p_fpkm_uq", "fpkm_uq"),
                 ((g, f"{v:.6g}", f"{max(0, 10.0 ** v - 1):.6g}") for g, v in zip(run["genes"], p)))
        if o.representation:
            mean = torch.from_numpy(np.asarray(features, np.float32).mean(0)).to(device)            # one super-tile
            last = np.stack([models[f].representation(mean).cpu().numpy() for f in use])            # (M, H)
            save_file(folder / f"{name}.representation.npz", lambda f: np.savez(f, each=last, mean=last.mean(0), folds=use))
        print(f"{name}: {len(features):,} tiles, models of folds {', '.join(map(str, use))}"
              + ("" if len(use) == len(models) else " (the others learned from its patient)") + f" -> {folder / name}.csv")
        done += 1
    return tiling.report_failures(failed, done + len(failed), folder)


def heatmap(o):
    """Where on its slide a gene, or the mean of several, is predicted to be expressed; and whether the truth agrees."""
    tiling.need_matplotlib()
    run, device, results, failed = load_run(o.run), tiling.pick_device(o.device), [], {}
    chosen = pick_genes(o.genes, run["genes"])
    genes = [run["genes"][j] for j in chosen]
    label = o.name or ("-".join(genes) if len(genes) < 5 else f"{genes[0]}-and-{len(genes) - 1}-more-{digest(genes)[:6]}")
    if Path(label).name != label or label in (".", ".."):
        raise InputError(f"--name {label}: the name of a folder, not a path")
    if o.provenance and o.provenance not in genes:
        raise InputError(f"--provenance {o.provenance}: not one of --genes {few(genes)}")
    models = [model_of(saved, device, chosen).eval() for saved in run["folds"]]
    rows = group_r(run, chosen)
    group = [f"## {'Mean of the genes' if len(genes) > 1 else genes[0]} over the slides of the run", "", table(
        ("cancer", "slides", "R of mean prediction and mean expression", "95 %", "p"), rows), ""]
    print("over the slides of the run: " + ", ".join(f"{name} R {r} ({ci}; n {n})" for name, n, r, ci, _ in rows))
    for options, home, into, source, name in each_slide(run, o, failed):
        try:
            place = every_tile(run, options, home, into, source, name)
            results.append(map_slide(run, options, models, home, place, source, name, label, chosen, group))
        except (InputError, OSError) as e:
            failed[name] = str(e)
            continue
        found = {kind: f"R {r:.3f} (p {p:.3f})" for kind, _, r, p, *_ in results[-1].get("cells", ())}
        print(f"{name}: {results[-1]['tiles']:,} tiles, models of folds {', '.join(map(str, results[-1]['use']))}; "
              f"{o.provenance or genes[0]} {results[-1]['prediction']:.4f}"
              + (f"; {o.cells}: {found[o.cells]}" if found else "")
              + (f"; outline AUC {results[-1]['auc']:.3f}" if "auc" in results[-1] else "")
              + f" -> {run['folder'] / 'heatmaps' / label / name}", flush=True)
    if len(results) > 1:
        write_summary(run, o, label, results, group)
    return tiling.report_failures(failed, len(results) + len(failed), run["folder"] / "heatmaps" / label)


def write_summary(run, o, label, results, group):
    """summary.md of several slides: cells slide by slide, spots of the slides of each fold together."""
    path = run["folder"] / "heatmaps" / label / "summary.md"
    text = [f"# {label}: {len(results)} slides", "", f"Run {run['folder']}. Each slide has its own folder and report beside "
            "this file.", "", *group]
    cells = [(e["name"], e["project"], ", ".join(map(str, e["use"])), *row) for e in results for row in e.get("cells", ())]
    for kind in dict.fromkeys(row[3] for row in cells):
        rows = [row for row in cells if row[3] == kind]
        r = np.array([row[5] for row in rows])
        line = (f"{kind}: R per tile, mean over {(~np.isnan(r)).sum()} slides {np.nanmean(r):.3f}, median "
                f"{np.nanmedian(r):.3f}; p < {ALPHA} in {sum(row[6] < ALPHA for row in rows)} of them")
        text += [f"## {kind}", "", line, ""]
        if kind == o.cells:
            print(line)
            text += [table(("slide", "project", "models", "cells", "R", "p", "Spearman", "median in the best", "in all"), [
                (a, b, c, f"{n:,}", f"{r:.3f}", f"{p:.3f}", f"{rho:.3f}", f"{top:g}", f"{of_all:g}")
                for a, b, c, _, n, r, p, rho, m, top, of_all in rows]), ""]
    with_spots, rows = [e for e in results if "spots" in e], []
    for use in sorted({tuple(e["use"]) for e in with_spots}):
        part = [e["spots"] for e in with_spots if tuple(e["use"]) == use]
        line = spot_summary(spot_table(part, o.seed))
        rows.append((", ".join(map(str, use)), len(part), sum(len(s[0]) for s in part), line))
        print(f"spots of {len(part)} slides, models of folds {rows[-1][0]}: {rows[-1][2]} spots; {line}")
    if rows:
        text += ["## Spots", "", "R over the spots of all slides that the same models speak of; p against scores shifted "
                 "within each slide.", "", table(("models", "slides", "spots", "found"), rows), ""]
    save_text(path, text)
    print(f"report: {path}")


def msi_labels(labels, where):
    """'MSI-H', 'MSI-L', 'MSS' or '' (Indeterminate, or empty) for each label, in any case. InputError on other spellings."""
    known = {"msi-h": "MSI-H", "msi-l": "MSI-L", "mss": "MSS", "indeterminate": "", "": ""}
    odd = sorted({v for v in labels if v.strip().lower() not in known})
    if odd:
        raise InputError(f"{where}: " + ", ".join(f"{labels.count(v)} of {v!r}" for v in odd[:10]) + f", of {len(labels)} "
                         "labels, are none of MSI-H, MSI-L, MSS, Indeterminate or empty: write them so")
    return np.array([known[v.strip().lower()] for v in labels])


def study_of_cohort(o):
    """The slides of a cohort folder for read_study: a dict of arrays, a row each, and what is missing."""
    cohort, samples = Path(o.study), tiling.read_samples(o.study)
    if o.scale:
        raise InputError(f"--scale {o.scale}: only with FILE.npz; a cohort's expression is linear FPKM-UQ")
    if "msi" not in samples[0]:
        raise InputError(f"{cohort / 'samples.csv'}: no column msi (MSI-H, MSI-L, MSS, Indeterminate); it has "
                         f"{few(list(samples[0]))}")
    samples, left_out = select(samples, o.types, o.project)
    labels = msi_labels([s["msi"] for s in samples], cohort / "samples.csv")
    key, ids, genes, a = read_expression(cohort)
    kept, rows, missing = join(samples, key, ids, cohort / "expression")
    row_of = dict(zip((s["slide"] for s in kept), rows))
    hospital = [s["hospital"].upper() for s in samples] if "hospital" in samples[0] else None
    has_y = np.array([s["slide"] in row_of for s in samples])
    say_left_out({**left_out, **missing})
    use = needed(labels, has_y, hospital)
    failed = {} if o.features else tiling.share_out(tiling.make_features, cohort, [
        s["slide"] for s, u in zip(samples, use) if u], o)
    x, ready, source, tick = [], [], tiling.features_of(o), progress("mean tiles", int(use.sum()), "slides")
    tiling.say_twice(source, [samples[i]["slide"] for i in np.flatnonzero(use)])
    for i in np.flatnonzero(use):
        tick()
        slide = samples[i]["slide"]
        try:
            if slide not in failed:
                x.append(tiling.load_features(cohort, source, slide)[0].mean(0, dtype=np.float64))
                ready.append(i)
        except InputError as e:
            failed[slide] = str(e)
    widths = sorted({len(v) for v in x})
    if len(widths) != 1:
        tiling.report_failures(failed, int(use.sum()))
        raise InputError(f"{cohort}: " + (f"slides have features of {few(widths)} numbers: one encoder for all is needed"
                                          if x else "no slide has features and what its hospital needs"))
    y = np.zeros((len(ready), len(genes)), np.float32)
    for j, i in enumerate(ready):
        if has_y[i]:
            y[j] = log_expression(a[row_of[samples[i]["slide"]]])
    of = lambda column: np.array([samples[i][column] for i in ready])
    features = {k: v for k, v in tiling.provenance(cohort, o, of("slide")).items() if k != "supertiles"}
    return dict(x=np.stack(x).astype(np.float32), y=y, has_y=has_y[ready], genes=genes, patients=of("patient"),
                projects=of("project"), labels=labels[ready], hospital=hospital and np.array(hospital)[ready],
                dropped=int(((labels == "") & ~use).sum()), failed=failed, features=features)


def study_of_file(o):
    """The rows of an .npz for read_study: features (n, D), expression (n, G), genes, patients, msi[, hospital]."""
    path, wanted = Path(o.study), ("features", "expression", "genes", "patients", "msi")
    idle = [k for k in ("types", "project", "features", "weights", "precision", "colour", "mpp", "tile_um", "min_tissue",
                        "max_tiles", *tiling.TISSUE) if getattr(o, k) is not None]
    if idle or o.encoder != "resnet50":
        raise InputError(f"--{few(idle or ['encoder']).replace('_', '-')}: only with a cohort folder, {path} has features")
    z = tiling.load_arrays(path)
    if z is None or set(wanted) - set(z):
        raise InputError(f"{path}: " + (f"no array {few([w for w in wanted if w not in z])}; it has {few(list(z))}" if z else
                         "no such cohort folder, and no .npz that can be read (object arrays are pickles and not read: save "
                         "names as str)"))
    if any(z[k].ndim == 0 or not z[k].size for k in wanted):
        raise InputError(f"{path}: nothing in {few([k for k in wanted if z[k].ndim == 0 or not z[k].size])}")
    n = len(z["patients"])
    wrong = [f"{k} {z[k].shape}" for k, shape in (
        ("features", (n, *z["features"].shape[1:2])), ("expression", (n, len(z["genes"]))), ("msi", (n,)),
        ("patients", (n,)), ("genes", (len(z["genes"]),)), *([("hospital", (n,))] if "hospital" in z else []))
        if z[k].shape != shape or k == "features" and z[k].ndim != 2]
    if wrong:
        raise InputError(f"{path}: {few(wrong)} for {n} patients and {len(z['genes'])} genes; wanted features (n, D), "
                         "expression (n, G), genes (G,), patients (n,), msi (n,)")
    for k in ("features", "expression"):
        if z[k].dtype.kind not in "fiu":
            raise InputError(f"{path}: {k} are {z[k].dtype}, not numbers")
    x, y = (z[k].astype(np.float32) for k in ("features", "expression"))
    patients, labels = z["patients"].astype(str), msi_labels([str(v) for v in z["msi"]], path)
    hospital = np.char.upper(z["hospital"].astype(str)) if "hospital" in z else None
    has_y = ~np.isnan(y).all(1)
    use = needed(labels, has_y, hospital)
    for what, v, rows in (("features", x, use), ("expression", y, use & has_y)):
        bad = rows & ~np.isfinite(v).all(1)
        if bad.any():
            raise InputError(f"{path}: {what} of {bad.sum()} rows are NaN or infinite, the first of patient "
                             f"{patients[bad.argmax()]}")
    low, high = (f(y[use & has_y], initial=0) for f in (np.min, np.max))
    scale = o.scale or ("log" if low < 0 or high < 30 else "linear")           # log2 of a count is below 30
    if scale == "linear" and low < 0:
        raise InputError(f"{path}: --scale linear, but expression has {low:g}: linear FPKM-UQ is at least 0")
    print(f"expression from {low:g} to {high:g}: taken as " + ("logarithms, as it is" if scale == "log" else
          "linear FPKM-UQ, learned as log10(1 + a)") + ("" if o.scale else " (--scale to say otherwise)"))
    y = np.where(has_y[:, None], log_expression(y) if scale == "linear" else y, 0).astype(np.float32)
    if hospital is None and not has_y.all():
        print(f"{(~has_y).sum()} rows have no expression and are left out")
    return dict(x=x[use], y=y[use], has_y=has_y[use], genes=[str(g) for g in z["genes"]], patients=patients[use],
                projects=np.full(use.sum(), "all"), labels=labels[use], hospital=None if hospital is None else hospital[use],
                dropped=int(((labels == "") & ~use).sum()), failed={}, features=x.shape[1])


def needed(labels, has_y, hospital):
    """(S,) bool: rows with what their hospital needs, expression in A and a label in B; both where the hospital is drawn."""
    if hospital is None:
        return (labels != "") & has_y
    odd = sorted(set(hospital) - {"A", "B"})
    if odd:
        raise InputError(f"hospital: {few(odd)} in {sum(h in odd for h in hospital)} rows; A has expression, B has msi")
    return np.where(np.array(hospital) == "A", has_y, labels != "")


def read_study(o):
    """What the MSI study learns from, checked: a dict of x (S, D) mean feature of each slide, y (S, G) log expression, has_y
    (S,), high (S,) MSI-H, patients, projects, hospital (S,) of 'A', 'B' or None, genes, and a line on the patients."""
    if not Path(o.study).exists():
        raise InputError(f"{o.study}: no such cohort folder or .npz file")
    d = study_of_cohort(o) if Path(o.study).is_dir() else study_of_file(o)
    keep = d["labels"] != "MSI-L" if "msi-l" in o.code else np.ones(len(d["labels"]), bool)
    keep |= d["hospital"] == "A" if d["hospital"] is not None else False       # A's labels are not used
    low = len(set(d["patients"][~keep].tolist()))
    d = {k: v[keep] if isinstance(v, np.ndarray) else v for k, v in d.items()}
    in_b = d["hospital"] == "B" if d["hospital"] is not None else np.ones(len(d["x"]), bool)
    for what, values, rows in (("labelled", d["labels"], in_b), ("of hospital", d["hospital"], slice(None))):
        if values is not None:
            pairs = sorted(set(zip(d["patients"][rows].tolist(), values[rows].tolist())))
            twice = sorted({p for (p, _), (q, _) in zip(pairs, pairs[1:]) if p == q})
            if twice:
                raise InputError(f"{len(twice)} of {len(set(d['patients']))} patients are {what} two kinds: "
                                 + few([f"{p} ({', '.join(v for q, v in pairs if q == p)})" for p in twice])
                                 + "; a patient's slides must agree")
    labels = dict(zip(d["patients"][in_b].tolist(), d["labels"][in_b].tolist()))
    count = {k: list(labels.values()).count(k) for k in ("MSI-H", "MSI-L", "MSS")}
    d["line"] = (f"{len(set(d['patients']))} patients, {len(d['x'])} slides" + (
        "" if d["hospital"] is None else f", {len(labels)} patients in hospital B") + ": " + ", ".join(
        f"{n} {k}" for k, n in count.items()) + f"; dropped: {d['dropped']} slides Indeterminate or without a label"
        + (f", {low} patients MSI-L" if "msi-l" in o.code else ""))
    d["high"] = d["labels"] == "MSI-H"
    print(d["line"])
    if min(count["MSI-H"], len(labels) - count["MSI-H"]) < o.folds:
        raise InputError(f"{o.study}: {count['MSI-H']} MSI-H and {len(labels) - count['MSI-H']} other patients"
                         + (" in hospital B" if d["hospital"] is not None else "")
                         + f"; --folds {o.folds} needs as many of each")
    return d


def shares_of(o, d):
    """[(name, share of the patients in A)] that leave both hospitals enough; those asked for by --ratios must."""
    if d["hospital"] is not None:
        if o.ratios:
            raise InputError(f"--ratios {','.join(map(str, o.ratios))}: not where {o.study} has a hospital for each patient")
        n = len(set(d["patients"][d["hospital"] == "A"].tolist()))
        if n < o.folds:
            raise InputError(f"{o.study}: hospital A has {n} patients with expression; --folds {o.folds} needs as many")
        return [("given", None)]
    names, first = np.unique(d["patients"], return_index=True)
    shares, short_of = [], []
    for share in o.ratios or MSI_SHARES:
        in_a = hospital_a(d["high"][first], share, np.random.default_rng(0))
        there = int((d["high"][first] & ~in_a).sum()), int((~d["high"][first] & ~in_a).sum())
        if min(*there, in_a.sum()) < o.folds:
            short_of.append(f"{share} in A leaves B {there[0]} MSI-H and {there[1]} other patients")
        else:
            shares.append((str(share), share))
    text = f"{few(short_of)}; --folds {o.folds} needs as many of each (and as many patients in A)"
    if short_of and (o.ratios or not shares):
        raise InputError(f"{o.study}: {text}: " + (f"--ratios {','.join(n for n, _ in shares)} would work" if shares else
                                                  "more patients are needed"))
    if short_of:
        print(f"left out: {text}")
    return shares


def msi(o):
    """What the transcriptomic representation of hospital A is worth for predicting MSI from few patients in hospital B."""
    o.code = sorted(flipped(CHOICES, "msi", o.code, o.follow))
    for name, value, low in (("--splits", o.splits, 1), ("--repeats", o.repeats, 1), ("--folds", o.folds, 2)):
        if value < low:
            raise InputError(f"{name} {value}: must be at least {low}")
    tiling.need_matplotlib()
    device, start = tiling.pick_device(o.device), time.time()
    d = read_study(o)
    ratios, in_cohort = shares_of(o, d), Path(o.study).is_dir()
    folder = Path(o.study) / "runs" / (o.name or "msi") if in_cohort else Path(o.name or Path(o.study).stem + "-msi")
    columns = (d[k].tolist() for k in ("patients", "projects", "high", "has_y"))
    hospital = [] if d["hospital"] is None else d["hospital"].tolist()
    config = dict(command="msi", version=VERSION, code=o.code, repeats=o.repeats, folds=o.folds, seed=o.seed,
                  features=d["features"], data=digest(d["x"], d["y"], *columns, hospital))
    config = tiling.claim_folder(folder, config, "results.csv", o.share, study=str(Path(o.study).resolve()),
                                 device=str(device), processes=o.share[1])
    path, results = folder / "results.csv", {}
    for row in read_rows(path)[1] if path.is_file() else []:
        if len(row) != 8 or not row[0].isdigit() or row[2] not in MSI_ARMS or np.isnan(number(row[5])):
            raise InputError(f"{path}: {','.join(row)} is no row of ours: delete the file to begin again")
        results.setdefault((int(row[0]), row[1], row[2]), []).append(row)
    whole = o.repeats * o.folds
    jobs = [(s, ratio, [arm for arm in o.arms if len(results.get((s, ratio[0], arm), ())) != whole])
            for s in range(o.splits) for ratio in ratios]
    jobs = [job for job in jobs if job[2]]
    names, first, who = np.unique(d["patients"], return_index=True, return_inverse=True)
    print(f"{o.splits} splits x {len(ratios)} ratios ({len(jobs)} to do), {o.repeats} x {o.folds} folds, arms "
          f"{', '.join(o.arms)}, on {device}" + (f"; the authors' {', '.join(o.code)}" if o.code else ""), flush=True)

    def study(s, ratio, missing):
        began, (name, share) = time.time(), ratio
        in_a = (d["hospital"] == "A" if share is None else
                hospital_a(d["high"][first], share, np.random.default_rng([o.seed, s]))[who])
        key = (s, *(share.as_integer_ratio() if share else (0, 1)))
        aucs, note = compare_arms(d, in_a, missing, o, key, device)
        in_b = np.unique(d["patients"][~in_a], return_index=True)[1]
        return s, name, aucs, note, (len(in_b), int(d["high"][~in_a][in_b].sum())), round(time.time() - began, 1)

    def studies():                                                             # each process one; the first writes them down
        for i in range(0, len(jobs), o.share[1]):
            mine = jobs[i + o.share[0]:][:1]
            yield from (done for done in tiling.of_all(study(*mine[0]) if mine else None) if done)

    due = tiling.seldom()
    for i, (s, name, aucs, note, sizes, seconds) in enumerate(studies()):
        if o.share[0]:
            continue
        for arm, auc in aucs.items():
            results[s, name, arm] = [[s, name, arm, r, f, f"{auc[r, f]:.6f}", *sizes] for r, f in np.ndindex(*auc.shape)]
        order = sorted(results, key=lambda k: (k[0], Fraction(k[1]) if "/" in k[1] else 0, list(MSI_ARMS).index(k[2])))
        save_csv(path, ("split", "ratio", "arm", "repeat", "fold", "auc", "patients_b", "msi_h_b"),
                 (row for k in order for row in results[k]))
        with open(folder / "log.jsonl", "a") as f:
            mean = {arm: round(float(auc.mean()), 4) for arm, auc in aucs.items()}
            f.write(json.dumps(dict(split=s, ratio=name, patients_b=sizes[0], msi_h_b=sizes[1], **note, **mean,
                                    seconds=seconds)) + "\n")
        if not due(i == len(jobs) - 1):
            continue
        left = (time.time() - start) / (i + 1) * (len(jobs) - 1 - i)
        print(f"split {s:2d}  {name} in A, {sizes[0]} patients ({sizes[1]} MSI-H) in B  AUC "
              + "  ".join(f"{arm} {v:.3f}" for arm, v in mean.items()) + f"  {clock(left)} left", flush=True)
    if o.share[0]:
        return 0
    write_msi_report(folder, config, d, {k: np.array([float(row[5]) for row in v]).mean() for k, v in results.items()},
                     {k[1]: v[0][6:8] for k, v in results.items()})
    return tiling.report_failures(d["failed"], len(d["x"]) + len(d["failed"]), folder)


def compare_to(results, ratio, arm, other="transcriptome"):
    """(AUC of an arm, of the other) over the splits that have both, two-sided p of their paired Wilcoxon test."""
    pairs = [(v, results[s, r, other]) for (s, r, a), v in sorted(results.items()) if (r, a) == (ratio, arm)
             and (s, r, other) in results]
    a, b = np.array(pairs, float).reshape(-1, 2).T
    return a, b, stats.wilcoxon_signed_rank(b, a)[1] if len(a) and arm != other else np.nan


def verdict(results, ratios, arms, folds):
    """One paragraph: where the transcriptomic representation wins and where it does not, against each other arm."""
    text, given = [], ratios == ["given"]
    for arm in arms:
        kinds = {"wins at": [], "loses at": [], "cannot be told apart at": [], "has too few splits for a p < .05 at": []}
        for ratio in ratios:
            a, b, p = compare_to(results, ratio, arm)
            if len(a):
                wins, loses, even, few_splits = kinds
                kind = (few_splits if 2 ** (1 - len(a)) >= ALPHA else even if not p < ALPHA else
                        wins if b.mean() > a.mean() else loses)
                kinds[kind].append(f"{ratio} ({b.mean() - a.mean():+.3f})")
        said = [f"{kind} {', '.join(v)}" for kind, v in kinds.items() if v]
        if said:
            text.append(f"Against {MSI_ARMS[arm]} it {'; '.join(said)}.")
    return ("The transcriptomic representation, by the share of the patients in hospital A (difference of mean AUC; told "
            f"apart: two-tailed Wilcoxon over paired splits, p < {ALPHA}, not corrected over ratios and arms). "
            + " ".join(text) + f" It is the mean of the last hidden layers of A's {folds} networks, as autoencoder A is of "
            "its, an advantage of ensembling that the one direct network and autoencoder B lack: the fair comparison of "
            f"features is with the ensemble of {folds} direct networks. " + (
                "The hospitals are given: splits differ in folds and first weights alone, p and the 68 % range say "
                "nothing of other patients." if given else "Splits divide the same patients again and again: p and the 68 % "
                "range tell whether another split of *these* patients would agree, not whether other patients would."))


def plot_shares(path, results, ratios, arms):
    """AUC against the fraction of the patients in B, mean and 68 % range over the splits (Fig. 5b)."""
    x = [1 - float(Fraction(r)) for r in ratios]
    with tiling.figure(path, figsize=(6.4, 4.4)) as ax:
        for arm in arms:
            each = [[v for (_, r, a), v in results.items() if (r, a) == (ratio, arm)] for ratio in ratios]
            some = [i for i, v in enumerate(each) if v]
            line = [np.mean(each[i]) for i in some]
            color, style = MSI_LINES[arm]
            ax.plot([x[i] for i in some], line, style, color=color, marker="o", ms=3, label=MSI_ARMS[arm])
            if arm in ("transcriptome", "direct"):
                low_high = np.array([np.quantile(each[i], MSI_INTERVAL) for i in some]).T
                ax.fill_between([x[i] for i in some], *low_high, color=color, alpha=.2, lw=0)
        ax.set(xlabel="fraction of the patients in hospital B", ylabel="AUC for MSI-H in hospital B")
        ax.set_xticks(x, [f"{Fraction(1) - Fraction(r)}" for r in ratios])
        ax.legend(fontsize=8)


def plot_arms(path, results, ratio, arms):
    """Each arm's AUC over the splits of one ratio: quartiles, median, mean, p against the transcriptome (Fig. 5c)."""
    with tiling.figure(path, figsize=(1.5 + 1.5 * len(arms), 4.4)) as ax:
        for i, arm in enumerate(arms):
            a = np.array([v for (_, r, k), v in results.items() if (r, k) == (ratio, arm)])
            if len(a) > 1 and np.ptp(a) > 0:
                body = ax.violinplot(a, [i], widths=.8, showextrema=False)["bodies"][0]
                body.set_facecolor(MSI_LINES[arm][0])
            ax.vlines(i, *np.quantile(a, (.25, .75)), color="black", lw=5)
            ax.plot(i, np.median(a), "o", color="white", ms=5, mec="black", zorder=3, label="median" if i == 0 else None)
            ax.plot(i, a.mean(), "^", color="red", ms=6, zorder=3, label="mean" if i == 0 else None)
            p = compare_to(results, ratio, arm)[2]
            if not np.isnan(p):
                stars = "*" * sum(p < level for level in (.05, .01, .001, .0001))
                ax.annotate(f"p = {p:.2g} {stars}", (i, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        ax.set_xticks(range(len(arms)), [MSI_ARMS[arm].replace(" ", "\n", 1) for arm in arms], fontsize=8)
        ax.set_ylabel(f"AUC for MSI-H in hospital B, {ratio} of the patients in A")
        ax.legend(fontsize=8, loc="lower left")


def write_msi_report(folder, config, d, results, sizes):
    """report.md, table.csv and the two figures from the mean AUC of each (split, ratio, arm). sizes: ratio -> (B, MSI-H)."""
    arms = [a for a in MSI_ARMS if any(k[2] == a for k in results)]
    ratios = sorted({k[1] for k in results}, key=lambda r: Fraction(r) if "/" in r else 0)
    n = max(len([k for k in results if k[1:] == which]) for which in {k[1:] for k in results})
    rows, cells = [], []
    for ratio in ratios:
        cells.append([ratio, f"{sizes[ratio][0]} ({sizes[ratio][1]})"])
        for arm in arms:
            a = np.array([v for (_, r, k), v in results.items() if (r, k) == (ratio, arm)])
            if not len(a):
                cells[-1].append("")
                continue
            (low, high), (own, other, p) = np.quantile(a, MSI_INTERVAL), compare_to(results, ratio, arm)
            rows.append((ratio, arm, len(a), f"{a.mean():.4f}", f"{a.std(ddof=1) if len(a) > 1 else 0:.4f}", f"{low:.4f}",
                         f"{high:.4f}", "" if np.isnan(p) else f"{p:.3g}", "" if np.isnan(p) else int((other > own).sum())))
            cells[-1].append(f"{a.mean():.3f} ({low:.3f}–{high:.3f})" + ("" if np.isnan(p) else f", p {p:.2g}")
                             + f", {len(a)} splits" * (len(a) < n))
    save_csv(folder / "table.csv", ("ratio", "arm", "splits", "auc", "sd", "low_68", "high_68", "p",
                                    "transcriptome_better"), rows)
    text = [f"# MSI: what hospital A's transcriptome is worth in hospital B, {config['study']}", "", d["line"] + ".", "",
            f"{n} splits where not said otherwise, {config['repeats']} x {config['folds']} folds in B by "
            "patient; AUC over a test fold's patients, its mean over folds and repeats, then over splits (68 % range over "
            "splits); p: "
            f"two-tailed Wilcoxon against transcriptome, paired, over the splits; of {n} it can't be below "
            f"{2 / 2 ** n:.2g}." + "".join(f" As the authors' code: {switches(CHOICES, 'msi')[c]}." for c in config["code"]), "",
            table(("in A", "patients in B (MSI-H)", *arms), cells), ""]
    log = tiling.read_log(folder)
    leaks = sorted({step for e in log for step in e["leaks"]})
    text[2:2] = [f"**Steps that saw test patients: {', '.join(leaks)}** (below).", ""] if leaks else []
    seen = {row[0]: row for e in log for row in e["saw"]}
    text += ["Patients that each step learned from, in the test folds of hospital B (of the last split that did it):", "",
             table(("step", "patients", "test patients of the fold", ""), seen.values()), ""] if seen else []
    r = [e["r_in_a"] for e in log if e.get("r_in_a") is not None]
    if r:
        text += [f"R of expression in A's own test folds, mean over genes and splits: {np.mean(r):.3f}.", ""]
    if "transcriptome" in arms and len(arms) > 1:
        text += [verdict(results, ratios, [a for a in arms if a != "transcriptome"], config["folds"]), ""]
        print(text[-2])
    if ratios != ["given"]:
        plot_shares(folder / "shares.png", results, ratios, arms)
        text += ["![AUC against the fraction in B](shares.png)", ""]
    at = min(ratios, key=lambda r: abs(float(Fraction(r)) - .75) if "/" in r else 0)
    plot_arms(folder / "arms.png", results, at, [a for a in arms if any(k[1:] == (at, a) for k in results)])
    text += ["![AUC of each arm](arms.png)", ""]
    save_text(folder / "report.md", text)
    print(f"report: {folder / 'report.md'}")


def choices(o):
    """Where paper and authors' code differ or are silent, and what is done here."""
    tiling.show_choices(CHOICES, "he2rna.py")
    return 0


def main(argv=None):
    parser, verbs = tiling.parsers("he2rna.py", __doc__)

    def verb(function, what):
        p = verbs.add_parser(function.__name__, help=what, description=function.__doc__)
        p.set_defaults(function=function)
        return p, p.add_argument

    types = ("samples to use: sample_type values, characters 14-15 of TCGA barcodes, or all (default: primary tumours, as "
             "the paper, where samples.csv tells)")

    def cohort_options(p, a, epochs):
        a("cohort", nargs="?", help="a cohort folder; without one a simulated cohort is drawn into demo/")
        a = p.add_argument_group("training").add_argument
        a("--types", metavar="TYPE,..", help=types)
        a("--project", metavar="P,..", help="these projects alone, in the folds of the whole cohort (LUNG: LUAD, LUSC)")
        a("--folds", type=int, default=FOLDS, help=f"of the cross-validation, patients whole (default {FOLDS})")
        a("--valid", type=float, help=f"share of training patients that choose the epoch (default {VALID_SHARE}, "
          f"{DEMO_VALID} without a cohort); raise it for few slides, whose R is chance; 0: train on all and keep the "
          "last epoch")
        a("--gene-table", metavar="FILE", help="gene_id, symbol, biotype (csv or tsv): counts protein-coding genes apart")
        a("--hidden", type=numbers, default=HIDDEN, metavar="N,..", help="neurons of the hidden layers (default "
          f"{','.join(map(str, HIDDEN))})")
        a("--dropout", type=float, default=DROPOUT, help=f"between layers (default {DROPOUT})")
        a("--folds-by", choices=("patient", "site"), default="patient", help="what test folds never divide: patients "
          "(default, the paper's), or the TCGA tissue source sites of their barcodes, whose stains can pass for biology")
        training_options(a, EPOCHS, PATIENCE, BATCH_SLIDES, KS_SUPERTILES, f"; {epochs} without a cohort")
        p.set_defaults(epochs=None, within="", models=None)
        tiling.add_options(p)
        return a

    p, a = verb(expression, "a folder of GDC downloads -> the expression table of a cohort")
    a("folder", metavar="GDC_DIR", help="folder of *.FPKM-UQ.txt.gz or *_star_gene_counts.tsv, as gdc-client or the portal "
      "leaves it")
    a("--sheet", metavar="FILE", help="the GDC sample sheet, which alone says whose the files are (default: the only "
      "gdc_sample_sheet*.tsv of GDC_DIR)")
    a("--manifest", metavar="FILE", help="the manifest of the download: all its files must be there, of their size, "
      "and those read of their md5, for a .tsv cut off at a line's end looks whole")
    a("--out", metavar="FILE", help="the table, .npz (smallest), .csv or .csv.gz; COHORT/expression.npz is found by train")
    a("--types", metavar="TYPE,..", help="sample types, by name or as characters 14-15 of the barcode, or all (default 01, "
      "primary tumours, as the paper; 01,11 for tumour against normal)")
    a("--project", metavar="P,..", help="of these projects alone (LUNG is LUAD and LUSC)")
    a("--partial", action="store_true", help="make the table without files that are missing or not whole (exit status 1); "
      "by default there is none, for a table that lacks samples looks like any other")

    p, b = verb(samples, "a cohort's TCGA slides and expression table -> its samples.csv")
    b("cohort", help="the cohort folder, with slides/ and expression.npz, .csv or .csv.gz")
    b("--sheet", metavar="FILE", help="a GDC sample sheet of the slides or of the expression: says each patient's project "
      "(default: the only gdc_sample_sheet*.tsv of COHORT)")
    b("--kind", choices=("DX", "frozen", "all"), default="DX", help="of slides: DX, diagnostic ones (default: FFPE, as "
      "HE2RNA), or frozen ones (TS, BS, MS: as HistCode, cut beside the piece whose RNA was read)")
    for a in (a, b):
        a("--overwrite", action="store_true", help="replace what is there already")
        a("--dry-run", action="store_true", help="count patients and samples of each project, write nothing")

    p, a = verb(train, "cross-validate, test significance, write the report")
    a = cohort_options(p, a, DEMO_EPOCHS)
    a("--name", default="he2rna", help="COHORT/runs/NAME (default he2rna); an interrupted run goes on")
    tiling.add_choices(a, CHOICES, "train")

    p, a = verb(choices, "where paper and authors' code differ or are silent, and what is done here")

    p, a = verb(audit, "each choice turned alone: what it changes")
    a = cohort_options(p, a, AUDIT_EPOCHS)
    every = tuple(dict.fromkeys(name for _, name, *_ in CHOICES))
    a("--code", type=chosen_of(every), action="extend", default=[], metavar="A,B", help="these choices alone (default all: "
      f"{', '.join(every)}; genes and epochs are of train and of msi)")
    a("--seeds", type=int, default=AUDIT_SEEDS, help=f"runs of each, --seed and those after it (default {AUDIT_SEEDS})")

    p, a = verb(finetune, "go on with all tiles, for all or chosen genes")
    a("cohort", help="the cohort folder")
    a("run", help="the run to start from: its name in COHORT/runs, or its folder")
    p.set_defaults(within="")
    a = p.add_argument_group("training").add_argument
    a("--genes", default="all", metavar="A,B|FILE|all", help="genes to go on with; they keep their output rows (default "
      "all)")
    a("--project", metavar="P,..", help="the cancer to fine-tune on, in the run's folds (default: all of the run)")
    a("--name", help="of the new run in COHORT/runs (default RUN-PROJECT-finetuned)")
    training_options(a, FINE_EPOCHS, FINE_PATIENCE, FINE_BATCH, KS_TILES, "")
    tiling.add_options(p, of_run=True)

    for function, what in ((predict, "expression of new slides, as csv"),
                           (heatmap, "where on the slide, and against the truth")):
        p, a = verb(function, what)
        a("run", help="a finished run, COHORT/runs/NAME")
        a("slide", nargs="+", help="slide files, names of the run's slides, or the word all for those")
        a("--all-models", action="store_true", help="for a slide of the run's patients, also the models that learned "
          "from the patient")
        if function is predict:
            a("--representation", action="store_true", help="write the last hidden layer of the mean tile too: what "
              "transfers to other labels")
        else:
            a("--genes", required=True, metavar="A,B|FILE", help="one gene, or several whose mean is drawn")
            a("--name", help="of the folder in RUN/heatmaps/ (default: the genes)")
            a("--cells", default="all cells", metavar="CLASS", help="class of points/ to draw and to count in the best "
              "tiles (default: all cells; the report has a row for each)")
            a("--regions", metavar="CLASS", help="class of the outlines in regions/ to compare with (default: all)")
            a("--provenance", metavar="GENE", help="the gene whose weight of every tile is written (default: the first)")
        tiling.add_options(p, of_run=True)

    for function, what in ((signatures, "pathways against random lists of genes"),
                           (enrich, "pathways of the well-predicted genes")):
        p, a = verb(function, what)
        a("run", help="a finished run, COHORT/runs/NAME")
        a("--gmt", nargs="+", required=True, metavar="FILE", help="gene sets (MSigDB's .gmt, plain or gzip)")
        a("--correction", choices=("hs", "bh"), default="hs", help="which genes count as significant: Holm–Šidák (default, "
          "the paper's) or Benjamini–Hochberg")
        a("--gene-table", metavar="FILE", help="csv or tsv with gene_id, symbol, biotype: maps Ensembl ids to the symbols "
          "of the sets, counts protein-coding genes")
        if function is signatures:
            a("--signature", action="append", metavar="NAME[=SET,SET..]", help="genes in at least two of the sets; a set's "
              f"name; or one of the paper's: {', '.join(stats.SIGNATURES)} (default: those and housekeeping sets); may be "
              "given again")
            a("--lists", type=int, default=stats.N_LISTS, help=f"random lists (default {stats.N_LISTS:,}, the paper's)")
            a("--seed", type=tiling.natural, default=0, help="of the random lists (default 0)")
        else:
            a("--project", metavar="P", help="one cancer (default: each)")
            a("--min-r", type=float, metavar="R", help="hits are the genes with an R above it instead (the paper: .4 where "
              "very many are significant)")
            a("--at-least", type=int, metavar="C", help="hits are the genes significant in at least C cancers")

    p, a = verb(msi, "hospital A, hospital B: what A's transcriptome is worth for MSI in B")
    a("study", metavar="COHORT|FILE.npz", help="a cohort whose samples.csv has a column msi, or a file of arrays features "
      "(n, D), expression (n, G), genes, patients, msi; a column or array hospital (A, B) divides them, else they are drawn")
    a = p.add_argument_group("study").add_argument
    a("--name", help="of the run in COHORT/runs (default msi); with FILE.npz the folder to write (default FILE-msi, here); "
      "an interrupted run goes on, and more --splits, --ratios or --arms are added to it")
    a("--splits", type=int, default=MSI_SPLITS, help=f"divisions of the patients into A and B (default {MSI_SPLITS}, the "
      "paper's; 10 show the curve)")
    a("--ratios", type=fractions, metavar="1/2,..", help="shares of the patients in A (default "
      f"{','.join(map(str, MSI_SHARES))}, those that leave B enough MSI-H)")
    a("--arms", type=chosen_of(MSI_ARMS), default=tuple(MSI_ARMS), metavar="A,B", help="what to compare (default all: "
      f"{', '.join(MSI_ARMS)}); the autoencoders take most of the time")
    a("--folds", type=int, default=MSI_FOLDS, help=f"in A and in B (default {MSI_FOLDS}, the paper's)")
    a("--repeats", type=int, default=MSI_REPEATS, help=f"of the cross-validation in B (default {MSI_REPEATS}, the paper's)")
    tiling.add_choices(a, CHOICES, "msi")
    a("--scale", choices=("log", "linear"), help="of FILE.npz's expression (default: linear where it is never negative and "
      "reaches 30, which no logarithm does)")
    a("--types", metavar="TYPE,..", help=types)
    a("--project", metavar="P,..", help="these projects alone, pooled (the paper: COAD; the authors' code: COAD,READ)")
    tiling.add_options(p)

    o = parser.parse_args(argv)
    o.seed = getattr(o, "seed", 0) or 0
    try:
        with tiling.one_voice(o, SHARED):
            return o.function(o)
    finally:
        tiling.release()


if __name__ == "__main__":
    tiling.run(main)
