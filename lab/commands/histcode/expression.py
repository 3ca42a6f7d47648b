"""python histcode.py expression [COHORT]: which genes change between tumour and normal tissue?

A classifier of tumour and normal slides learns where to look. The means of the tiles of its highest
and of its lowest attention predict log10(fc + 1) of each gene by one linear layer, and whether
|log2 fc| > 1.5 by another. Every patient is tested once, by a model that did not know the patient.
[HistCode Methods, Differential expression prediction; Figs. 4, 5, 7-9]

From slides to the report, making what is missing: tiles/ features/ runs/NAME/ with fold*.pt,
folds.csv, predictions.npz, genes.csv, pictures and report.md. It costs what `diagnose --rotate`
does, and seconds for the layers; --per-gene trains a network for each gene, decoy and fold. Without
a cohort on a simulated one, demo-pairs/, with maps, in three minutes on two quiet cores.
"""

import time
from pathlib import Path

import numpy as np

import he2rna
import histcode
from lab.audit.choices import add_choices
from lab.audit.ledger import encoder_saw
from lab.cohort.features import features_of
from lab.cohort.genes import as_in_sets
from lab.commands.expression_options import FEWEST_DECOYS, check_count
from lab.commands.histcode.demo import demo_of, draw_maps, draw_pairs
from lab.commands.histcode.options import pair_options, penalty_of, settle_encoder
from lab.devices import pick_device
from lab.files import InputError, save_csv, save_file
from lab.gene_sets import read_sets
from lab.histcode.bags import refuse, slide_features
from lab.histcode.choices import CHOICES, settle_choices, turned_lines
from lab.histcode.decoys import targets_beside
from lab.histcode.expression import POOLED, Study, folds_of_run, judge, train_folds
from lab.histcode.expression_report import BEST_GENES, write_report
from lab.histcode.options import DIAGNOSIS, check_ranges, settle_training
from lab.histcode.pairs import bags_of_pairs, chosen_genes, pairs_of
from lab.histcode.runs import claim_run
from lab.histcode.splits import check_folds, roles
from lab.processes import by_first
from lab.progress import clock, report_failures, say_left_out
from lab.show.plots import need_matplotlib

TISSUES = ("normal", "tumour")
DEMO_GENES = "CD3D,MKI67"  # of lymphocytes and of tumour cells: mapped without a cohort  [ours]


def run(o):
    start = time.monotonic()
    demo = demo_of(o)
    settle(o, demo)
    need_matplotlib()
    device = pick_device(o.device)
    if demo:
        by_first(draw_pairs)
    settle_encoder(o, demo)
    sets = read_sets(o.gmt) if o.gmt else {}
    study = study_of(o, sets)
    check_parts(study, o)
    folder, config = claim(study, o)
    slides = study.slides
    n_decoys = study.targets.shape[1] - len(study.pairs.genes)
    beside = f" and {n_decoys:,} decoys" if n_decoys else ""
    print(
        f"{len(study.pairs.patients)} pairs, {len(study.pairs.genes):,} genes{beside}, "
        f"{len(slides['names'])} slides, {slides['n_features']} features a tile; model {o.model}, "
        f"{o.pooling} pooling; {o.folds} folds, on {device}",
        flush=True,
    )
    train_folds(study, folder, o, device)
    if o.share[0]:  # the first process judges
        return 0
    folds, prediction, guess = folds_of_run(study, folder, o)
    found = judge(study, folds, prediction, guess, o)
    save_predictions(folder / "predictions.npz", study, prediction, guess)
    encoder = encoder_saw(o.cohort, features_of(o))
    write_report(folder, config, study, folds, found, prediction, encoder, turned_lines(o), sets)
    print(f"report: {folder / 'report.md'}   ({clock(time.monotonic() - start)})")
    failed = slides["failed"]
    status = report_failures(failed, len(slides["names"]) + len(failed), folder)
    if demo and o.model == "linear":
        status |= draw_maps(o, folder, "--genes", DEMO_GENES)
    return status


def settle(o, demo):
    """Fill in the options, and refuse those that contradict each other.

    demo: what is usual instead, without a cohort.
    """
    settle_choices(o)
    if "epochs" in o.code and o.model != "attention":
        raise InputError(
            "--code epochs: those of a gene's regressor: --code model,epochs, or --model attention"
        )
    o.model = o.model or "linear"
    o.slides = o.slides or "tumour"
    o.per_gene = bool(o.per_gene)
    if o.model != "linear":
        if o.ridge:
            raise InputError(
                "--ridge: with --model linear; the other stops on its validation patients"
            )
        o.ridge = 0.0
    settle_training(o, {**DIAGNOSIS, "ridge": 0.0, **demo})
    o.ridge = None if o.ridge == "auto" else o.ridge
    check_ranges(o, ("top", 1, 1e6), ("ridge", 0, 1e12))
    if o.model == "linear" and (o.per_gene or o.pooling != "attention"):
        raise InputError(
            "--per-gene, --pooling: with --model attention; the linear model is one layer over the "
            "tiles of highest and lowest attention"
        )
    if o.model == "linear" and o.decoys is not None:
        raise InputError("--decoys: with --model attention; p of the linear model is by shuffles")
    check_count(o.decoys)
    if o.drivers and o.genes != "all":
        raise InputError("--drivers and --genes both name genes: give one")


