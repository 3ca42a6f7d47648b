"""Bags to learn from: the labelled slides of a cohort, or the bags of a table of instances.

Either is a dict: names, patients, y (n,); words (n,), the labels as they are written; classes
(negative, positive); bag(i) -> features (T, D);
sums (heads.sums_of each bag); n_features; features (what made them) and seen (what tells them from
others); failed {name: why} and left_out {what: names}; what, "slides" or "bags".
"""

import argparse
import math
from collections import Counter
from pathlib import Path

import numpy as np

from lab.cohort.check import check_cohort
from lab.cohort.encoding import make_features
from lab.cohort.features import (
    features_made_by,
    features_of,
    learned_as,
    load_features,
    provenance,
)
from lab.cohort.labels import counted_words, is_number, of_no_class, plain, two_classes
from lab.cohort.samples import TISSUES, barcode, read_samples
from lab.encoders import ENCODERS
from lab.files import InputError, few, load_json, number, read_rows
from lab.findings import Findings
from lab.histcode.heads import sums_of
from lab.processes import share_out
from lab.progress import counted, ordered_map, progress, report_failures
from lab.words import find_word, is_unknown

TILE_UM = 128.0  # edge of a tile, µm  [HistCode Methods, Image processing]
MAX_TILES = 10**9  # of a slide: all  [HistCode Methods, Image processing]
TISSUE_NAMES = {1: "tumour", 0: "normal"}

# Of a table of bags: rate, decay and epochs of Ilse et al. 2018 for MUSK1; one layer, Adam  [ours]
BAGS = {
    "lr": 5e-4,
    "weight_decay": 5e-3,
    "epochs": 100,
    "folds": 10,
    "repeats": 5,
    "hidden": 64,
    "embed": (64,),
}


# Labels


def tissue_of(samples, cohort):
    """1 tumour, 0 normal, None neither, of each row of samples.csv.

    By its column tumor, else sample_type, else the TCGA barcode of its sample or slide.
    """
    path = Path(cohort) / "samples.csv"
    column = tissue_column(samples)
    kinds = []
    for sample in samples:
        if not column:
            named = [barcode(sample.get(key, ""))[1] for key in ("sample", "slide")]
            kinds.append(named[1] if named[0] is None else named[0])
            continue
        said = sample[column]
        word = plain(said).lower()
        if column != "sample_type" and word not in TISSUES and not is_unknown(said):
            raise InputError(
                f"{path}: {column} of slide {sample['slide']} is {said!r}; wanted 1 or 0, "
                "tumor or normal, or nothing"
            )
        kinds.append(TISSUES.get(word))
    if not column and not any(kind is not None for kind in kinds):
        raise InputError(
            f"{path}: no column tumor (1, 0) or sample_type, and no TCGA barcode, says which "
            "slides are tumour and which are normal; --label COLUMN tells any two labels apart"
        )
    return kinds


def tissue_column(samples):
    """The column of samples.csv that says tumour or normal; None where barcodes must."""
    columns = ("tumor", "tumour", "sample_type")
    return next((column for column in columns if column in samples[0]), None)


def tissue_words(samples, tissue):
    """How many slides have which word for tumour, normal and neither, in words."""
    column = tissue_column(samples)
    words = np.array([s[column] if column else "by its barcode" for s in samples])
    said = []
    for kind, name in ((1, "tumour"), (0, "normal"), (None, "neither")):
        own = np.array([one == kind for one in tissue])
        if own.any():
            said.append(f"{name}: {counted_words(words, own)}")
    return "; ".join(said)


