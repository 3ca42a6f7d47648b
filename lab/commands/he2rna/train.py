"""python he2rna.py train [COHORT]: cross-validate, test significance, write the report.

From slides and expression to a report, making what is missing: tiles/, features/, supertiles/,
runs/NAME/. An interrupted run goes on where it stopped; under torchrun the processes share slides
and folds. Without a cohort a simulated one is drawn into demo/, in 2 to 4 minutes on two quiet
cores; 1,000 slides of all projects take hours for features and for training, less on a GPU.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

import he2rna
import tiling
from lab.audit.choices import add_choices
from lab.audit.ledger import saw
from lab.cohort.features import features_of, provenance
from lab.commands.he2rna.options import DEMO_VALID, check_decoys, cohort_options
from lab.devices import pick_device
from lab.files import InputError, save_file
from lab.he2rna.bags import in_memory
from lab.he2rna.choices import CHOICES, settle_choices
from lab.he2rna.cohort_data import learn_beside, mark_coding, read_coding, read_cohort
from lab.he2rna.runs import open_run, train_folds
from lab.he2rna.training import fold_path, model_of_choices
from lab.processes import by_first
from lab.progress import report_failures
from lab.provenance import of_data
from lab.runs import check_name, load_checkpoint, mark_of
from lab.show.plots import need_matplotlib
from lab.simulation.cohort import simulate_cohort

DECOY_DRAW = 20  # tells the seed of the decoys from those of folds and weights [ours]
DEMO_EPOCHS = 60  # on the simulated cohort: a lesson's time [ours]


def options(parser):
    a = cohort_options(parser, DEMO_EPOCHS)
    a("--name", default="he2rna", help="COHORT/runs/NAME (default he2rna)")
    add_choices(a, CHOICES, "train")


def run(o):
    start = time.monotonic()
    settle_choices(o)
    cohort = find_cohort(o)
    check_name(o.name)
    check_decoys(o)
    need_matplotlib()  # better now than after a day
    device = pick_device(o.device)
    coding = read_coding(o.gene_table)
    data, x, mask = read_cohort(cohort, o)
    if coding:
        mark_coding(data, *coding)
    learn_beside(data, decoys_of(o, data))
    settings = settings_of(cohort, o, data, x)
    words = of_data(cohort, features_of(o), data.slides[0])
    folder, config = open_run(cohort, o, settings, data, device, words, x.numpy(), mask.numpy())
    if o.within and (folder / "report.md").is_file():  # of audit: done, with these very settings
        return report_failures(data.failed, len(data.slides) + len(data.failed))
    if o.models:  # of audit, which judges the same models otherwise
        copy_models(o.models, folder, o.folds)
    first = partial(first_model, o, data, x.shape[2], device)
    return train_folds(folder, config, o, data, in_memory(x, mask), first, start)


def find_cohort(o):
    """The cohort's folder; without one the simulated cohort, drawn where it is missing.

    Sets the options that have other defaults there.
    """
    demo = o.cohort is None
    if o.epochs is None:
        o.epochs = DEMO_EPOCHS if demo else he2rna.EPOCHS
    if o.valid is None:
        o.valid = DEMO_VALID if demo else he2rna.VALID_SHARE
    cohort = Path("demo" if demo else o.cohort)
    if demo:
        o.weights = o.weights or "random"
        if not by_first((cohort / "samples.csv").is_file):
            print("no cohort given: drawing a SIMULATED one into demo/")
            by_first(lambda: simulate_cohort(cohort, seed=o.seed))
    if not cohort.is_dir():
        raise InputError(f"{cohort}: no such folder")
    return cohort


def settings_of(cohort, o, data, x):
    """What a run is known by, beside the options of training; pad_to as the authors pad a bag."""
    return {
        "command": "train",
        "bags": "super-tiles",
        "project": o.project or "all",
        "types": o.types or "primary tumours",
        "genes_in_table": data.genes_in_table,
        "features": provenance(cohort, o, data.slides),
        "tiles_per_slide": x.shape[1],
        "n_features": x.shape[2],
        "hidden": o.hidden,
        "ks": o.ks,
        "dropout": o.dropout,
        "valid": o.valid,
        "pad_to": tiling.N_SUPERTILES,
    }


def decoys_of(o, data):
    """The run's decoys (S, m)."""
    count = he2rna.n_decoys(len(data.genes)) if o.decoys is None else o.decoys
    return he2rna.draw_decoys(data.y, data.patients, data.projects, count, [o.seed, DECOY_DRAW])


def first_model(o, data, n_features, device, fold, rows):
    """The network that a fold's training on some rows starts from.

    The rows of the decoys are drawn last: those of the genes start as they would without them.
    """
    torch.manual_seed(int(np.random.default_rng([o.seed, fold]).integers(2**62)))
    model = model_of_choices(n_features, len(data.genes), o.hidden, o.ks, o.dropout, code=o.code)
    n_decoys = data.targets.shape[1] - len(data.genes)
    if n_decoys:
        decoys = torch.nn.Linear(o.hidden[-1], n_decoys)
        model.add_outputs(decoys.weight, decoys.bias)
    if "bias" not in o.code:
        saw(data.ledgers[fold], "start of the last bias", data.patients[rows])
        model.start_at(data.targets[rows].mean(0))
    return model.to(device)


def copy_models(source, folder, n_folds):
    """Take the models of another run, marked as this one's."""
    for f in range(n_folds):
        path = fold_path(folder, f)
        saved = load_checkpoint(fold_path(source, f), "cpu")
        saved["run"] = mark_of(path)
        save_file(path, partial(torch.save, saved))
