"""lab.commands.he2rna.audit"""

import argparse
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

import he2rna
import stats
from lab.audit.choices import chosen_of, switches
from lab.audit.compare import run_audit
from lab.cohort.samples import read_samples
from he2rna import MSI_FOLDS
from lab.commands.he2rna.msi import run as msi
from lab.commands.he2rna.train import run as train
from lab.encoders import encoder_wants
from lab.files import InputError, number, read_rows
from lab.he2rna.choices import CHOICES, settle_choices
from lab.he2rna.evaluation import code_of
from lab.he2rna.gene_sets import read_results
from lab.he2rna.options import DEMO_VALID, cohort_options
from lab.progress import clock
from lab.runs import load_checkpoint, read_log
from lab.simulation.cohort import simulate_cohort

AUDIT_NOTE = (
    "First row: the run of default settings. The others: the run with this choice alone turned to its other side, "
    "less the default run of the same seed; mean and 95 % interval over the seeds (Student's t). The patients are "
    "the same, so nothing here speaks of other patients."
)


AUDIT_EPOCHS = (
    8  # of each run of audit on the simulated cohort: all in a quarter of an hour        [ours]
)


AUDIT_SEEDS = 3  # runs of each choice                                       [ours]


AUDIT_MSI = dict(
    splits=5,
    ratios=(Fraction(3, 4),),
    repeats=2,
    folds=MSI_FOLDS,  # audit's study: short, B small   [ours]
    arms=("transcriptome", "direct", "autoencoder-b"),
)


SAME_MODELS = ("merged", "pooled")  # they judge otherwise: nothing is trained again for them