def study_of(o, sets):
    """The pairs of the cohort, their genes, their slides' features, and the part that tests each.

    sets: the gene sets asked for, which must know some of the genes. Parts are dealt from the
    tables alone, so that all models and encoders have the same. [ours]
    """
    pairs = chosen_genes(pairs_of(o.cohort, o.slides, o, o.scale), o.genes, o.drivers, o.top)
    if sets:
        _, remark = as_in_sets(pairs.genes, sets)
        if remark:
            print(remark)
    stand_for_pairs = {slide for slides in pairs.slides for slide in slides}
    needed = [s for s in pairs.known if o.model == "linear" or s in stand_for_pairs]
    patients, tissue = zip(*pairs.known.values(), strict=True)
    check_folds(len(set(patients)), {"names": needed, "failed": {}}, o)
    slides = slide_features(Path(o.cohort), o, needed, least=2)
    pairs = pairs.with_slides(slides["names"])
    print(f"slides by their words: {pairs.words}")
    say_left_out(pairs.left_out)
    slides["left_out"] = pairs.left_out
    slides["patients"] = np.array([pairs.known[name][0] for name in slides["names"]])
    slides["y"] = np.array([pairs.known[name][1] for name in slides["names"]])
    paired = set(pairs.patients.tolist())
    strata = [f"{kind}{who in paired}" for who, kind in zip(patients, tissue, strict=True)]
    parts = histcode.split_patients(patients, strata, o.folds, [o.seed, 0])
    part_of = dict(zip(patients, parts.tolist(), strict=True))
    bags = bags_of_pairs(pairs, slides)
    for data in (slides, bags):
        data["part"] = np.array([part_of[who] for who in data["patients"]])
    targets = targets_beside(pairs.y, decoys_asked(len(pairs.genes), o), o.seed)
    return Study(pairs, slides, bags, targets)


def decoys_asked(n_genes, o):
    """How many decoys the networks learn beside so many genes."""
    if o.model == "linear":
        return 0
    if o.decoys is not None:
        return o.decoys
    if o.per_gene:
        return max(FEWEST_DECOYS, round(he2rna.DECOY_SHARE * n_genes))
    return he2rna.n_decoys(n_genes)


def check_parts(study, o):
    """Refuse a study that is too small for its folds, before anything is written."""
    for f in range(o.folds):
        train, chooses, _ = roles(study.bags["part"], f, o.folds, o.code)
        if len(train) < 2 or not len(chooses):
            refuse(
                study.slides,
                f"fold {f} has {len(train)} pairs to train on and {len(chooses)} to choose its "
                f"epoch, of {len(study.pairs.patients)}: give a lower --folds, or more pairs",
            )
        train, _, _ = roles(study.slides["part"], f, o.folds, o.code)
        tissue = {TISSUES[y] for y in study.slides["y"][train]}
        if o.model == "linear" and len(tissue) < 2:
            refuse(
                study.slides,
                f"fold {f} trains on slides of one class only ({tissue.pop()}); the attention "
                "needs tumour and normal slides; --model attention does without",
            )


def claim(study, o):
    """Hold the run's folder and write its config.json and folds.csv -> folder, settings."""
    pairs, slides = study.pairs, study.slides
    name = ["expression"]
    if o.model != "linear":
        name += [o.pooling, *["per-gene"] * o.per_gene]
    folder = Path(o.cohort) / "runs" / o.within / (o.name or "-".join(name))
    settings = {option: getattr(o, option) for option in ("model", "pooling", "per_gene", "slides")}
    settings["ridge"] = "auto" if o.ridge is None else o.ridge
    settings |= {"genes": len(pairs.genes), "ends": histcode.ENDS}
    if o.model != "linear":
        settings["decoys"] = study.targets.shape[1] - len(pairs.genes)
    columns = [slides[key].tolist() for key in ("names", "patients")]
    data = (pairs.patients.tolist(), pairs.genes, pairs.y, pairs.label, slides["part"])
    config = claim_run(folder, o, slides, settings, *columns, *data, study.bags["part"])
    if not o.share[0]:
        columns += [[TISSUES[y] for y in slides["y"]], slides["part"]]
        paired = np.isin(slides["patients"], pairs.patients).astype(int)
        rows = zip(*columns, paired, strict=True)
        save_csv(folder / "folds.csv", ("slide", "patient", "tissue", "part", "pair"), rows)
    return folder, config


def save_predictions(path, study, prediction, guess):
    """Of every pair, by the model that did not know its patient."""
    arrays = {
        "prediction": prediction,
        "truth": study.pairs.y,
        "label": study.pairs.label,
        "predicted_label": guess,
        "genes": np.array(study.pairs.genes),
        "patient": study.pairs.patients,
        "part": study.bags["part"],
    }
    save_file(path, lambda file: np.savez_compressed(file, **arrays))


def options(parser):
    parser.set_defaults(within="")
    a = parser.add_argument
    a(
        "cohort",
        nargs="?",
        help="a folder: slides/, samples.csv, expression.csv (default: demo-pairs)",
    )
    a(
        "--model",
        choices=("linear", "attention"),
        help="linear: one layer over the mean of the tiles of highest and of lowest attention of a "
        "tumour classifier (default, the paper's eq. 8); attention: all tiles pooled by attention "
        "that learns from the genes (Fig. 6)",
    )
    a(
        "--pooling",
        choices=tuple(POOLED),
        default="attention",
        help="with --model attention (default attention)",
    )
    a(
        "--ridge",
        type=penalty_of,
        metavar="X|auto",
        help="with --model linear: penalty of the squared weights of standardised features "
        "(default 0: least squares, the paper's); auto: by leave-one-out over the training pairs, "
        "for many features and few patients",
    )
    add_choices(a, CHOICES, "expression")
    a(
        "--gmt",
        nargs="+",
        metavar="FILE",
        help=f"gene sets to look for the {BEST_GENES} best genes in (Fig. 9)",
    )
    pair_options(parser, "resnet50-stage3")
