"""Bags to learn from: the labelled slides of a cohort, or a table of instances."""

import argparse
import math
from pathlib import Path

import numpy as np

from lab.cohort.features import features_of, load_features, provenance
from lab.cohort.make import make_features
from lab.cohort.samples import TISSUES, barcode, read_samples
from lab.commands.options import report_failures
from lab.encoders import ENCODERS
from lab.exchange.clam import features_made_by, say_twice
from lab.files import InputError, few, load_json, number, read_rows
from lab.histcode.heads import sums_of
from lab.processes import share_out
from lab.progress import counted, ordered_map, progress

# Constants
TILE_UM = 128.0  # edge of a tile, µm                       [HistCode Methods, Image processing]


MAX_TILES = 10**9  # of a slide: all                          [HistCode Methods, Image processing]


#                            # slides: Adam, one slide a step [HistCode code]; ten parts: 80/10/10 [HistCode Results]


UNKNOWN = ("", "na", "nan", "unknown", "[not available]")  # labels that say nothing [ours]


def is_number(text):
    """Finite in float32?"""
    return abs(number(text)) <= float(np.finfo(np.float32).max)  # nan is not


def two_classes(labels, positive, where):
    """Label words -> (y (n,) 0 or 1, their names). The positive one: --positive, else the higher number or later word."""
    labels = [f"{float(t):g}" if is_number(t) else t for t in labels]
    kinds = sorted(
        set(labels), key=lambda t: (not is_number(t), float(t) if is_number(t) else 0, t)
    )
    if positive is not None and positive not in kinds:
        raise InputError(f"--positive {positive}: the labels of {where} are {few(kinds)}")
    if len(kinds) < 2:
        raise InputError(
            f"{where}: every label is {few(kinds) or 'empty'}; a classifier needs two classes"
        )
    if len(kinds) > 2 and positive is None:
        raise InputError(
            f"{where}: {len(kinds)} labels ({few(kinds)}); --positive LABEL tells one of them from the others"
        )
    positive = kinds[-1] if positive is None else positive
    others = [t for t in kinds if t != positive]
    negative = others[0] if len(others) == 1 else f"not {positive}"
    return np.array([t == positive for t in labels], np.int64), (negative, positive)


def tissue_of(samples, cohort):
    """1 tumour, 0 normal, None neither, of each row of samples.csv: by its column tumor, else sample_type, else by the
    sample's or slide's TCGA barcode (01 primary tumour, 11 normal)."""
    path = Path(cohort) / "samples.csv"
    column = next((c for c in ("tumor", "tumour", "sample_type") if c in samples[0]), None)
    if column is None:
        kinds = [
            next(
                (
                    tissue
                    for name in (s.get("sample", ""), s["slide"])
                    if (tissue := barcode(name)[1]) is not None
                ),
                None,
            )
            for s in samples
        ]
        if not any(k is not None for k in kinds):
            raise InputError(
                f"{path}: no column tumor (1, 0) or sample_type, and no TCGA barcode, says which slides are "
                "tumour and which are normal tissue; --label COLUMN tells any two labels apart"
            )
        return kinds
    words = [
        f"{float(s[column]):g}"
        if is_number(s[column]) and column != "sample_type"
        else s[column].lower()
        for s in samples
    ]
    wrong = [
        s["slide"]
        for s, w in zip(samples, words)
        if column != "sample_type" and w not in (*TISSUES, *UNKNOWN)
    ]
    if wrong:
        word = next(s[column] for s in samples if s["slide"] == wrong[0])
        raise InputError(
            f"{path}: {column} of slide {wrong[0]} is {word!r}; wanted 1 or 0, tumor or normal, or nothing"
        )
    return [TISSUES.get(w) for w in words]


def read_bag_table(path):
    """(labels, bag names, features (n, D) float32) of the rows of a table label, bag, features, with or without header."""
    header, rows = read_rows(path)
    named = all(
        math.isnan(number(v)) and v.strip().lower() not in UNKNOWN for v in header[2:]
    )  # words, no data
    rows, first = (rows, 2) if named else ([header, *rows], 1)
    if not rows or len(rows[0]) < 3:
        raise InputError(
            f"{path}: wanted a table with the columns label, bag and the features of an instance in each row, "
            "separated by commas or tabs"
        )
    for line, row in enumerate(rows, first):
        if len(row) != len(rows[0]):
            raise InputError(
                f"{path} row {line}: {len(row)} fields, row {first} has {len(rows[0])}"
            )
        wrong = next((j for j, v in enumerate(row[2:], 3) if not is_number(v)), None)
        if wrong or row[0].strip().lower() in UNKNOWN or not row[1].strip():
            raise InputError(
                f"{path} row {line}: "
                + (
                    f"field {wrong} is {row[wrong - 1]!r}, not a finite number"
                    if wrong
                    else f"label {row[0]!r}, bag {row[1]!r}: both must be there"
                )
            )
    return (
        [r[0].strip() for r in rows],
        [r[1].strip() for r in rows],
        np.array([r[2:] for r in rows], np.float32),
    )


