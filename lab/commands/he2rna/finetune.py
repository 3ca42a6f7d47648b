"""python he2rna.py finetune COHORT RUN: go on with all tiles, for all or chosen genes.

From a run's fold models, trained on super-tiles, to models of all tiles of one cancer's slides, in
the folds of the run. [HE2RNA Methods, Training and evaluation] The tiles are read from disk batch
by batch: an epoch takes as long as reading them, or the network of 8,000 tiles a slide, minutes for
100 slides on a GPU. Writes COHORT/runs/NAME/ as train does.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np

import he2rna
from lab.application import features_as, pick_genes, unlike
from lab.audit.ledger import encoder_saw
from lab.cohort.expression import read_expression
from lab.cohort.features import features_made_by, learned_as
from lab.cohort.samples import join, read_samples, select
from lab.cohort.scale import unit_of_run
from lab.commands.expression_options import expression_options
from lab.commands.he2rna.options import check_decoys, training_options
from lab.commands.slide_options import add_options
from lab.devices import pick_device, pick_precision
from lab.files import InputError, digest, few
from lab.he2rna.bags import from_disk
from lab.he2rna.cohort_data import CohortData, learn_beside, rows_of
from lab.he2rna.evaluation import decoys_of
from lab.he2rna.folds import check_folds
from lab.he2rna.runs import load_run, model_of, open_run, train_folds
from lab.processes import share_out
from lab.progress import say_left_out
from lab.provenance import merged, of_cohort
from lab.runs import check_name
from lab.show.plots import need_matplotlib
from tiling import MAX_TILES


def options(parser):
    parser.add_argument("cohort", help="the cohort folder")
    parser.add_argument("run", help="the run to start from: its name in COHORT/runs, or its folder")
    a = parser.add_argument_group("training").add_argument
    a(
        "--genes",
        default="all",
        metavar="A,B|FILE|all",
        help="genes to go on with; they keep their output rows (default all)",
    )
    a(
        "--project",
        metavar="P,..",
        help="the cancer to fine-tune on, in the run's folds (default: all of the run)",
    )
    expression_options(a, of_run=True)
    a("--name", help="of the new run in COHORT/runs (default RUN-PROJECT-finetuned)")
    training_options(
        a, he2rna.FINE_EPOCHS, he2rna.FINE_PATIENCE, he2rna.FINE_BATCH, he2rna.KS_TILES
    )
    parser.set_defaults(within="")
    add_options(parser, of_run=True)


def run(o):
    start = time.monotonic()
    need_matplotlib()
    cohort = Path(o.cohort)
    run = load_run(o.run if Path(o.run).is_dir() else cohort / "runs" / o.run)
    go_on_as(run, o)
    check_name(o.name)
    chosen = pick_genes(o.genes, run["genes"])
    take_decoys(run, o, len(chosen))
    device = pick_device(o.device)
    precision = pick_precision(o.precision, device) if o.precision else "float32"
    data, into, source = read_tuned(cohort, o, run, [run["genes"][j] for j in chosen])
    learn_beside(data, decoys_of(run, data.slides, o.decoys))
    settings = settings_of(run, o, precision)
    words = merged(run["provenance"], of_cohort(cohort))
    made_by = [features_made_by(into, source, name) for name in data.slides]
    folder, config = open_run(cohort, o, settings, data, device, words, made_by)
    bags = from_disk(into, source, data.slides)
    first = partial(first_model, run, o, chosen, device, precision)
    return train_folds(folder, config, o, data, bags, first, start)


def go_on_as(run, o):
    """Take from the run what fine-tuning may not choose."""
    name = run["folder"].resolve().name
    o.name = o.name or "-".join(filter(None, (name, o.project, "finetuned")))
    for setting in ("folds", "valid", "dropout", "code", "folds_by"):
        setattr(o, setting, run["config"][setting])
    o.scale = o.scale or run["config"].get("scale")
    of_run = unit_of_run(run["config"])
    if o.unit not in (None, of_run):
        raise InputError(f"--unit {o.unit}: the run {name} learned {of_run}")
    o.unit = of_run


def take_decoys(run, o, n_genes):
    """How many of the run's decoys go on beside the genes; it has learned them as it has those."""
    there = run["config"]["decoys"]
    if not there and o.null == "decoys":
        why = "was trained without decoys: --null untrained, t or permutation"
        raise InputError(f"the run {run['folder'].name} {why}")
    if o.decoys is None:
        o.decoys = min(there, he2rna.n_decoys(n_genes))
    if o.decoys > there:
        raise InputError(f"--decoys {o.decoys}: the run {run['folder'].name} has {there}")
    check_decoys(o)