def run(o):
    """The default once per seed, then each choice of train and msi alone, same seeds -> COHORT/runs/audit/audit.md.
    Without a cohort: on the simulated one, in fewer epochs."""
    if o.seeds < 1:
        raise InputError(f"--seeds {o.seeds}: must be at least 1")
    start, demo, folder = time.time(), o.cohort is None, Path(o.cohort or "demo") / "runs" / "audit"
    o.epochs = (AUDIT_EPOCHS if demo else he2rna.EPOCHS) if o.epochs is None else o.epochs
    if o.colour == "stretch":
        raise InputError("--colour stretch: the choice colour turns it; leave it out")
    if demo and not (folder.parents[1] / "samples.csv").is_file():
        print("no cohort given: drawing a SIMULATED one into demo/")
        simulate_cohort(folder.parents[1], seed=o.seed)
    o.weights = o.weights or ("random" if demo else None)
    texts, seeds = (
        {c: switches(CHOICES, c) for c in ("train", "msi")},
        range(o.seed, o.seed + o.seeds),
    )
    asked = {c: [name for name in texts[c] if name in (o.code or texts[c])] for c in texts}
    made, first = (
        None if o.features else encoder_wants(o)["colour"],
        read_samples(folder.parents[1])[0],
    )
    for c, names, why in (
        (
            "train",
            ["colour"],
            o.features and "features made elsewhere keep the colours they were made from",
        ),
        ("train", ["colour"], made and f"{o.encoder} learned from --colour {made}"),
        (
            "train",
            ["folds"],
            (o.folds != stats.AUTHORS_FOLDS or o.folds_by == "site")
            and f"the authors' are {stats.AUTHORS_FOLDS} folds by patient",
        ),
        ("train", ["merged"], demo and "the simulated cohort has no LUNG, KIDN or UTER"),
        ("msi", list(asked["msi"]), "msi" not in first and "samples.csv has no column msi"),
    ):
        for name in names:
            if why and name in asked[c]:
                asked[c].remove(name)
                print(f"without {c}'s {name}: {why}")
    if not any(asked.values()):
        raise InputError(f"--code {','.join(o.code)}: nothing is left to turn")

    def training(name, seed):  # what a switch decides is not the default's
        own = dict(colour=dict(colour=None), folds=dict(valid=None), epochs=dict(valid=None)).get(
            name, {}
        )
        return argparse.Namespace(
            **{
                **vars(o),
                "seed": seed,
                "follow": None,
                "code": () if name == "default" else (name,),
                "within": "audit",
                "name": f"{name}-seed{seed}",
                **own,
            }
        )

    def train_job(name, seed):
        run = training(name, seed)
        run.models = folder / f"default-seed{seed}" if name in SAME_MODELS else None
        status = train(run)
        results, saved = read_results(folder / run.name)[1], (folder / run.name).glob("fold*.pt")
        results = [
            results[c] for c in he2rna.separate(results, "merged" not in code_of(folder / run.name))
        ]
        r = he2rna.mean_of_values(np.array([he2rna.mean_of_values(e["r"]) for e in results]))
        seconds = (
            None
            if name in SAME_MODELS
            else sum(load_checkpoint(p, "cpu")["note"]["seconds"] for p in saved)
        )
        return (
            dict(
                R=float(r),
                **{c.upper(): int(sum(e[c].sum() for e in results)) for c in ("hs", "bh")},
            ),
            seconds,
            status,
        )

    def msi_job(name, seed):
        run = argparse.Namespace(
            **{
                **vars(training(name, seed)),
                **AUDIT_MSI,
                "study": str(folder.parents[1]),
                "name": f"audit/msi-{name}-seed{seed}",
                "scale": None,
            }
        )
        status, own = msi(run), folder.parent / run.name
        rows = read_rows(own / "results.csv")[1]
        seconds = sum(e["seconds"] for e in read_log(own))
        return (
            {
                f"AUC {arm}": float(np.mean([number(row[5]) for row in rows if row[2] == arm]))
                for arm in run.arms
            },
            seconds,
            status,
        )

    for name in asked["train"]:
        settle_choices(training(name, o.seed))  # what can't be is said before hours of others
    jobs = {
        c: {
            (c, name, seed): lambda job=job, name=name, seed=seed: job(name, seed)
            for name in ("default", *asked[c])
            for seed in seeds
            if asked[c]
        }
        for c, job in (("train", train_job), ("msi", msi_job))
    }
    settings = {
        k: getattr(o, k)
        for k in (
            "epochs",
            "batch",
            "patience",
            "lr",
            "ks",
            "hidden",
            "dropout",
            "folds",
            "folds_by",
            "valid",
            "null",
            "null_models",
            "project",
            "types",
            "encoder",
            "features",
            "weights",
            "colour",
            "tile_um",
            "min_tissue",
            "max_tiles",
            "precision",
        )
    }
    what = (
        f"`python he2rna.py audit`{'' if demo else ' COHORT'}: at most {o.epochs} epochs, batches of {o.batch}. "
        f"{AUDIT_NOTE} R: mean over the genes of a cancer, then over cancers; HS, BH: significant genes, of all "
        "cancers. The seed draws folds (but the authors'), first weights, dropout and k. A choice of genes, folds or ways to "
        f"judge changes what R is of, too. msi: {AUDIT_MSI['splits']} splits for each seed, {AUDIT_MSI['ratios'][0]} of the "
        "patients in hospital A."
        + f" On the simulated cohort folds also lowers the share that chooses the epoch, from {DEMO_VALID} to "
        f"{stats.AUTHORS_VALID}." * demo
    )
    status = 0
    for c, wrong in (("train", ()), ("msi", InputError)):
        try:
            status |= run_audit(folder, jobs[c], texts, settings, what)
        except wrong as e:  # such as too few MSI-H
            print(f"without the choices of msi: {e}")
            status = 1
    print(f"\nreport: {folder / 'audit.md'}   ({clock(time.time() - start)})")
    return status


def options(parser):
    a = cohort_options(parser, AUDIT_EPOCHS)
    every = tuple(dict.fromkeys(name for _, name, *_ in CHOICES))
    a(
        "--code",
        type=chosen_of(every),
        action="extend",
        default=[],
        metavar="A,B",
        help="these choices alone (default all: "
        f"{', '.join(every)}; genes and epochs are of train and of msi)",
    )
    a(
        "--seeds",
        type=int,
        default=AUDIT_SEEDS,
        help=f"runs of each, --seed and those after it (default {AUDIT_SEEDS})",
    )
