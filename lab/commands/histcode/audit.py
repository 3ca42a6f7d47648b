"""python histcode.py audit [COHORT]: what each choice is worth, turned alone.

The default run once for each seed, and again on another number of threads; then each choice of
pretrain, diagnose and expression that --code can turn, on the same seeds. Without a cohort on a
simulated one, demo-pairs/, in which each patient has a tumour and a normal slide, with small
budgets: an hour on two quiet cores. Writes COHORT/runs/histcode-audit/: audit.md, audit.csv and the
runs. An interrupted audit goes on where it stopped.
"""

import os
import shlex
from pathlib import Path

import numpy as np

import stats
from lab.audit.choices import switches
from lab.audit.compare import NOTE, UNTURNED, audit_options, choices_asked, run_audit
from lab.cohort.samples import read_samples
from lab.commands.histcode.demo import PAIRS, draw_pairs
from lab.commands.options import natural
from lab.files import InputError, digest, fingerprint, load_json, number, read_rows, save_json
from lab.histcode.choices import CHOICES, TURNED
from lab.histcode.expression_report import ALPHA
from lab.runs import read_log

AUDIT = {  # options of the runs without a cohort: small budgets [ours]
    "pretrain": "--weights random --tile-px 64 --view-px 48 --batch 32 --epochs 4 "
    "--tiles-per-slide 3 --precision float32",
    "probe": "--tiles-per-slide 10",
    "diagnose": "--weights random --precision float32 --epochs 10 --hidden 64",
    "expression": "--weights random --precision float32 --epochs 10 --folds 5 --hidden 64 --genes "
    "CD3D,CD3E,CD3G,CD247,CD19,MKI67,TOP2A,CCNB1,COL1A1,COL3A1,FAP,ACTA2,ZG16,KRT20,ACTB,GAPDH",
}
UNSEEN = {  # what that cohort cannot show [ours]
    "pretrain": {
        "tiles": "it takes too long",
        "batch": "batches are smaller",
        "batch-from": "an epoch has too few tiles of a slide",
        "bank-size": "the bank is smaller",
    },
    "expression": {"epochs": "it takes too long"},
}
WHAT = (
    "`python histcode.py audit`. {note} pretrain: R2 of the cells in a tile from the frozen "
    "features (`probe`, the same tiles for all), and spread of the embeddings in the last epoch. "
    "diagnose: accuracy and AUC pooled over the tested slides. expression: R, mean over genes; BH: "
    "significant genes. Colour and tissue are turned for pretrain alone: what they do to diagnose "
    "and expression is not measured."
)


def options(parser):
    parser.set_defaults(within="")
    parser.add_argument("cohort", help="a cohort folder: slides/ and samples.csv", nargs="?")
    a = parser.add_argument
    every = tuple(dict.fromkeys(name for command in TURNED for name in switches(CHOICES, command)))
    audit_options(a, every)
    a("--seed", type=natural, default=0, help="the first of them (default 0)")
    a("--device", default="auto", help="auto (default: the GPU when there is one), cpu, cuda ...")
    for command, words in AUDIT.items():
        a(
            f"--{command}",
            metavar="'OPTIONS'",
            help=f"of each {command}, in quotes after a = (default none; without a cohort {words})",
        )