def labelled_slides(cohort, o, classes=None):
    """(rows of samples.csv, their Labels); classes: those of the cohort that was learned from."""
    if not Path(cohort).is_dir():
        raise InputError(f"{cohort}: no such folder")
    samples = read_samples(cohort)
    where = f"{cohort}/samples.csv, column {o.label or 'of tumour and normal'}"
    if o.label is None:
        tissue = [TISSUE_NAMES.get(kind, "") for kind in tissue_of(samples, cohort)]
        labels, column = two_classes(tissue, where), tissue_column(samples)
        words = [s[column] for s in samples] if column else tissue
        return samples, labels._replace(words=np.array(words))
    if o.label not in samples[0]:
        raise InputError(
            f"{cohort}/samples.csv: no column {o.label}; it has {', '.join(samples[0])}: "
            "choose with --label"
        )
    words = [s[o.label] for s in samples]
    if classes is None:
        return samples, two_classes(words, where, o.positive, o.negative)
    there = o.negative and [word for word in o.negative if find_word(plain(word), words)]
    return samples, two_classes(words, where, classes[1], there)


# Slides of a cohort


def cut_as_the_paper(cohort, o):
    """The options with the paper's tiles, unless the cohort's tiles are there, which stay."""
    if load_json(Path(cohort) / "tiles" / "settings.json"):
        return o
    o = argparse.Namespace(**vars(o))
    if o.encoder in ENCODERS:  # a file says itself
        o.tile_um = o.tile_um or TILE_UM
    o.tissue = o.tissue or "saturation"
    o.max_tiles = o.max_tiles or MAX_TILES
    return o


def read_sums(cohort, source, slides, workers, failed):
    """{slide: sums_of its features}, each read and checked; what fails goes to `failed`."""

    def read(name):
        return sums_of(load_features(cohort, source, name)[0])

    sums = {}
    tick = progress("reading", len(slides), "slides")
    for name, got in ordered_map(read, slides, workers):
        tick()
        if isinstance(got, (InputError, OSError)):
            failed[name] = str(got)
        elif isinstance(got, Exception):
            raise got
        else:
            sums[name] = got
    return sums


def slide_features(cohort, o, slides, least=1):
    """Features of slides, made where they are missing; a slide has at least `least` tiles."""
    source = features_of(o)
    o = cut_as_the_paper(cohort, o)
    failed = {} if o.features else share_out(make_features, cohort, slides, o)
    todo = [name for name in slides if name not in failed]
    sums = read_sums(cohort, source, todo, o.workers, failed)
    widths = Counter(len(total) for _, total, _ in sums.values())
    usual = max(widths, key=widths.get, default=0)
    for name, (tiles, total, _) in sums.items():
        if len(total) != usual:
            failed[name] = f"{len(total)} features a tile, most slides have {usual}"
        if tiles < least:
            failed[name] = f"{tiles} tile; the highest and the lowest by attention need two"
    names = [name for name in slides if name not in failed]
    if not names:
        report_failures(failed, len(slides))
        raise InputError(f"{cohort}: no slide is left")
    made = provenance(cohort, o, names)
    made.pop("supertiles")
    seen = [features_made_by(cohort, source, name) for name in counted("hashing", names, "slides")]
    return {
        "names": np.array(names),
        "bag": lambda i: load_features(cohort, source, names[i], check=False)[0],
        "sums": [sums[name] for name in names],
        "n_features": usual,
        "features": made,
        "failed": failed,
        "seen": seen,
        "learned_as": {
            name: learned_as(cohort, source, name, of) for name, of in zip(names, seen, strict=True)
        },
    }


def bags_of_cohort(cohort, o, classes=None, check=None):
    """The labelled slides of a cohort, their features read from disk whenever they are needed.

    classes: those of the cohort that was learned from; check(bags): looks at names, patients and
    labels before hours of work.
    """
    found = Findings()
    labelled = found.of(labelled_slides, cohort, o, classes)
    table = labelled and table_of(*labelled)
    if table and check:
        found.of(check, table)
    check_cohort(found, cohort, read_samples(cohort), o)
    found.tell(cohort)
    data = slide_features(cohort, o, table["names"].tolist())
    keep = np.isin(table["names"], data["names"])
    of_rows = {key: table[key][keep] for key in ("patients", "y", "words")}
    return {**table, **data, **of_rows}


