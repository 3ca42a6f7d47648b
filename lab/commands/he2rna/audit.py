"""python he2rna.py audit [COHORT]: what each choice is worth, turned alone.

The default run once for each seed, and again on another number of threads; then each choice of
train and msi that --code can turn, on the same seeds. Without a cohort on the simulated one, in few
epochs: a quarter of an hour on two quiet cores. On a cohort each run takes as long as train. Writes
COHORT/runs/audit/: audit.md, audit.csv and the runs. An interrupted audit goes on where it stopped.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np

import he2rna
import stats
from lab.audit.choices import switches
from lab.audit.compare import NOTE, UNTURNED, audit_options, choices_asked, run_audit
from lab.cohort.samples import read_samples
from lab.commands.he2rna.msi import run as msi
from lab.commands.he2rna.options import DEMO_VALID, cohort_options
from lab.commands.he2rna.train import run as train
from lab.encoders import encoder_wants
from lab.files import InputError, read_rows
from lab.he2rna.choices import CHOICES, settle_choices
from lab.he2rna.evaluation import code_of
from lab.he2rna.gene_sets import read_results
from lab.simulation.cohort import simulate_cohort

EPOCHS = 8  # of each run on the simulated cohort: all in a quarter of an hour [ours]
SPLITS, SHARE, REPEATS = 5, Fraction(3, 4), 2  # of msi: a short study, a small hospital B [ours]
ARMS = ("transcriptome", "direct", "autoencoder-b")
SAME_MODELS = ("merged", "pooled")  # they judge otherwise: nothing is trained again for them
OWN = {"colour": "colour", "folds": "valid", "epochs": "valid"}  # {choice: the option it decides}
COMMON = (
    *("epochs", "batch", "patience", "lr", "ks", "hidden", "dropout"),
    *("folds", "folds_by", "valid"),
    *(
        "null",
        "null_models",
        "decoys",
        "project",
        "types",
        "encoder",
        "features",
        "weights",
        "colour",
    ),
    *("tile_um", "min_tissue", "max_tiles", "precision"),
)
WHAT = (
    "`python he2rna.py audit`: at most {epochs} epochs, batches of {batch}. {note} R: mean over "
    "the genes of a cancer, then over cancers; HS, BH: significant genes, of all cancers. The seed "
    "draws folds (but the authors'), first weights, dropout and k. A choice of genes, folds or "
    "ways to judge changes what R is of, too. msi: {splits} splits for each seed, {share} of the "
    "patients in hospital A. On the simulated cohort folds also lowers the share that chooses the "
    "epoch, from {demo_valid} to {valid}."
)


def options(parser):
    a = cohort_options(parser, EPOCHS)
    every = tuple({**switches(CHOICES, "train"), **switches(CHOICES, "msi")})
    audit_options(a, every)


def run(o):
    if o.colour == "stretch":
        raise InputError("--colour stretch: the choice colour turns it; leave it out")
    demo, cohort = o.cohort is None, Path(o.cohort or "demo")
    if demo:
        o.weights = o.weights or "random"
        if not (cohort / "samples.csv").is_file():
            print("no cohort given: drawing a SIMULATED one into demo/")
            simulate_cohort(cohort, seed=o.seed)
    o.epochs = o.epochs or (EPOCHS if demo else he2rna.EPOCHS)
    texts = {command: switches(CHOICES, command) for command in ("train", "msi")}
    asked = choices_asked(texts, o.code, cannot_turn(o, cohort, texts, demo))
    for name in asked["train"]:
        settle_choices(training(o, name, o.seed))  # what cannot be is said before hours of others

    def measure(command, name, seed):
        measured = measure_train if command == "train" else measure_msi
        return measured(training(o, name, seed), cohort, name)

    what = WHAT.format(
        epochs=o.epochs,
        batch=o.batch,
        note=NOTE,
        splits=SPLITS,
        share=SHARE,
        demo_valid=DEMO_VALID,
        valid=stats.AUTHORS_VALID,
    )
    settings = {name: getattr(o, name) for name in COMMON}
    seeds = range(o.seed, o.seed + o.seeds)
    return run_audit(cohort / "runs" / "audit", measure, asked, texts, seeds, settings, what)


def cannot_turn(o, cohort, texts, demo):
    """[(command, choices, why they cannot be turned here)]"""
    left = []
    if o.features:
        why = "features made elsewhere keep the colours they were made from"
        left.append(("train", ["colour"], why))
    elif encoder_wants(o)["colour"]:
        left.append(("train", ["colour"], f"{o.encoder} learned from colours of its own"))
    if o.folds != stats.AUTHORS_FOLDS or o.folds_by == "site":
        why = f"the authors' are {stats.AUTHORS_FOLDS} folds by patient"
        left.append(("train", ["folds"], why))
    if demo:
        why = "the simulated cohort has no LUNG, KIDN or UTER"
        left.append(("train", ["merged", "subtypes"], why))
        left.append(("msi", ["few-tiles"], "all slides of the simulated cohort have under 100"))
    if "msi" not in read_samples(cohort)[0]:
        left.append(("msi", texts["msi"], "samples.csv has no column msi"))
    return left


def training(o, name, seed):
    """The options of train with one choice turned; what it decides is not the default's."""
    run = argparse.Namespace(**vars(o))
    run.seed, run.follow, run.code = seed, None, [] if name in UNTURNED else [name]
    run.within, run.name = "audit", f"{name}-seed{seed}"
    if name in OWN:
        setattr(run, OWN[name], None)
    return run


def measure_train(run, cohort, name):
    """Train, and read what genes.csv says. -> ({measure: value}, exit status)"""
    folder = cohort / "runs" / "audit"
    run.models = folder / f"default-seed{run.seed}" if name in SAME_MODELS else None
    status = train(run)
    _, results = read_results(folder / run.name)
    counted = he2rna.separate(results, "merged" not in code_of(folder / run.name))
    results = [results[cancer] for cancer in counted]
    r = [he2rna.mean_of_values(e["r"]) for e in results]
    measures = {"R": float(he2rna.mean_of_values(np.array(r)))}
    for correction in ("hs", "bh"):
        measures[correction.upper()] = int(sum(e[correction].sum() for e in results))
    return measures, status


def measure_msi(run, cohort, name):
    """A short study of MSI: the mean AUC of each arm. -> ({measure: value}, exit status)"""
    run.study = str(cohort)
    run.splits, run.ratios, run.repeats, run.arms = SPLITS, (SHARE,), REPEATS, ARMS
    run.folds = he2rna.MSI_FOLDS
    run.name = f"audit/msi-{run.name}"
    status = msi(run)
    _, rows = read_rows(cohort / "runs" / run.name / "results.csv")
    aucs = {arm: [float(row[5]) for row in rows if row[2] == arm] for arm in ARMS}
    return {f"AUC {arm}": float(np.mean(auc)) for arm, auc in aucs.items()}, status
