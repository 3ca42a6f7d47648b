"""lab.histcode.runs"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

import histcode
import stats
import tiling
from lab.audit.choices import flipped, switches
from lab.audit.ledger import saw
from lab.cohort.features import features_of, load_features, provenance
from lab.cohort.make import make_features, make_tiles
from lab.cohort.places import read_regions
from lab.cohort.samples import TISSUES, barcode, read_samples
from lab.cohort.slides import SLIDE_ENDINGS, find_slides, open_slide
from lab.cohort.steps import tiles_of
from lab.commands.options import add_options, natural, report_failures
from lab.encoders import COLOURS, ENCODERS, weights_identity
from lab.exchange.clam import features_made_by, say_twice
from lab.files import TISSUE, InputError, digest, few, load_json, number, read_rows, save_file
from lab.histcode.heads import mean_and_sd, sums_of, train_heads
from lab.histcode.pretraining import MOMENTUM, WEIGHT_DECAY
from lab.processes import by_first, log_path, of_all, say, share_out
from lab.progress import counted, ordered_map, progress
from lab.runs import claim_folder, load_checkpoint, mark_of, read_config, read_folds

# Constants
TILE_UM = 128.0  # edge of a tile, µm                       [HistCode Methods, Image processing]


MAX_TILES = 10**9  # of a slide: all                          [HistCode Methods, Image processing]


EDGES = 32, 2048  # of them that can be asked for, px        [ours]


MOMENTUM_ENCODER = (
    0.999  # keys come from a slow copy; eq. 1 does not say from which network. With one network the
)
#   shortest way down is to move all embeddings away from the bank at once: collapse within 30 steps [HistCode code]


TAU = {
    "adco": 0.12,
    "simclr": 0.1,
}  # temperature; the paper is silent [HistCode code; Chen et al. 2020]


LEARNING_RATE = 0.03  # SGD                                      [HistCode Methods]


BANK_RATE = 0.3  # lambda of eq. 4; 3 in AdCo's own code    [HistCode code]


BANK_SIZE = 65536  # K of a random bank, and at most          [AdCo code]


BANK_PERCENT = 20.0  # of each slide's tiles; the paper: "a percentage"     [HistCode code]


BATCH = 256  # tiles of a step, over all processes      [AdCo code]


EPOCHS = 50  #                                          [HistCode code]


TILES_PER_SLIDE = 256  # drawn anew each epoch; the paper takes all [ours]


BANK_OPTIONS = (
    "bank_tau",
    "bank_lr",
    "bank_momentum",
    "bank_decay",
    "bank_percent",
    "bank_size",
    "in_batch",
    "symmetric",
    "momentum_encoder",
)  # that SimCLR has not


WIDEST = 10**5  # layer that can be asked for                [ours]


DIAGNOSIS = dict(
    lr=1e-4, weight_decay=1e-5, epochs=50, folds=10, repeats=1, hidden=histcode.ATTENTION, embed=()
)
#                            # slides: Adam, one slide a step [HistCode code]; ten parts: 80/10/10 [HistCode Results]


UNKNOWN = ("", "na", "nan", "unknown", "[not available]")  # labels that say nothing [ours]


DRIVERS = (
    200  # genes of a compendium, by mutations            [HistCode Methods, Cancer driver genes]
)


BAGS_AT_ONCE = 2**25  # numbers of a step of networks on a table, 128 MB  [ours]


VERSION = 1  # of a run's files; another is refused     [ours]


# Choices: all that paper and authors' code disagree on or leave open, as far as a switch can express it
# Rule: the paper; where it is silent or ambiguous, the authors' code; where that is a defect or a leak, the correct thing.
# A row: command and name for its --code NAME,..; the paper; the authors' code; ours; the other side, which --code turns
# this one choice to (code or paper: that side, as --follow does with all of its; else in words); the tag of ours.
CHOICES = (
    (
        "pretrain",
        "tissue",
        'Otsu; "the threshold 8"',
        "Otsu of the saturation (lung), or saturation above 8; they exclude each other",
        "Otsu of the saturation",
        "saturation above 8; tiles/ is cut anew",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "--min-area",
        "tiles whose tissue is under 100 (of what, it does not say) dropped",
        "pieces of tissue under 100 squares of 512 px of level 0 dropped",
        "none dropped",
        "--min-area 100",
        "[ours]",
    ),
    (
        "pretrain",
        "colour",
        "normalised; the method is not named, here Macenko's",
        "none",
        "none: a method would be a guess",
        "paper",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "tiles",
        "all tiles",
        "all tiles, one slide after the other",
        f"{TILES_PER_SLIDE} of each slide, drawn anew each epoch",
        "paper",
        "[ours]",
    ),
    ("pretrain", "batch", "silent", "250; AdCo's 256", "AdCo's", "code", "[AdCo code]"),
    ("pretrain", "lr", ".03", ".001", "the paper's", "code", "[HistCode Methods]"),
    (
        "pretrain",
        "cosine",
        "one rate",
        "it falls along half a cosine to .0006",
        "the paper's",
        "code",
        "[HistCode Methods]",
    ),
    (
        "pretrain",
        "momentum-encoder",
        "eq. 1 does not say which network makes the keys",
        "a slow copy, .999",
        "the code's",
        "none: one encoder for both views",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "in-batch",
        "negatives are the bank alone",
        "the keys of the other tiles too",
        "the paper's",
        "code",
        "[HistCode eq. 1]",
    ),
    (
        "pretrain",
        "bank-tau",
        "one temperature for both sides of the game",
        ".02 in the bank's step, .12 in the loss",
        "the paper's",
        "code",
        "[HistCode eqs. 1-4]",
    ),
    (
        "pretrain",
        "bank-lr",
        "silent",
        ".3; AdCo's 3",
        "the code's",
        "3, as AdCo's own code",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "bank-step",
        "the gradient alone (eq. 4)",
        "momentum .9, weight decay .0001, as of the encoder",
        "the code's",
        "paper",
        "[HistCode code]",
    ),
    (
        "pretrain",
        "bank-size",
        "a percentage of each slide's tiles",
        "20 %, 318,193 in all; AdCo's 65,536",
        "20 %, 65,536 at most",
        "code",
        "[AdCo code]",
    ),
    (
        "diagnose",
        "folds",
        "five tests of 10 %: half of the patients",
        "five, its lists not released",
        "the paper's",
        "each of the ten parts tests in turn",
        "[HistCode Results, Tumor diagnosis]",
    ),
    (
        "diagnose",
        "stop",
        "a validation part of 10 %",
        "none chooses: the last of 50 epochs",
        "validation patients choose the epoch",
        "the test part chooses it, as in expression's code",
        "[HistCode Results, Tumor diagnosis]",
    ),
    (
        "diagnose",
        "embed",
        "attention on the features (eqs. 5-6)",
        "a layer of 512 before it",
        "the paper's",
        "code",
        "[HistCode eqs. 5-6]",
    ),
    (
        "diagnose",
        "--colour",
        "normalised; the method is not named",
        "none",
        "as the encoder's file says, else none",
        "--colour macenko",
        "[HistCode code]",
    ),
    (
        "expression",
        "--colour",
        "normalised; the method is not named",
        "none",
        "as the encoder's file says, else none",
        "--colour macenko",
        "[HistCode code]",
    ),
    (
        "expression",
        "model",
        "one linear layer a gene, on both ends of the attention (eq. 8)",
        "an attention regressor for each gene",
        "the paper's",
        "code",
        "[HistCode eq. 8]",
    ),
    (
        "expression",
        "epochs",
        "silent",
        "50 of the classifier, 200 at most of a gene's regressor",
        "the classifier's",
        "code",
        "[HistCode code]",
    ),
    (
        "expression",
        "stop",
        "silent",
        "the test part chooses the epoch",
        "validation patients choose the epoch",
        "code",
        "[ours]",
    ),
    (
        "expression",
        "embed",
        "attention on the features (eqs. 5-6)",
        "a layer of 512 before it",
        "the paper's",
        "code",
        "[HistCode eqs. 5-6]",
    ),
    (
        "expression",
        "slides",
        '"single whole slide image"',
        "a list of slides, not released",
        "all tumour slides of the patient, as one",
        "tiles of the normal slides too",
        "[ours]",
    ),
)


TURNED = {  # the options that a choice turns; stop has none
    "pretrain": {
        "tissue": dict(tissue="saturation", tissue_threshold=8.0),
        "colour": dict(colour="macenko"),
        "tiles": dict(tiles_per_slide=10**9),
        "batch": dict(batch=250),
        "lr": dict(lr=0.001),
        "cosine": dict(cosine=True, final_lr=0.0006),
        "momentum-encoder": dict(momentum_encoder=0.0),
        "in-batch": dict(in_batch=True),
        "bank-tau": dict(bank_tau=0.02),
        "bank-lr": dict(bank_lr=3.0),
        "bank-step": dict(bank_momentum=0.0, bank_decay=0.0),
        "bank-size": dict(bank_size=318193),
    },
    "diagnose": {"folds": dict(rotate=True), "embed": dict(embed=(512,))},
    "expression": {
        "model": dict(model="attention", per_gene=True),
        "epochs": dict(epochs=200),
        "embed": dict(embed=(512,)),
        "slides": dict(slides="both"),
    },
}


# Commands
def slides_of(cohort):
    """Names of the cohort's slides: those of samples.csv, else all files."""
    known = (
        [r["slide"] for r in read_samples(cohort)] if (cohort / "samples.csv").exists() else None
    )
    slides = known or list(find_slides(cohort))
    if not slides:
        raise InputError(f"{cohort}: no slides ({' '.join(SLIDE_ENDINGS)}) in it or in its slides/")
    return slides


