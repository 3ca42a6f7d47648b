"""lab.commands.he2rna.msi"""

import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from he2rna import hospital_a
from lab.audit.choices import add_choices, chosen_of, flipped
from lab.commands.options import report_failures
from lab.commands.slide_options import add_options
from lab.devices import pick_device
from lab.files import InputError, digest, number, read_rows, save_csv
from lab.he2rna.choices import CHOICES
from lab.he2rna.msi import compare_arms
from lab.he2rna.msi_report import MSI_ARMS, write_msi_report
from lab.he2rna.msi_study import MSI_SHARES, read_study, shares_of
from lab.he2rna.options import TYPES, fractions
from lab.he2rna.training import VERSION
from lab.processes import of_all
from lab.progress import clock, seldom
from lab.runs import claim_folder
from lab.show.plots import need_matplotlib

MSI_FOLDS = 3  # in A and in B                            [HE2RNA Methods, MSI status]


MSI_REPEATS = 10  # of the cross-validation in B             [HE2RNA Results, MSI status prediction]


MSI_SPLITS = 50  # of the patients into A and B             [HE2RNA Methods, MSI status]


def run(o):
    """What the transcriptomic representation of hospital A is worth for predicting MSI from few patients in hospital B."""
    o.code = sorted(flipped(CHOICES, "msi", o.code, o.follow))
    for name, value, low in (
        ("--splits", o.splits, 1),
        ("--repeats", o.repeats, 1),
        ("--folds", o.folds, 2),
    ):
        if value < low:
            raise InputError(f"{name} {value}: must be at least {low}")
    need_matplotlib()
    device, start = pick_device(o.device), time.time()
    d = read_study(o)
    ratios, in_cohort = shares_of(o, d), Path(o.study).is_dir()
    folder = (
        Path(o.study) / "runs" / (o.name or "msi")
        if in_cohort
        else Path(o.name or Path(o.study).stem + "-msi")
    )
    columns = (d[k].tolist() for k in ("patients", "projects", "high", "has_y"))
    hospital = [] if d["hospital"] is None else d["hospital"].tolist()
    config = dict(
        command="msi",
        version=VERSION,
        code=o.code,
        repeats=o.repeats,
        folds=o.folds,
        seed=o.seed,
        features=d["features"],
        data=digest(d["x"], d["y"], *columns, hospital),
    )
    config = claim_folder(
        folder,
        config,
        "results.csv",
        o.share,
        study=str(Path(o.study).resolve()),
        device=str(device),
        processes=o.share[1],
    )
    path, results = folder / "results.csv", {}
    for row in read_rows(path)[1] if path.is_file() else []:
        if (
            len(row) != 8
            or not row[0].isdigit()
            or row[2] not in MSI_ARMS
            or np.isnan(number(row[5]))
        ):
            raise InputError(
                f"{path}: {','.join(row)} is no row of ours: delete the file to begin again"
            )
        results.setdefault((int(row[0]), row[1], row[2]), []).append(row)
    whole = o.repeats * o.folds
    jobs = [
        (s, ratio, [arm for arm in o.arms if len(results.get((s, ratio[0], arm), ())) != whole])
        for s in range(o.splits)
        for ratio in ratios
    ]
    jobs = [job for job in jobs if job[2]]
    names, first, who = np.unique(d["patients"], return_index=True, return_inverse=True)
    print(
        f"{o.splits} splits x {len(ratios)} ratios ({len(jobs)} to do), {o.repeats} x {o.folds} folds, arms "
        f"{', '.join(o.arms)}, on {device}"
        + (f"; the authors' {', '.join(o.code)}" if o.code else ""),
        flush=True,
    )

    def study(s, ratio, missing):
        began, (name, share) = time.time(), ratio
        in_a = (
            d["hospital"] == "A"
            if share is None
            else hospital_a(d["high"][first], share, np.random.default_rng([o.seed, s]))[who]
        )
        key = (s, *(share.as_integer_ratio() if share else (0, 1)))
        aucs, note = compare_arms(d, in_a, missing, o, key, device)
        in_b = np.unique(d["patients"][~in_a], return_index=True)[1]
        return (
            s,
            name,
            aucs,
            note,
            (len(in_b), int(d["high"][~in_a][in_b].sum())),
            round(time.time() - began, 1),
        )

    def studies():  # each process one; the first writes them down
        for i in range(0, len(jobs), o.share[1]):
            mine = jobs[i + o.share[0] :][:1]
            yield from (done for done in of_all(study(*mine[0]) if mine else None) if done)

    due = seldom()
    for i, (s, name, aucs, note, sizes, seconds) in enumerate(studies()):
        if o.share[0]:
            continue
        for arm, auc in aucs.items():
            results[s, name, arm] = [
                [s, name, arm, r, f, f"{auc[r, f]:.6f}", *sizes] for r, f in np.ndindex(*auc.shape)
            ]
        order = sorted(
            results,
            key=lambda k: (k[0], Fraction(k[1]) if "/" in k[1] else 0, list(MSI_ARMS).index(k[2])),
        )
        save_csv(
            path,
            ("split", "ratio", "arm", "repeat", "fold", "auc", "patients_b", "msi_h_b"),
            (row for k in order for row in results[k]),
        )
        with open(folder / "log.jsonl", "a") as f:
            mean = {arm: round(float(auc.mean()), 4) for arm, auc in aucs.items()}
            f.write(
                json.dumps(
                    dict(
                        split=s,
                        ratio=name,
                        patients_b=sizes[0],
                        msi_h_b=sizes[1],
                        **note,
                        **mean,
                        seconds=seconds,
                    )
                )
                + "\n"
            )
        if not due(i == len(jobs) - 1):
            continue
        left = (time.time() - start) / (i + 1) * (len(jobs) - 1 - i)
        print(
            f"split {s:2d}  {name} in A, {sizes[0]} patients ({sizes[1]} MSI-H) in B  AUC "
            + "  ".join(f"{arm} {v:.3f}" for arm, v in mean.items())
            + f"  {clock(left)} left",
            flush=True,
        )
    if o.share[0]:
        return 0
    write_msi_report(
        folder,
        config,
        d,
        {k: np.array([float(row[5]) for row in v]).mean() for k, v in results.items()},
        {k[1]: v[0][6:8] for k, v in results.items()},
    )
    return report_failures(d["failed"], len(d["x"]) + len(d["failed"]), folder)