def run(o):
    demo, cohort = o.cohort is None, Path(o.cohort or PAIRS)
    if demo:
        draw_pairs()
    samples = read_samples(cohort)
    words = {command: words_of(o, command, demo) for command in AUDIT}
    texts = {command: switches(CHOICES, command) for command in TURNED}
    asked = choices_asked(texts, o.code, cannot_turn(o, cohort, texts, demo))
    folder = cohort / "runs" / "histcode-audit"

    def measure(command, name, seed):
        home = beside(cohort, folder / "tissue") if name == "tissue" else cohort
        turned = ["--code", name] if name not in UNTURNED else []
        own = ["--seed", str(seed), "--name", f"{command}-{name}-seed{seed}", *turned]
        run = o.parse([command, str(home), "--device", o.device, *words[command], *own])
        for option in TURNED[command].get(name, ()):  # what a choice decides is not the default's
            setattr(run, option, None)
        if command == "pretrain":
            run.patience = 0  # what collapses is measured too
        run.within = folder.name
        status = run.function(run)
        out = home / "runs" / run.within / run.name
        if command == "pretrain":
            status |= probe(o, cohort, out, seed, words["probe"])
        return MEASURES[command](run, out), status

    said = "".join(f" {c}: `{' '.join(own)}`." for c, own in words.items() if own)
    tables = sorted(path for path in cohort.glob("expression*") if path.is_file())
    settings = {command: " ".join(own) for command, own in words.items()}
    settings["data"] = digest(samples, [[p.name, fingerprint(p)] for p in tables])
    seeds = range(o.seed, o.seed + o.seeds)
    return run_audit(folder, measure, asked, texts, seeds, settings, WHAT.format(note=NOTE) + said)


def words_of(o, command, demo):
    """The options of a command, from the words in quotes."""
    text = getattr(o, command)
    if text is None:
        text = AUDIT[command] if demo else ""
    try:
        return shlex.split(text)
    except ValueError as e:
        raise InputError(f"--{command} {text}: {str(e).lower()}") from None


def cannot_turn(o, cohort, texts, demo):
    """[(command, choices, why they cannot be turned here)]"""
    left = []
    for command, unseen in UNSEEN.items():
        if demo and getattr(o, command) is None:
            left += [(command, [name], f"{why} here") for name, why in unseen.items()]
    if not any((cohort / folder).is_dir() for folder in ("points", "spots")):
        why = f"{cohort} has neither points/ nor spots/ to probe features with"
        left.append(("pretrain", texts["pretrain"], why))
    return left


def beside(cohort, folder):
    """A cohort of links to all of `cohort` but runs and what is made of its slides.

    Its tiles have the same settings, so that the choice `tissue` alone differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in cohort.iterdir():
        link = folder / path.name
        if path.name not in ("runs", "tiles", "features", "supertiles") and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(path.resolve(), folder.resolve()))  # both may be moved
    if not (folder / "tiles" / "settings.json").is_file():
        save_json(folder / "tiles" / "settings.json", load_json(cohort / "tiles" / "settings.json"))
    return folder


def probe(o, cohort, out, seed, words):
    """Probe the features of a pretraining into its probe.csv. -> exit status"""
    encoder = ["probe", str(cohort), str(out / f"{out.name}.pt"), "--csv", str(out / "probe.csv")]
    run = o.parse([*encoder, "--device", o.device, "--seed", str(seed), *words])
    return run.function(run)


def measure_pretrain(run, out):
    _, rows = read_rows(out / "probe.csv")
    spreads = [entry["spread"] for entry in read_log(out) if "spread" in entry]
    return {"R2 of the cells": number(rows[0][3]), "spread": spreads[-1]}


def measure_diagnose(run, out):
    """Of the run's own pooling, in the first repeat."""
    header, rows = read_rows(out / "predictions.csv")
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    rows = [row for row in rows if (row["repeat"], row["pooling"]) == ("0", run.pooling)]
    column = next(name for name in header if name.startswith("p_"))  # of the positive label
    positive = np.array([f"p_{row['label']}" == column for row in rows])
    p = np.array([float(row[column]) for row in rows])
    hits = [row["label"] == row["predicted"] for row in rows]
    return {"accuracy": float(np.mean(hits)), "AUC": stats.roc_auc(positive, p)}


def measure_expression(run, out):
    header, rows = read_rows(out / "genes.csv")
    r, bh = (np.array([number(row[header.index(name)]) for row in rows]) for name in ("R", "bh"))
    return {"R": float(np.nanmean(r)), "BH": int((bh < ALPHA).sum())}


MEASURES = {
    "pretrain": measure_pretrain,
    "diagnose": measure_diagnose,
    "expression": measure_expression,
}
