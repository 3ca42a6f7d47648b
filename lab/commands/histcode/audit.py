"""lab.commands.histcode.audit"""

import os
import shlex
import time
from pathlib import Path

import numpy as np

import stats
from lab.audit.choices import chosen_of, switches
from lab.audit.compare import run_audit
from lab.cohort.samples import read_samples
from lab.commands.he2rna.audit import AUDIT_NOTE
from lab.histcode.expression_report import ALPHA
from lab.commands.histcode.probe import run as probe
from lab.commands.options import natural
from lab.files import InputError, digest, fingerprint, load_json, number, read_rows, save_json
from lab.histcode.choices import CHOICES, TURNED
from lab.progress import clock
from lab.runs import read_log
from lab.simulation.cohort import simulate_cohort

AUDIT = dict(
    pretrain="--weights random --tile-px 64 --view-px 48 --batch 32 --epochs 4 --tiles-per-slide 3 "
    "--momentum-encoder .99 --precision float32",
    probe="--tiles-per-slide 10",
    diagnose="--weights random --precision float32 --epochs 10 --hidden 64",
    expression="--weights random --precision float32 --epochs 10 --folds 5 --hidden 64 --genes CD3D,CD3E,CD3G,"
    "CD247,CD19,MKI67,TOP2A,CCNB1,COL1A1,COL3A1,FAP,ACTA2,ZG16,KRT20,ACTB,GAPDH",
)
#                            # options of audit's runs without a cohort, small budgets [ours]


AUDIT_PATIENTS, AUDIT_SEEDS = 40, 3  # of that cohort; runs of each choice  [ours]


UNSEEN = {
    "pretrain": dict(tiles="it takes too long", batch="batches are smaller")
    | {"bank-size": "the bank is smaller"},
    "expression": dict(epochs="it takes too long"),
}  # not measured on audit's simulated cohort [ours]