def find_data(cohort, slides, o):
    """Make the tiles that are missing -> (what read_batches wants, with slide names; {slide: why not})."""
    o.colour = o.colour or COLOURS[0]
    made = (
        load_json(cohort / "tiles" / "settings.json") or {}
    )  # a folder made otherwise stays as it is
    for option, usual in dict(tile_um=TILE_UM, tissue="saturation", max_tiles=MAX_TILES).items():
        if getattr(o, option) is None and not made:
            setattr(o, option, usual)
    rule = {**TISSUE, **made}
    if made and (rule["tissue"], rule["tissue_threshold"]) != ("saturation", "otsu"):
        print(
            f"{cohort}/tiles is cut by {rule['tissue']}, threshold {rule['tissue_threshold']}"
            + ", and stays so" * (o.tissue is None and o.tissue_threshold is None)
        )
    failed = share_out(make_tiles, cohort, slides, o)
    ready = [s for s in slides if s not in failed]
    if not o.share[0]:
        report_failures(failed, len(slides), cohort / "tiles")
    if not ready:
        raise InputError(f"{cohort}: no slide has tiles")
    arrays, found = [tiles_of(cohort, s)[0] for s in ready], find_slides(cohort)
    gone = [s for s in ready if s not in found]
    if gone:
        raise InputError(f"no slide file for {few(gone)} in {cohort}: only its tiles are there")
    o.tile_um = load_json(cohort / "tiles" / "settings.json")["tile_um"]
    data = dict(
        slides=ready,
        paths=[found[s] for s in ready],
        coords=[a["coords"] for a in arrays],
        tiles=[float(a["tile"]) for a in arrays],
        mpp=[float(a["mpp"]) for a in arrays],
        px=o.tile_px,
        stains=[None] * len(ready),
        unchanged=0,
    )
    if o.colour == "macenko":
        stains = lambda s: tiling.slide_stains(
            open_slide(data["paths"][s]),
            data["coords"][s],
            data["tiles"][s],
            o.tile_px,
            json.loads(str(arrays[s]["settings"]))["seed"],
        )
        jobs = ordered_map(stains, range(len(ready)), o.workers)
        for s, got in counted("stains", jobs, "slides", len(ready)):
            if isinstance(got, Exception):
                raise InputError(
                    f"{data['paths'][s]} can't be read to its end ({got}): take it out of samples.csv"
                )
            data["stains"][s] = got
        plain = [name for name, found in zip(ready, data["stains"]) if found is None]
        if plain:
            print(
                f"--colour macenko: {len(plain)} slides show no two stains and keep their colours: {few(plain)}"
            )
    return data, failed


