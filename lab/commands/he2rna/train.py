"""lab.commands.he2rna.train"""

import time
from pathlib import Path

import numpy as np
import torch

import tiling
from lab.audit.choices import add_choices
from lab.audit.ledger import saw
from lab.cohort.expression import as_symbols, read_gene_table
from lab.cohort.features import provenance
from lab.commands.options import report_failures
from lab.encoders import pick_device
from lab.fast.topk import HE2RNA
from lab.files import InputError, save_file
from lab.he2rna.bags import in_memory
from lab.he2rna.choices import CHOICES, settle_choices
from lab.he2rna.runs import (
    DEMO_VALID,
    EPOCHS,
    VALID_SHARE,
    check_options,
    cohort_options,
    cross_validate,
    open_run,
    prepare,
    split_folds,
)
from lab.processes import by_first
from lab.runs import load_checkpoint, mark_of
from lab.show.plots import need_matplotlib
from lab.simulation.cohort import simulate_cohort

DEMO_EPOCHS = 60  # on the simulated cohort: a lesson's time [ours]


def run(o):
    """Cross-validate, test significance, write the report."""
    start, demo = time.time(), o.cohort is None
    settle_choices(o)
    o.cohort, o.weights = (o.cohort, o.weights) if not demo else ("demo", o.weights or "random")
    o.epochs = (DEMO_EPOCHS if demo else EPOCHS) if o.epochs is None else o.epochs
    o.valid = (DEMO_VALID if demo else VALID_SHARE) if o.valid is None else o.valid
    check_options(o)
    need_matplotlib()  # better now than after a day
    device, cohort = pick_device(o.device), Path(o.cohort)
    if demo and not by_first((cohort / "samples.csv").is_file):
        print("no cohort given: drawing a SIMULATED one into demo/")
        by_first(lambda: simulate_cohort(cohort, seed=o.seed))
    if not cohort.is_dir():
        raise InputError(f"{cohort}: no such folder")
    tables = read_gene_table(o.gene_table) if o.gene_table else None
    if tables and tables[1] is None:
        raise InputError(
            f"--gene-table {o.gene_table}: it has no column biotype to count protein-coding genes by"
        )
    data, x, mask = prepare(cohort, o)
    if tables:
        names, data["coding_note"] = as_symbols(data["genes"], tables[0])
        data["coding"] = np.array(
            [n in tables[1] or g.split(".")[0] in tables[1] for n, g in zip(names, data["genes"])]
        )
    config = dict(
        command="train",
        bags="super-tiles",
        project=o.project or "all",
        types=o.types or "primary tumours",
        genes_in_table=data["genes_in_table"],
        features=provenance(cohort, o, data["slides"]),
        tiles_per_slide=x.shape[1],
        n_features=x.shape[2],
        hidden=o.hidden,
        ks=o.ks,
        dropout=o.dropout,
        valid=o.valid,
        pad_to=tiling.N_SUPERTILES,
    )
    folder, config = open_run(cohort, o, config, data, device, x.numpy(), mask.numpy())
    if o.within and (folder / "report.md").is_file():  # of audit: finished, of these very settings
        return report_failures(data["failed"], len(data["slides"]) + len(data["failed"]))
    for path in (
        [o.models / f"fold{f}.pt" for f in range(o.folds)] if o.models else ()
    ):  # of audit: the same ones
        saved = dict(load_checkpoint(path, "cpu"), run=mark_of(folder / path.name))
        save_file(folder / path.name, lambda f: torch.save(saved, f))
    splits = split_folds(data, o, folder, data["validates"])

    def first_model(f, rows):
        torch.manual_seed(int(np.random.default_rng([o.seed, f]).integers(2**62)))
        model = HE2RNA(x.shape[2], len(data["genes"]), o.hidden, o.ks, o.dropout, code=o.code)
        if "bias" not in o.code:
            saw(data["ledgers"][f], "start of the last bias", data["patients"][rows])
            with torch.no_grad():
                model.layers[-1].bias.copy_(
                    torch.from_numpy(data["y"][rows].mean(0))
                )  # [HE2RNA code]
        return model.to(device)

    cross_validate(folder, config, o, data, in_memory(x, mask), splits, first_model, start)
    return (
        0
        if o.share[0]
        else report_failures(data["failed"], len(data["slides"]) + len(data["failed"]), folder)
    )


def options(parser):
    a = cohort_options(parser, DEMO_EPOCHS)
    a(
        "--name",
        default="he2rna",
        help="COHORT/runs/NAME (default he2rna); an interrupted run goes on",
    )
    add_choices(a, CHOICES, "train")
