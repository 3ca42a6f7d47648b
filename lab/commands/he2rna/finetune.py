"""lab.commands.he2rna.finetune"""

import time
from pathlib import Path

import numpy as np

import he2rna
from lab.application import features_as, pick_genes
from lab.audit.ledger import encoder_saw
from lab.cohort.expression import read_expression
from lab.cohort.samples import join, read_samples, select
from lab.cohort.steps import MAX_TILES
from lab.commands.options import add_options, report_failures
from lab.encoders import pick_device, pick_precision
from lab.exchange.clam import features_made_by
from lab.files import InputError, digest, few
from lab.he2rna.bags import from_disk
from lab.he2rna.runs import (
    check_folds,
    check_options,
    cross_validate,
    load_run,
    model_of,
    open_run,
    split_folds,
    table_of,
    training_options,
)
from lab.progress import say_left_out
from lab.show.plots import need_matplotlib

# Constants
FINE_EPOCHS = (
    50  # on all tiles                             [HE2RNA Methods, Training and evaluation]
)


FINE_PATIENCE = 30  #                                          [HE2RNA code]


FINE_BATCH = 4  # slides per iteration, all tiles          [HE2RNA code]


KS_TILES = (
    10,
    20,
    50,
    100,
    200,
    500,
    1000,
    2000,
    5000,
)  # all tiles   [HE2RNA Methods, Model architecture]


def run(o):
    """Go on from a run's fold models with all tiles of one cancer's slides, for all or chosen genes, in the run's folds."""
    start, cohort = time.time(), Path(o.cohort)
    need_matplotlib()
    run = load_run(o.run if Path(o.run).is_dir() else cohort / "runs" / o.run)
    name, before, first = run["folder"].resolve().name, run["config"], run["folds"][0]
    o.name = o.name or "-".join([name, *([o.project] if o.project else []), "finetuned"])
    o.folds, o.valid, o.dropout = before["folds"], before["valid"], before["dropout"]
    o.code, o.folds_by = before["code"], before["folds_by"]
    check_options(o)
    device, chosen = pick_device(o.device), pick_genes(o.genes, run["genes"])
    precision = (
        pick_precision(o.precision, device) if o.precision else "float32"
    )  # of choosing tiles
    genes, of_run = [run["genes"][j] for j in chosen], {row["slide"]: row for row in run["rows"]}
    everyone, left_out = select(read_samples(cohort), "all", o.project)
    samples = [s for s in everyone if s["slide"] in of_run]
    if not samples:
        raise InputError(
            f"{cohort}: none of its {len(everyone)} slides of project {o.project or 'all'} is of the run "
            f"{run['folder']}"
        )
    for s in samples:
        if s["patient"] != of_run[s["slide"]]["patient"]:
            raise InputError(
                f"slide {s['slide']} is patient {s['patient']}'s in {cohort / 'samples.csv'}, "
                f"{of_run[s['slide']]['patient']}'s in the run: its fold would be wrong"
            )
    left_out[f"slides that are not of the run {name}"] = [
        s["slide"] for s in everyone if s["slide"] not in of_run
    ]
    key, ids, names, a = read_expression(cohort)
    column = {g: j for j, g in enumerate(names)}
    missing = [g for g in genes if g not in column]
    if missing:
        raise InputError(f"{cohort}: expression has no gene {few(missing)}, which the run has")
    samples, rows, unmatched = join(samples, key, ids, cohort / "expression")
    left_out = say_left_out(
        {**left_out, **{k: v for k, v in unmatched.items() if k.startswith("slides")}}
    )
    fold_of = lambda: np.array([int(of_run[s["slide"]]["test_fold"]) for s in samples])
    check_folds(cohort, samples, fold_of(), o, {})  # before hours of tiling, and after
    ready, into, source, failed = features_as(run, o, cohort, [s["slide"] for s in samples])
    o.features = ready.features
    keep = [i for i, s in enumerate(samples) if s["slide"] not in failed]
    samples = [samples[i] for i in keep]
    check_folds(cohort, samples, fold_of(), o, failed)
    y = he2rna.log_expression(a[np.ix_(rows[keep], [column[g] for g in genes])])
    data = table_of(samples, fold_of(), genes, y, left_out, failed)
    data["held_out"], data["encoder"] = (
        [one["test_patients"] for one in run["folds"]],
        encoder_saw(into, source),
    )
    data["ledgers"] = [
        {f"{name}: {step}": whom for step, whom in one["saw"].items()} for one in run["folds"]
    ]
    weights = [digest(*(v.numpy() for v in one["model"].values())) for one in run["folds"]]
    config = dict(
        command="finetune",
        bags="all tiles",
        project=o.project or "all",
        features=before["features"],
        from_run=dict(name=name, weights=weights),
        n_features=first["n_features"],
        hidden=first["hidden"],
        ks=o.ks,
        dropout=first["dropout"],
        valid=o.valid,
        selection=precision,
        pad_to=MAX_TILES,
    )
    made_by = [features_made_by(into, source, s["slide"]) for s in samples]
    folder, config = open_run(cohort, o, config, data, device, made_by)
    splits = split_folds(
        data,
        o,
        folder,
        {s["slide"]: of_run[s["slide"]]["validates_folds"].split() for s in samples},
    )

    def first_model(f, _):
        model = model_of(run["folds"][f], device, chosen, o.ks)
        model.precision, model.pad_to = precision, config["pad_to"]
        return model

    cross_validate(
        folder, config, o, data, from_disk(into, source, data["slides"]), splits, first_model, start
    )
    return 0 if o.share[0] else report_failures(failed, len(samples) + len(failed), folder)


def options(parser):
    p, a = parser, parser.add_argument
    a("cohort", help="the cohort folder")
    a("run", help="the run to start from: its name in COHORT/runs, or its folder")
    p.set_defaults(within="")
    a = p.add_argument_group("training").add_argument
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
    a("--name", help="of the new run in COHORT/runs (default RUN-PROJECT-finetuned)")
    training_options(a, FINE_EPOCHS, FINE_PATIENCE, FINE_BATCH, KS_TILES, "")
    add_options(p, of_run=True)