def check_ranges(o, *ranges):
    """InputError for an option that lies outside of its (name, lowest, highest), and for a --name that is a path."""
    for option, low, high in ranges:
        if getattr(o, option) is not None and not low <= getattr(o, option) <= high:
            raise InputError(
                f"--{option.replace('_', '-')} {getattr(o, option):g}: must lie between {low:g} and {high:g}"
            )
    if getattr(o, "name", None) is not None and (
        Path(o.name).name != o.name or o.name in ("", ".", "..")
    ):
        raise InputError(f"--name {o.name}: the name of a folder, not a path")


def settle_choices(o):
    """o.code: the choices that --follow and --code turn; the options that they stand for are set. An option asked for in
    so many words gainsays --code, and goes before --follow."""
    named, o.code = o.code, flipped(CHOICES, o.verb, o.code, o.follow)
    for name in list(o.code):
        turned = TURNED[o.verb].get(name, {})
        given = [
            f"--{'' if getattr(o, k) else 'no-' * (getattr(o, k) is False)}{k.replace('_', '-')}"
            + f" {getattr(o, k)}" * (not isinstance(getattr(o, k), bool))
            for k, v in turned.items()
            if getattr(o, k) not in (None, v)
        ]
        if given and name in named:
            raise InputError(
                f"--code {name} turns it to: {switches(CHOICES, o.verb)[name]}; leave {' '.join(given)} out"
            )
        if given:
            print(f"--follow {o.follow}: without {name}, for {' '.join(given)} is asked for")
            o.code.remove(name)
        else:
            vars(o).update(turned)