def bags_of_table(o):
    """What diagnose needs of a table: names, patients (each bag its own), y, classes, bag(i), sums, what tells its data."""
    labels, names, x = read_bag_table(o.bags)
    y, classes = two_classes(labels, o.positive, o.bags)
    bags, which = np.unique(names, return_inverse=True)
    mixed = [b for i, b in enumerate(bags) if len(set(y[which == i])) > 1]
    if mixed:
        raise InputError(
            f"{o.bags}: bag {few(mixed)} has both labels; a label is the bag's, not the instance's"
        )
    again = [j for j, v in enumerate(x.T) if len(set(zip(v, y))) == len(set(v)) == 2]
    if again:
        raise InputError(
            f"{o.bags}: column {again[0] + 3} is the label again (copies of MUSK1 circulate so): take it out"
        )
    parts, first = [x[which == i] for i in range(len(bags))], np.unique(which, return_index=True)[1]
    return dict(
        names=bags,
        patients=bags,
        y=y[first],
        classes=classes,
        bag=parts.__getitem__,
        failed={},
        left_out={},
        sums=list(map(sums_of, parts)),
        n_features=x.shape[1],
        seen=(x, y, which),
        what="bags",
        features=dict(source=Path(o.bags).name, made="a table"),
    )


def slide_features(cohort, o, slides, least=1):
    """Features of slides, made where they are missing: dict of names, bag(i) -> (T, D) memory-mapped, sums, n_features,
    features (what they are), seen (what tells them from others), failed {slide: why}. Each is read once here, to be
    checked and for its mean and SD."""
    source = features_of(o)
    say_twice(source, slides)
    if not load_json(
        Path(cohort) / "tiles" / "settings.json"
    ):  # a folder made otherwise stays as it is
        o = argparse.Namespace(**vars(o))
        o.tile_um = o.tile_um or (TILE_UM if o.encoder in ENCODERS else None)
        o.tissue, o.max_tiles = o.tissue or "saturation", o.max_tiles or MAX_TILES
    failed, sums = {} if o.features else share_out(make_features, cohort, slides, o), {}
    tick = progress("reading", len(slides), "slides")
    for name, got in ordered_map(
        lambda s: sums_of(load_features(cohort, source, s)[0]),
        [s for s in slides if s not in failed],
        o.workers,
    ):
        tick()
        if isinstance(got, (InputError, OSError)):
            failed[name] = str(got)
        elif isinstance(got, Exception):
            raise got
        elif got[0] < least:
            failed[name] = f"{got[0]} tile; the highest and the lowest by attention need two"
        else:
            sums[name] = got
    widths = [len(total) for _, total, _ in sums.values()]
    usual = max(set(widths), key=widths.count, default=0)
    failed.update(
        {
            name: f"{len(total)} features a tile, most slides have {usual}: another encoder's?"
            for name, (_, total, _) in sums.items()
            if len(total) != usual
        }
    )
    names = [name for name in slides if name not in failed]
    if not names:
        report_failures(failed, len(slides))
        raise InputError(f"{cohort}: no slide is left")
    made = provenance(cohort, o, names)
    made.pop("supertiles")
    return dict(
        names=np.array(names),
        bag=lambda i: load_features(cohort, source, names[i], check=False)[0],
        sums=[sums[name] for name in names],
        n_features=usual,
        features=made,
        failed=failed,
        seen=[
            features_made_by(cohort, source, name) for name in counted("hashing", names, "slides")
        ],
    )


def labelled_slides(cohort, o, classes=None):
    """(rows of samples.csv that have a label, y (n,), its classes, what was left out)."""
    if not Path(cohort).is_dir():
        raise InputError(f"{cohort}: no such folder")
    samples = read_samples(cohort)
    if o.label is None:
        kinds = tissue_of(samples, cohort)
        known, classes = [s for s, k in zip(samples, kinds) if k is not None], ("normal", "tumour")
        y = np.array([k for k in kinds if k is not None], np.int64)
        if len(set(y.tolist())) < 2:
            raise InputError(
                f"{cohort}/samples.csv: every slide is {classes[y[0]]}; a classifier needs two classes"
            )
    else:
        if o.label not in samples[0]:
            raise InputError(
                f"{cohort}/samples.csv: no column {o.label}; it has {', '.join(samples[0])}: choose with --label"
            )
        known = [s for s in samples if s[o.label].lower() not in UNKNOWN]
        y, classes = two_classes(
            [s[o.label] for s in known],
            o.positive if classes is None else classes[1],
            f"{cohort}/samples.csv, column {o.label}",
        )
    return (
        known,
        y,
        classes,
        {"slides without a label": [s["slide"] for s in samples if s not in known]},
    )


def bags_of_cohort(cohort, o, classes=None):
    """What diagnose needs of a cohort: as bags_of_table, its slides' features read from disk when they are needed."""
    known, y, classes, left_out = labelled_slides(cohort, o, classes)
    d = slide_features(cohort, o, [s["slide"] for s in known])
    at = {s["slide"]: i for i, s in enumerate(known)}
    keep = [at[name] for name in d["names"]]
    return dict(
        d,
        patients=np.array([known[i]["patient"] for i in keep]),
        y=y[keep],
        classes=classes,
        left_out=left_out,
        what="slides",
    )


def refuse(d, text):
    """InputError after a word on each slide that failed: they may be why too few are left."""
    report_failures(d["failed"], len(d["names"]) + len(d["failed"]))
    raise InputError(text)


def left_out_lines(d):
    return [
        "## Left out",
        "",
        *(
            [
                f"- {len(names)} {what}: {', '.join(names)}"
                for what, names in d["left_out"].items()
                if names
            ]
            + [f"- {name} failed: {why}" for name, why in d["failed"].items()]
            or ["Nothing."]
        ),
        "",
    ]