def table_of(samples, labels):
    """What samples.csv alone says of the bags, which are the slides of both classes."""
    slides, patients = (np.array([s[key] for s in samples]) for key in ("slide", "patient"))
    known = labels.y >= 0
    return {
        "names": slides[known],
        "patients": patients[known],
        "y": labels.y[known],
        "classes": labels.classes,
        "words": labels.words[known],
        "left_out": of_no_class(labels, slides, "slides"),
        "failed": {},
        "what": "slides",
    }


# A table of instances


def read_bag_table(path):
    """Labels, bag names and features (n, D) of a table: label, bag, features; a header may be."""
    header, rows = read_rows(path)
    first = 2
    if any(is_value(field) for field in header[2:]):
        rows = [header, *rows]
        first = 1
    if not rows or len(rows[0]) < 3:
        raise InputError(
            f"{path}: wanted a table with the columns label, bag and the features of an instance "
            "in each row, separated by commas or tabs"
        )
    for line, row in enumerate(rows, first):
        wrong = [j for j, field in enumerate(row) if j > 1 and not is_number(field)]
        why = None
        if len(row) != len(rows[0]):
            why = f"{len(row)} fields, row {first} has {len(rows[0])}"
        elif wrong:
            why = f"field {wrong[0] + 1} is {row[wrong[0]]!r}, not a finite number"
        elif not row[0].strip() or not row[1].strip():
            why = f"label {row[0]!r}, bag {row[1]!r}: both must be there"
        if why:
            raise InputError(f"{path} row {line}: {why}")
    labels = [row[0].strip() for row in rows]
    return labels, [row[1].strip() for row in rows], np.array([r[2:] for r in rows], np.float32)


def is_value(field):
    """Whether a field of the first line is data, if only a missing value, and no column's name."""
    return not math.isnan(number(field)) or is_unknown(field)


def bags_of_table(o):
    """The bags of the table --bags; each is a patient of its own."""
    words, names, x = read_bag_table(o.bags)
    labels = two_classes(words, o.bags, o.positive, o.negative)
    names = np.array(names)
    bags, first, which = np.unique(names, return_index=True, return_inverse=True)
    mixed = sorted(set(names[labels.y != labels.y[first][which]].tolist()))
    if mixed:
        raise InputError(
            f"{o.bags}: bag {few(mixed)} has both labels; a label is the bag's, not the instance's"
        )
    left_out = of_no_class(labels.take(first), bags, "bags")
    known = labels.y >= 0
    labels, names, x = labels.take(known), names[known], x[known]
    bags, first, which = np.unique(names, return_index=True, return_inverse=True)
    y = labels.y
    for j, column in enumerate(x.T, 3):
        if len(set(zip(column, y, strict=True))) == len(set(column)) == 2:
            raise InputError(
                f"{o.bags}: column {j} is the label again (copies of MUSK1 circulate so): "
                "take it out"
            )
    parts = [x[which == i] for i in range(len(bags))]
    return {
        "names": bags,
        "patients": bags,
        "y": y[first],
        "words": labels.words[first],
        "classes": labels.classes,
        "bag": parts.__getitem__,
        "sums": [sums_of(part) for part in parts],
        "n_features": x.shape[1],
        "features": {"source": Path(o.bags).name, "made": "a table"},
        "seen": (x, y, which),
        "failed": {},
        "left_out": left_out,
        "what": "bags",
    }


# What is refused, what is reported


def refuse(data, text):
    """InputError after a word on each slide that failed: they may be why too few are left."""
    report_failures(data["failed"], len(data["names"]) + len(data["failed"]))
    raise InputError(text)


def left_out_lines(data):
    """The section of a report that names what was left out, and what failed and why."""
    lines = []
    for what, names in data["left_out"].items():
        if names:
            lines.append(f"- {len(names)} {what}: {', '.join(names)}")
    lines += [f"- {name} failed: {why}" for name, why in data["failed"].items()]
    return ["## Left out", "", *(lines or ["Nothing."]), ""]