def turned_lines(o):
    """Of a report: the choices of this run that are turned."""
    text = "; ".join(f"{name}: {switches(CHOICES, o.verb)[name]}" for name in o.code)
    return (
        [f"Turned to their other side (`python histcode.py choices`): {text}.", ""] if text else []
    )


def settle_options(o, world):
    """Fill in what was not asked for: what --follow and --code turn, else our values; check all of them."""
    if o.method == "simclr":
        bank = [f"--{k.replace('_', '-')}" for k in BANK_OPTIONS if getattr(o, k) is not None]
        bank += [
            f"--code {name}" for name in o.code if set(TURNED["pretrain"][name]) & set(BANK_OPTIONS)
        ]
        if bank or o.follow:
            raise InputError(
                f"{', '.join(bank) or f'--follow {o.follow}'}: not with --method simclr, which has no bank"
            )
    settle_choices(o)
    usual = dict(
        lr=LEARNING_RATE,
        final_lr=0.0,
        cosine=False,
        batch=BATCH,
        epochs=EPOCHS,
        tau=TAU[o.method],
        bank_tau=None,
        bank_lr=BANK_RATE,
        bank_momentum=MOMENTUM,
        bank_decay=WEIGHT_DECAY,
        bank_percent=BANK_PERCENT,
        bank_size=BANK_SIZE,
        in_batch=False,
        symmetric=False,
        tiles_per_slide=TILES_PER_SLIDE,
        momentum_encoder=MOMENTUM_ENCODER if o.method == "adco" else 0.0,
        name=o.method,
    )
    for k, v in usual.items():
        if getattr(o, k) is None:
            setattr(o, k, v)
    o.bank_tau = o.tau if o.bank_tau is None else o.bank_tau
    check_ranges(
        o,
        ("epochs", 1, 1e6),
        ("batch", 2, 1e6),
        ("tiles_per_slide", 1, 1e9),
        ("lr", 1e-9, 1e3),
        ("final_lr", 0, 1e3),
        ("tau", 1e-3, 1e3),
        ("bank_tau", 1e-3, 1e3),
        ("bank_lr", 0, 1e6),
        ("bank_momentum", 0, 0.9999),
        ("bank_decay", 0, 1),
        ("bank_percent", 0, 100),
        ("bank_size", 1, 1e9),
        ("momentum_encoder", 0, 0.99999),
        ("view_px", 32, 1024),
        ("tile_px", *EDGES),
    )
    if o.final_lr and not o.cosine:
        raise InputError(
            f"--final-lr {o.final_lr:g}: only with --cosine; the rate is constant without it"
        )
    if o.method == "adco" and o.bank_size < world:
        raise InputError(f"--bank-size {o.bank_size}: fewer than {world} processes")
    if o.batch % world:
        raise InputError(f"--batch {o.batch} can't be shared out evenly to {world} processes")