def beside(cohort, folder):
    """A cohort of links to what `cohort` holds but runs and what is made of its slides; tiles of the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in cohort.iterdir():
        link = folder / path.name
        if path.name not in ("runs", "tiles", "features", "supertiles") and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(
                os.path.relpath(path.resolve(), folder.resolve())
            )  # a cohort may be moved
    if not (folder / "tiles" / "settings.json").is_file():
        save_json(folder / "tiles" / "settings.json", load_json(cohort / "tiles" / "settings.json"))
    return folder


def measured(run, own, cohort, options):
    """{measure: value} of a finished run in the folder `own`, and the exit status; of a pretraining by a probe."""
    if run.verb == "pretrain":
        status = probe(
            run.parse(
                [
                    "probe",
                    str(cohort),
                    str(own / f"{run.name}.pt"),
                    "--device",
                    run.device,
                    "--workers",
                    str(run.workers),
                    "--seed",
                    str(run.seed),
                    "--csv",
                    str(own / "probe.csv"),
                    *options,
                ]
            )
        )
        spreads = [e["spread"] for e in read_log(own) if "spread" in e]
        if not spreads:
            raise InputError(f"{own}/log.jsonl has no epoch: delete {own} to train it again")
        r2 = number(read_rows(own / "probe.csv")[1][0][3])
        return {"R2 of the cells": r2, "spread": spreads[-1]}, status
    if run.verb == "diagnose":
        header, rows = read_rows(own / "predictions.csv")
        rows = [dict(zip(header, row)) for row in rows]
        rows = [r for r in rows if (r["repeat"], r["pooling"]) == ("0", run.pooling)]
        positive = header[-2].removeprefix("p_")
        y, p = (
            np.array([r["label"] == positive for r in rows]),
            np.array([float(r[header[-2]]) for r in rows]),
        )
        return {
            "accuracy": float(np.mean([r["label"] == r["predicted"] for r in rows])),
            "AUC": stats.roc_auc(y, p),
        }, 0
    header, rows = read_rows(own / "genes.csv")
    r, bh = (np.array([number(row[header.index(k)]) for row in rows]) for k in ("R", "bh"))
    return {"R": float(np.nanmean(r)), "BH": int((bh < ALPHA).sum())}, 0


def words_of(command, text):
    """The options in quotes of a command of audit."""
    try:
        return shlex.split(text)
    except ValueError as e:
        raise InputError(f"--{command} {text}: {str(e).lower()}") from None


def run(o):
    """The default once per seed, then each choice of pretrain, diagnose and expression alone, same seeds
    -> COHORT/runs/histcode-audit/audit.md. Without a cohort: on a simulated one, with small budgets.

    That one is demo-pairs/: of demo/'s patients only 16 have a tumour and a normal slide, and its tiles may be HE2RNA's.
    In demo-pairs/ each of the patients has both slides. [ours]
    """
    start, demo, cohort = time.time(), o.cohort is None, Path(o.cohort or "demo-pairs")
    if o.seeds < 1:
        raise InputError(f"--seeds {o.seeds}: must be at least 1")
    if demo and not (cohort / "samples.csv").is_file():
        print(f"no cohort given: drawing a SIMULATED one into {cohort}/")
        simulate_cohort(cohort, AUDIT_PATIENTS, normal_in=1)
    samples, folder = read_samples(cohort), cohort / "runs" / "histcode-audit"
    more = {
        c: words_of(c, getattr(o, c) if getattr(o, c) is not None else AUDIT[c] if demo else "")
        for c in AUDIT
    }
    texts, seeds = (
        {c: switches(CHOICES, c) for c in AUDIT if c != "probe"},
        range(o.seed, o.seed + o.seeds),
    )
    asked = {c: [name for name in texts[c] if name in (o.code or texts[c])] for c in texts}
    left = [
        (c, name, f"{UNSEEN[c][name]} here")
        for c in UNSEEN
        if demo and getattr(o, c) is None
        for name in UNSEEN[c]
    ]
    if not any((cohort / d).is_dir() for d in ("points", "spots")):
        why = f"{cohort} has neither points/ nor spots/ to probe features with"
        left += [("pretrain", name, why) for name in texts["pretrain"]]
    left = [(c, name, why) for c, name, why in left if name in asked[c]]
    for c, name, why in left:
        asked[c] = [n for n in asked[c] if n != name]
        print(f"without {c}'s {name}: {why}")
    if not any(asked.values()):
        raise InputError(f"--code {','.join(o.code)}: nothing is left to turn: {left[0][2]}")

    def settled(c, home, name, seed):
        run = o.parse(
            [
                c,
                str(home),
                "--device",
                o.device,
                *more[c],
                "--seed",
                str(seed),
                "--name",
                f"{c}-{name}-seed{seed}",
                *["--code", name] * (name != "default"),
            ]
        )
        for k in TURNED[c].get(name, ()):  # what a switch decides is not the default's
            setattr(run, k, None)
        run.within = folder.name
        return run

    def job(c, name, seed):
        home = beside(cohort, folder / "tissue") if name == "tissue" else cohort
        run, tick = settled(c, home, name, seed), time.time()
        own = home / "runs" / run.within / run.name
        done = load_json(own / "audit.json") or {}  # its last file
        if list(map(type, map(done.get, ("measures", "seconds", "status")))) != [dict, float, int]:
            status = run.function(run)
            measures, more_status = measured(run, own, cohort, more["probe"])
            done = dict(measures=measures, seconds=time.time() - tick, status=status | more_status)
            save_json(own / "audit.json", done)
        return done["measures"], done["seconds"], done["status"]

    settings = dict(
        **{c: " ".join(v) for c, v in more.items()},
        data=digest(
            samples,
            [[p.name, fingerprint(p)] for p in sorted(cohort.glob("expression*")) if p.is_file()],
        ),
    )
    what = (
        f"`python histcode.py audit`{'' if demo else ' COHORT'}. {AUDIT_NOTE} pretrain: R2 of the cells in a tile from "
        "the frozen features (`probe`, the same tiles for all), and spread of the embeddings in the last epoch. diagnose: "
        "accuracy and AUC pooled over the tested slides. "
        "expression: R, mean over genes; BH: significant genes. Colour and tissue are turned for pretrain alone: what they "
        "do to diagnose and expression is not measured."
        + "".join(f" {c}: `{' '.join(v)}`." for c, v in more.items() if v)
    )
    status, why = 0, {}
    todo = [(c, name) for c in texts if asked[c] for name in ("default", *asked[c])]
    for i, (c, name) in enumerate(todo, 1):
        if f"{c}'s default" in why:  # its choices can't be compared with it
            continue
        jobs = {
            (c, name, seed): lambda c=c, name=name, seed=seed: job(c, name, seed) for seed in seeds
        }
        try:
            status |= run_audit(folder, jobs, texts, settings, what, (len(todo) - i) * len(seeds))
        except InputError as e:
            why[f"{c}'s {name}"] = str(e)
            print(f"without {c}'s {name}: {e}")
    if not (folder / "audit.md").is_file():
        raise InputError(
            "nothing could be measured: "
            + "; ".join(f"{name}: {text}" for name, text in why.items())
        )
    print(f"\nreport: {folder / 'audit.md'}   ({clock(time.time() - start)})")
    return status or int(bool(why))


def options(parser):
    parser.set_defaults(within="")
    parser.add_argument("cohort", help="a cohort folder: slides/ and samples.csv", nargs="?")
    a = parser.add_argument
    every = tuple(dict.fromkeys(name for command in TURNED for name in switches(CHOICES, command)))
    a(
        "--code",
        type=chosen_of(every),
        action="extend",
        default=[],
        metavar="A,B",
        help=f"these choices alone (default all: {', '.join(every)})",
    )
    a(
        "--seeds",
        type=int,
        default=AUDIT_SEEDS,
        help=f"runs of each, --seed and those after it (default {AUDIT_SEEDS})",
    )
    a("--seed", type=natural, default=0, help="the first of them (default 0)")
    a(
        "--device",
        default="auto",
        help="auto (default: the GPU when there is one), cpu, cuda, cuda:1 ...",
    )
    for command, options in AUDIT.items():
        a(
            f"--{command}",
            metavar="'OPTIONS'",
            help=f"of each {command}, in quotes after a = (default none; without a "
            f"cohort {options})",
        )