def read_tuned(cohort, o, run, genes):
    """(CohortData of the run's slides, folder and source of their features)."""
    samples, left_out = samples_of_run(cohort, o, run)
    samples, y, unmatched = expression_of(cohort, samples, genes, o.scale)
    left_out = say_left_out({**left_out, **unmatched})
    check_folds(cohort, samples, tested_in(run, samples), o, {})  # before hours of tiling
    slides = [s["slide"] for s in samples]
    ready, into, source, failed = features_as(run, o, cohort, slides)
    made = [name for name in slides if name not in failed]
    failed |= share_out(partial(unlike, run, source), into, made, o)
    o.features = ready.features
    keep = [i for i, s in enumerate(samples) if s["slide"] not in failed]
    samples = [samples[i] for i in keep]
    fold = tested_in(run, samples)
    check_folds(cohort, samples, fold, o, failed)
    data = CohortData(
        **rows_of(samples, fold, y[keep]),
        genes=genes,
        left_out=left_out,
        failed=failed,
        ledgers=ledgers_of(run),
        encoder=encoder_saw(into, source),
        learned_as={s["slide"]: learned_as(into, source, s["slide"]) for s in samples},
        chooses={r["patient"]: {*map(int, r["validates_folds"].split())} for r in run["rows"]},
        tested=[saved["test_patients"] for saved in run["folds"]],
    )
    return data, into, source


def samples_of_run(cohort, o, run):
    """Rows of samples.csv that are of the run and the project, and what is left out.

    Whose slide it is and which fold tests it is the run's to say: no model meets its own patients.
    """
    of_run = {row["slide"]: row for row in run["rows"]}
    everyone, left_out = select(read_samples(cohort), "all", o.project)
    samples = [{**s, **of_run[s["slide"]]} for s in everyone if s["slide"] in of_run]
    if not samples:
        what = f"{len(everyone)} slides of project {o.project or 'all'}"
        raise InputError(f"{cohort}: none of its {what} is of the run {run['folder']}")
    others = [s["slide"] for s in everyone if s["slide"] not in of_run]
    return samples, {**left_out, f"slides that are not of the run {run['folder'].name}": others}


def expression_of(cohort, samples, genes, scale):
    """(samples with expression, their y (S, G) of some genes, {what: slides without})."""
    key, ids, names, a = read_expression(cohort, scale)
    samples, rows, unmatched = join(samples, key, ids, cohort / "expression")
    column = {gene: j for j, gene in enumerate(names)}
    lost = [gene for gene in genes if gene not in column]
    if lost:
        raise InputError(f"{cohort}: expression has no gene {few(lost)}, which the run has")
    y = he2rna.log_expression(a[rows][:, [column[gene] for gene in genes]])
    return samples, y, {what: v for what, v in unmatched.items() if what.startswith("slides")}


def tested_in(run, samples):
    """The fold whose model did not learn from a sample's patient. (S,)"""
    return np.array([run["fold_of"][s["patient"]][0] for s in samples])


def ledgers_of(run):
    """Whom the models have learned from already, fold by fold."""
    name = run["folder"].resolve().name
    return [{f"{name}: {step}": v for step, v in saved["saw"].items()} for saved in run["folds"]]


def settings_of(run, o, precision):
    """What the new run is known by, beside the options of training."""
    weights = [digest(*(v.numpy() for v in saved["model"].values())) for saved in run["folds"]]
    before, first = run["config"], run["folds"][0]
    return {
        "command": "finetune",
        "bags": "all tiles",
        "project": o.project or "all",
        "features": before["features"],
        "from_run": {"name": run["folder"].resolve().name, "weights": weights},
        "n_features": first["n_features"],
        "hidden": first["hidden"],
        "ks": o.ks,
        "dropout": o.dropout,
        "valid": o.valid,
        "selection": precision,
        "pad_to": MAX_TILES,
    }


def first_model(run, o, genes, device, precision, fold, _):
    """The run's model of a fold, for some genes and all tiles; precision: of choosing tiles."""
    saved = run["folds"][fold]
    model = model_of(saved, device, genes, ks=o.ks, pad_to=MAX_TILES, precision=precision)
    rows = {name: v[: o.decoys].to(device) for name, v in saved["decoys"].items()}
    return model.add_outputs(**rows)