def open_run(o, data, counts, device, world):
    """Make or reopen COHORT/runs/NAME; a folder of other settings is refused. Puts the settings into o.settings."""
    h = hashlib.sha256(json.dumps([data["slides"], data["tiles"]]).encode())
    for coords in data["coords"]:
        h.update(np.ascontiguousarray(coords))
    names = (
        "method",
        "epochs",
        "batch",
        "lr",
        "cosine",
        "tau",
        "view_px",
        "tile_px",
        "tile_um",
        "tiles_per_slide",
        "colour",
        "seed",
        "precision",
        *(["final_lr"] * o.cosine),
        *(BANK_OPTIONS if o.method == "adco" else ()),
    )
    config = dict(
        version=VERSION,
        data=h.hexdigest()[:16],
        slides=len(counts),
        all_tiles=int(counts.sum()),
        weights=weights_identity(o.weights, o.seed),
        **{k: getattr(o, k) for k in names},
    )
    folder = Path(o.cohort) / "runs" / o.within / o.name
    o.settings = config
    return folder, claim_folder(
        folder,
        config,
        "state.pt",
        o.share,
        cohort=str(Path(o.cohort).resolve()),
        device=str(device),
        processes=world,
        code=o.code,
    )


def layers(text):
    """'64,32' -> (64, 32), '0' -> (), for argparse."""
    values = tuple(map(natural, text.split(",")))
    if 0 in values and len(values) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a layer of no width; 0 alone means none")
    if max(values) > WIDEST:
        raise argparse.ArgumentTypeError(f"{text!r}: a layer of more than {WIDEST:,}")
    return () if values == (0,) else values