def options(parser):
    p, a = parser, parser.add_argument
    a(
        "study",
        metavar="COHORT|FILE.npz",
        help="a cohort whose samples.csv has a column msi, or a file of arrays features "
        "(n, D), expression (n, G), genes, patients, msi; a column or array hospital (A, B) divides them, else they are drawn",
    )
    a = p.add_argument_group("study").add_argument
    a(
        "--name",
        help="of the run in COHORT/runs (default msi); with FILE.npz the folder to write (default FILE-msi, here); "
        "an interrupted run goes on, and more --splits, --ratios or --arms are added to it",
    )
    a(
        "--splits",
        type=int,
        default=MSI_SPLITS,
        help=f"divisions of the patients into A and B (default {MSI_SPLITS}, the "
        "paper's; 10 show the curve)",
    )
    a(
        "--ratios",
        type=fractions,
        metavar="1/2,..",
        help="shares of the patients in A (default "
        f"{','.join(map(str, MSI_SHARES))}, those that leave B enough MSI-H)",
    )
    a(
        "--arms",
        type=chosen_of(MSI_ARMS),
        default=tuple(MSI_ARMS),
        metavar="A,B",
        help="what to compare (default all: "
        f"{', '.join(MSI_ARMS)}); the autoencoders take most of the time",
    )
    a(
        "--folds",
        type=int,
        default=MSI_FOLDS,
        help=f"in A and in B (default {MSI_FOLDS}, the paper's)",
    )
    a(
        "--repeats",
        type=int,
        default=MSI_REPEATS,
        help=f"of the cross-validation in B (default {MSI_REPEATS}, the paper's)",
    )
    add_choices(a, CHOICES, "msi")
    a(
        "--scale",
        choices=("log", "linear"),
        help="of FILE.npz's expression (default: linear where it is never negative and "
        "reaches 30, which no logarithm does)",
    )
    a("--types", metavar="TYPE,..", help=TYPES)
    a(
        "--project",
        metavar="P,..",
        help="these projects alone, pooled (the paper: COAD; the authors' code: COAD,READ)",
    )
    add_options(p)