def penalty_of(text):
    """'auto' -> None, or a number, for argparse."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


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


def roles(part, f, folds, code=()):
    """Rows that train, choose the epoch of, and test model f; with `stop` turned the test rows choose it."""
    follows = (f + 1) % folds
    chooses = f if "stop" in code else follows
    return tuple(
        np.flatnonzero(rows)
        for rows in ((part != f) & (part != follows), part == chooses, part == f)
    )


def refuse(d, text):
    """InputError after a word on each slide that failed: they may be why too few are left."""
    report_failures(d["failed"], len(d["names"]) + len(d["failed"]))
    raise InputError(text)


def check_folds(n, d, o):
    if n < o.folds:
        refuse(
            d,
            f"{n} patients don't go into --folds {o.folds} parts; "
            + (
                f"--folds {n} would work"
                if n > 2
                else "one part tests, one validates, the others train: at least 3 are needed"
            ),
        )


def folds_of(d, o):
    """[(repeat, fold, train, valid, test)] and each sample's part in each repeat (repeats, n)."""
    check_folds(len(set(d["patients"].tolist())), d, o)
    parts = np.array(
        [
            histcode.split_patients(d["patients"], d["y"], o.folds, [o.seed, r])
            for r in range(o.repeats)
        ]
    )
    jobs = [
        (r, f, *roles(part, f, o.folds, o.code))
        for r, part in enumerate(parts)
        for f in range(o.folds if o.rotate else max(1, o.folds // 2))
    ]
    for r, f, train, *_ in jobs:
        if len(set(d["y"][train])) < 2:
            refuse(
                d,
                f"the training part of fold {f} has {d['what']} of one class only: {len(d['y'])} {d['what']}, "
                f"{d['y'].sum()} {d['classes'][1]}, are too few for --folds {o.folds}",
            )
    return jobs, parts


def seed_of(o, *key):
    return int(np.random.default_rng([o.seed, *key]).integers(2**62))


def draw_model(pooling, sums, rows, seed, o, outputs=2):
    torch.manual_seed(seed)
    return histcode.SlideModel(pooling, *mean_and_sd(sums, rows), outputs, o.embed, o.hidden)


def save_fold(path, done, d, o, pooling, outputs, patients, rows, learned_from, **more):
    """One fold's checkpoint: networks, whom they learned from (or chose their epoch by), and whom they were tested on."""
    saved = dict(
        done,
        version=VERSION,
        run=mark_of(path),
        pooling=pooling,
        outputs=outputs,
        embed=list(o.embed),
        hidden=o.hidden,
        n_features=d["n_features"],
        features=d["features"],
        learned_from=sorted(set(learned_from.tolist())),
        **more,
        **{
            f"{part}_patients": sorted(set(patients[of].tolist()))
            for part, of in zip(("train", "valid", "test"), rows)
        },
    )
    save_file(path, lambda file: torch.save(saved, file))


def train_pooling(pooling, d, jobs, o, folder, device):
    """Train what is not there yet -> {(repeat, fold): its checkpoint}."""
    path_of = lambda r, f: folder / f"{pooling}-r{r}-f{f}.pt"
    todo, (rank, world) = (
        by_first(lambda: [job for job in jobs if not path_of(*job[:2]).is_file()]),
        o.share,
    )
    at_once = (
        1
        if d["what"] == "slides"
        else max(1, BAGS_AT_ONCE // (max(n for n, *_ in d["sums"]) * d["n_features"]))
    )
    alike = [[j for j in todo if len(j[2]) == n] for n in sorted({len(j[2]) for j in todo})]
    blocks = [
        jobs[i : i + at_once] for jobs in alike for i in range(0, len(jobs), at_once)
    ]  # of slides one fills the cores
    target = lambda rows: torch.from_numpy(d["y"][rows])
    for block in blocks[rank::world]:
        seeds = [seed_of(o, r, f) for r, f, *_ in block]
        models = [
            draw_model(pooling, d["sums"], job[2], seed, o) for seed, job in zip(seeds, block)
        ]
        state = path_of(*block[0][:2]).with_suffix(f".{len(block)}.state.pt")
        names = f"fold {block[0][1]}" if len(block) == 1 else f"{len(block)} networks"
        done = train_heads(
            models,
            d["bag"],
            target,
            histcode.cross_entropy,
            [job[2:] for job in block],
            seeds,
            o,
            device,
            f"{pooling} {names}",
            state,
            d["names"],
        )
        for m, (r, f, *rows) in enumerate(block):
            own = dict(
                model={k: v[m : m + 1].clone() for k, v in done["model"].items()},
                epoch=int(done["epochs"][m]),
                losses=done["losses"][:, m].clone(),
                tests=done["tests"][m].clone(),
            )
            ledger = {}
            for step, seen in done["saw"][m].items():
                saw(ledger, step, d["patients"][seen])
            saw(ledger, "standardisation of the features", d["patients"][rows[0]])  # of draw_model
            save_fold(
                path_of(r, f),
                own,
                d,
                o,
                pooling,
                2,
                d["patients"],
                rows,
                d["patients"][np.concatenate(rows[:2])],
                kind="diagnosis",
                classes=list(d["classes"]),
                saw=ledger,
            )
            p = histcode.figures_of(d["y"][rows[2]], own)
            entry = dict(
                pooling=pooling,
                repeat=r,
                fold=f,
                epoch=own["epoch"],
                **{k: None if math.isnan(v) else float(v) for k, v in p.items()},
                valid_losses=[round(v, 5) for v in own["losses"].tolist()],
            )
            with open(log_path(folder, o.share), "a") as log:
                log.write(json.dumps(entry) + "\n")
            say(
                f"{pooling:8s} repeat {r} fold {f}: {'/'.join(str(len(v)) for v in rows)} {d['what']}, epoch "
                f"{own['epoch']:3d}, test accuracy {p['accuracy']:.3f}, AUC {p['auc']:.3f}"
            )
        state.unlink(missing_ok=True)
    of_all(None)
    for left in (
        () if rank else folder.glob(f"{pooling}-*.state.pt")
    ):  # of a kill between a fold and its state
        left.unlink()
    return {job[:2]: load_checkpoint(path_of(*job[:2]), "cpu") for job in jobs}


def with_interval(y, p, patients, seed):
    """[(name, value, low, high)] of pooled predictions: accuracy, ROC-AUC, PR-AUC with 95 % patient-bootstrap intervals."""
    rng, hits = np.random.default_rng(seed), (p > 0.5) == y
    return [
        ("accuracy", hits.mean(), *stats.bootstrap_mean(hits, patients, stats.N_DRAWS, rng)),
        ("ROC-AUC", stats.roc_auc(y, p), *stats.bootstrap_auc(y, p, patients, stats.N_DRAWS, rng)),
        ("PR-AUC", stats.pr_auc(y, p), *stats.bootstrap_pr_auc(y, p, patients, stats.N_DRAWS, rng)),
    ]


def settle_training(o, usual):
    """Fill in the training options that were not given, and check all of them."""
    for k, v in usual.items():
        if getattr(o, k) is None:
            setattr(o, k, v)
    check_ranges(
        o,
        ("epochs", 1, 1e6),
        ("folds", 3, 1e6),
        ("repeats", 1, 1e4),
        ("batch", 1, 1e6),
        ("hidden", 1, WIDEST),
        ("lr", 1e-9, 1e3),
        ("weight_decay", 0, 1e3),
    )


def claim_run(folder, o, d, more, *seen):
    """Write the config.json of a downstream run -> its settings; a folder of other settings is refused."""
    config = dict(
        command=o.verb,
        version=VERSION,
        code=o.code,
        data=digest(*seen, *d["seen"]),
        features=d["features"],
        n_features=d["n_features"],
        embed=list(o.embed),
        **more,
        **{
            k: getattr(o, k)
            for k in ("hidden", "lr", "weight_decay", "epochs", "batch", "folds", "repeats", "seed")
        },
    )
    return claim_folder(
        folder,
        config,
        "*.pt",
        o.share,
        bags=getattr(o, "bags", None),
        processes=o.share[1],
        cohort=o.cohort and str(Path(o.cohort).resolve()),
        features_folder=o.features and str(Path(o.features).resolve()),
    )


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


def load_run(path, pooling=None):
    """A finished run of diagnose or expression: dict as tiling's "run's models on slides" wants it; folds: its checkpoints,
    kind of each (diagnosis, linear, attention)."""
    folder = Path(path)
    config = read_config(folder, VERSION) or {}
    if config.get("command") not in ("diagnose", "expression") or config.get("bags"):
        raise InputError(
            f"{folder}: not a run on slides of diagnose or expression; give a folder such as "
            "COHORT/runs/diagnosis"
        )
    if config.get("version") != VERSION:
        raise InputError(
            f"{folder} is a run of version {config.get('version')} of this program's files, this one reads "
            f"version {VERSION}: train it again, or use the program that made it"
        )
    if config["command"] == "diagnose":
        there = [name for name in histcode.POOLINGS if (folder / f"{name}-r0-f0.pt").is_file()]
        pooling = pooling or ("HistCode" if "HistCode" in there or not there else there[0])
        if pooling not in there:
            raise InputError(
                f"--pooling {pooling}: {folder} has {few(there) or 'no finished fold'}"
            )
        names = [
            f"{pooling}-r{r}-f{f}.pt"
            for r in range(config["repeats"])
            for f in range(config["folds"] if config["rotate"] else max(1, config["folds"] // 2))
        ]
    elif pooling:
        raise InputError(f"--pooling {pooling}: {folder} is a run of expression, which has one")
    else:
        names = [f"fold{f}.pt" for f in range(config["folds"])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not (folder / "report.md").is_file():
        raise InputError(
            f"{folder}: {few(missing, 3) or 'report.md'} is missing: the run is not finished; the command that "
            "began it goes on"
        )
    keys = "model kind learned_from test_patients n_features".split()
    saved, cohort = (
        [load_checkpoint(folder / name, "cpu", keys=keys) for name in names],
        folder.resolve().parents[1],
    )
    known = {who for s in saved for k in ("learned_from", "test_patients") for who in s[k]}
    return dict(
        folder=folder,
        config=config,
        folds=saved,
        rows=read_folds(folder, known),
        cohort=cohort
        if (cohort / "samples.csv").is_file()
        else Path(str(config.get("cohort"))),  # it may move
        fold_of={
            who: [m for m, s in enumerate(saved) if who not in s["learned_from"]] for who in known
        },
    )


def off_scale(h):
    return f"its prediction is not finite: features up to {np.abs(h).max():.3g} are of another scale than the run's"


def read_sets(paths):  # same in he2rna.py
    """{set: genes} of .gmt files. InputError on what can't be read."""
    try:
        return stats.read_gmt(*paths)
    except (ValueError, OSError) as e:
        raise InputError(f"--gmt: {e}") from None


def read_outlines(folder, slide, origin, kind=None):  # same in he2rna.py
    """Polygons of regions/<slide>.geojson, of one class or all, as stats.inside takes them; None where there are none."""
    path, shapes = read_regions(folder, slide, kind)
    try:
        return (
            None
            if shapes is None
            else [[ring + origin for ring in rings] for rings in stats.read_rings(shapes)]
        )
    except ValueError as e:
        raise InputError(f"{path}: {e}") from None


def pooling_options(p, usual, bags=None):
    """Options of networks on frozen features."""
    also = lambda k: f"; with --bags {bags[k]:g}" if bags else ""
    a = p.add_argument_group("training").add_argument
    a(
        "--folds",
        type=int,
        help="parts of the patients: one tests, the next chooses the epoch, the others train "
        f"(default {usual['folds']}: 80/10/10, the paper's)",
    )
    a(
        "--repeats",
        type=int,
        help="cross-validations, with other folds and draws (default "
        f"{usual['repeats']}{also('repeats')})",
    ) if bags else p.set_defaults(repeats=None)
    a(
        "--epochs",
        type=int,
        help=f"default {usual['epochs']}, the authors'; kept is the last with the fewest mistakes "
        "on the validation part" + ", of regressions that of the lowest loss there" * (not bags),
    )
    a("--batch", type=int, default=1, help="bags a step (default 1, the authors')")
    a("--lr", type=float, help=f"of Adam (default {usual['lr']:g}, the authors'{also('lr')})")
    a(
        "--weight-decay",
        type=float,
        help=f"default {usual['weight_decay']:g}, the authors'{also('weight_decay')}",
    )
    a(
        "--hidden",
        type=int,
        help=f"rows of V and U in eq. 6 (default {usual['hidden']}, the authors'{also('hidden')})",
    )
    a(
        "--embed",
        type=layers,
        metavar="N,..",
        help="layers with ReLU before the pooling; 0: none (default none, as eqs. "
        "5-6; the authors' code 512"
        + (
            f"; with --bags {','.join(map(str, bags['embed']))}"
            if bags
            else "; the linear model averages the features before them"
        )
        + ")",
    )


def pair_options(p, a, encoder):
    """Options of the two commands on fold changes."""
    a(
        "--genes",
        default="all",
        metavar="A,B|FILE",
        help="genes of the expression table (default all)",
    )
    a(
        "--drivers",
        metavar="FILE",
        help="a compendium of driver genes (columns symbol and mutations, such as IntOGen's): "
        "its --top most mutated ones",
    )
    a(
        "--top",
        type=int,
        default=DRIVERS,
        help=f"driver genes taken (default {DRIVERS}, the paper's)",
    )
    a(
        "--slides",
        choices=("tumour", "both"),
        help="whose tiles stand for a patient: tumour, of tumour slides (default: "
        '"from single whole slide image"); both, of normal slides too',
    )
    a(
        "--per-gene",
        action="store_true",
        default=None,
        help="a network for each gene, as the authors' code and Fig. 11, not one for all",
    )
    a("--name", help="of the run (default: command and model); an interrupted run goes on")
    pooling_options(p, DIAGNOSIS)
    add_options(p, encoder=encoder)


def slides_of_run(p):
    p.add_argument(
        "run", help="folder of a finished run of diagnose or expression, COHORT/runs/NAME"
    )
    p.add_argument("slide", nargs="+", help="slide files, names of the run's slides, or all")
    p.add_argument(
        "--pooling",
        choices=tuple(histcode.POOLINGS),
        help="of a run of diagnose --table (default HistCode)",
    )
    p.add_argument(
        "--all-models",
        action="store_true",
        help="also the models that learned from the slide's patient",
    )
    add_options(p, of_run=True)
    return p.add_argument
