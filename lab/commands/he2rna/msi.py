"""python he2rna.py msi COHORT|FILE.npz: MSI-H from few patients, and what a transcriptome is worth.

The patients are divided between two hospitals. A has expression and learns a representation of
slides from it; B has MSI status and learns to tell MSI-H, from that representation, from the mean
feature itself or from an autoencoder's. [HE2RNA Methods, MSI status; Fig. 5] A division of 441
patients with all arms takes one to two minutes on two cores; torchrun's processes share the
divisions. Writes COHORT/runs/NAME/, or FILE-msi/ here: results.csv, an AUC for each division, share
of the patients, arm and fold; table.csv, report.md, shares.png and arms.png; log.jsonl. An
interrupted run goes on, and more splits, ratios or arms are added to it.
"""

import json
import time
from pathlib import Path

import numpy as np

import he2rna
from lab.audit.choices import add_choices, chosen_of, flipped
from lab.cohort.features import features_of
from lab.commands.expression_options import expression_options
from lab.commands.he2rna.options import TYPES, count, fractions, listed
from lab.commands.slide_options import add_options, refuse_slide_options
from lab.devices import pick_device
from lab.files import InputError, digest, read_rows, save_csv
from lab.he2rna.choices import CHOICES
from lab.he2rna.msi import compare_arms
from lab.he2rna.msi_report import as_share, write_msi_report
from lab.he2rna.msi_study import MSI_SHARES, read_study, shares_of
from lab.processes import of_all
from lab.progress import clock, report_failures, seldom
from lab.provenance import marked, of_data
from lab.runs import claim_folder
from lab.show.plots import need_matplotlib

VERSION = 5  # of results.csv; of 4 the autoencoders' 256 was a ReLU [ours]
HEADER = ("split", "ratio", "arm", "repeat", "fold", "auc", "patients_b", "msi_h_b")


def options(parser):
    parser.add_argument(
        "study",
        metavar="COHORT|FILE.npz",
        help="a cohort whose samples.csv has a column msi, or a file of arrays features (n, D), "
        "expression (n, G), genes, patients, msi; a column or array hospital (A or B) divides "
        "them, else they are drawn",
    )
    a = parser.add_argument_group("study").add_argument
    a("--name", help="of the run in COHORT/runs (default msi); with FILE.npz the folder to write")
    a(
        "--splits",
        type=count,
        default=he2rna.MSI_SPLITS,
        help=f"divisions of the patients (default {he2rna.MSI_SPLITS}, the paper's; 10 show the "
        "curve)",
    )
    a(
        "--ratios",
        type=fractions,
        metavar="1/2,..",
        help="shares of the patients in A (default "
        f"{listed(MSI_SHARES)}, those that leave B enough MSI-H)",
    )
    a(
        "--arms",
        type=chosen_of(he2rna.MSI_ARMS),
        default=tuple(he2rna.MSI_ARMS),
        metavar="A,B",
        help=f"what to compare (default all: {', '.join(he2rna.MSI_ARMS)}); the autoencoders take "
        "most of the time",
    )
    a(
        "--folds",
        type=count,
        default=he2rna.MSI_FOLDS,
        help=f"in A and in B (default {he2rna.MSI_FOLDS}, the paper's)",
    )
    a(
        "--repeats",
        type=count,
        default=he2rna.MSI_REPEATS,
        help=f"of the cross-validation in B (default {he2rna.MSI_REPEATS}, the paper's)",
    )
    add_choices(a, CHOICES, "msi")
    a("--types", metavar="TYPE,..", help=TYPES)
    a(
        "--project",
        metavar="P,..",
        help="these projects alone, pooled (the paper: COAD; the authors' code: COAD,READ)",
    )
    expression_options(a)
    add_options(parser)


def run(o):
    named = o.code
    o.code = sorted(flipped(CHOICES, "msi", named, o.follow))
    if o.folds < 2:
        raise InputError(f"--folds {o.folds}: must be at least 2")
    if Path(o.study).is_file():
        refuse_slide_options(o, o.study, "types", "project")
        if "few-tiles" in named:
            raise InputError(f"--code few-tiles: {o.study} holds mean features, and no tiles")
        o.code = [name for name in o.code if name != "few-tiles"]
    need_matplotlib()
    device = pick_device(o.device)
    study = read_study(o)
    shares = shares_of(o, study)
    folder, config = claim(o, study, device)
    results = read_results(folder / "results.csv")
    jobs = to_do(o, shares, results)
    print(
        f"{o.splits} splits x {len(shares)} ratios ({len(jobs)} to do), {o.repeats} x {o.folds} "
        f"folds, arms {', '.join(o.arms)}, on {device}",
        flush=True,
    )
    due, start = seldom(), time.monotonic()
    for i, (split, ratio, aucs, note) in enumerate(divisions(o, study, shares, jobs, device)):
        if o.share[0]:
            continue  # the first process writes for all
        for arm, auc in aucs.items():
            results[split, ratio, arm] = rows_of(split, ratio, arm, auc, note)
        save_results(folder, results, config["provenance"], split, ratio, aucs, note)
        if due(i == len(jobs) - 1):
            left = (time.monotonic() - start) / (i + 1) * (len(jobs) - 1 - i)
            means = "  ".join(f"{arm} {auc.mean():.3f}" for arm, auc in aucs.items())
            print(f"split {split:2d}  {ratio} in A  AUC {means}  {clock(left)} left", flush=True)
    if o.share[0]:
        return 0
    write_msi_report(folder, config, study, results)
    return report_failures(study.failed, len(study.x) + len(study.failed), folder)


def claim(o, study, device):
    """The run's folder, and its settings."""
    path = Path(o.study)
    folder = Path(o.name or f"{path.stem}-msi")
    if path.is_dir():
        folder = path / "runs" / (o.name or "msi")
    settings = {
        "command": "msi",
        "version": VERSION,
        "code": o.code,
        "repeats": o.repeats,
        "folds": o.folds,
        "seed": o.seed,
        "features": study.features,
        "data": digest(
            study.x, study.y, study.high, study.patients, study.projects, study.hospital
        ),
    }
    more = {"study": str(path.resolve()), "device": str(device), "processes": o.share[1]}
    words = of_data(path, features_of(o)) if path.is_dir() else []
    more |= {"scale": study.scale, "unit": o.unit, "provenance": words}
    return folder, claim_folder(folder, settings, "results.csv", o.share, **more)


def read_results(path):
    """{(split, ratio, arm): its rows of results.csv}."""
    results = {}
    for row in read_rows(path)[1] if path.is_file() else []:
        try:
            split, ratio, arm, *_ = row
            results.setdefault((int(split), ratio, arm), []).append(row[: len(HEADER)])
        except ValueError:
            raise InputError(
                f"{path}: {','.join(row)} is no row of ours: delete the file to begin again"
            ) from None
    return results


def to_do(o, shares, results):
    """[(split, ratio, the arms that it lacks)]"""
    jobs = []
    for split in range(o.splits):
        for ratio in shares:
            done = [results.get((split, ratio, arm), ()) for arm in o.arms]
            whole = [len(rows) == o.repeats * o.folds for rows in done]
            missing = [arm for arm, is_whole in zip(o.arms, whole, strict=True) if not is_whole]
            if missing:
                jobs.append((split, ratio, missing))
    return jobs


def divisions(o, study, shares, jobs, device):
    """Yields (split, ratio, {arm: AUC}, note); each process makes its part of the jobs."""
    rank, world = o.share
    for i in range(0, len(jobs), world):
        done = None
        if i + rank < len(jobs):
            split, ratio, arms = jobs[i + rank]
            done = split, ratio, *divide(o, study, split, shares[ratio], arms, device)
        yield from (each for each in of_all(done) if each)


def divide(o, study, split, share, arms, device):
    """One division: the draw of the hospitals, and the arms on it."""
    start = time.monotonic()
    if share is None:
        in_a, key = ~study.in_b, (split, 0, 1)
    else:
        _, first, who = np.unique(study.patients, return_index=True, return_inverse=True)
        rng = np.random.default_rng([o.seed, split])
        in_a = drawn_a(study.high[first], share, rng, o)[who]
        key = (split, *share.as_integer_ratio())
    aucs, note = compare_arms(study, in_a, arms, o, key, device)
    note["seconds"] = round(time.monotonic() - start, 1)
    return aucs, note


def drawn_a(high, share, rng, o):
    """`he2rna.hospital_a`, with even shares of MSI-H, or blind to it until B has enough of each."""
    if "draw" not in o.code:
        return he2rna.hospital_a(high, share, rng)
    while True:
        in_a = he2rna.hospital_a(np.zeros(len(high), bool), share, rng)
        n_high = np.count_nonzero(high & ~in_a)
        if o.folds <= n_high <= np.count_nonzero(~in_a) - o.folds:
            return in_a


def rows_of(split, ratio, arm, auc, note):
    """The rows of results.csv of one arm on one division: auc (repeats, folds)."""
    ends = note["patients_b"], note["msi_h_b"]
    places = np.ndindex(*auc.shape)
    return [[split, ratio, arm, *place, f"{auc[place]:.6f}", *ends] for place in places]


def save_results(folder, results, words, split, ratio, aucs, note):
    """results.csv anew, in order, and a line of log.jsonl."""
    arms = list(he2rna.MSI_ARMS)
    order = sorted(results, key=lambda key: (key[0], as_share(key[1]), arms.index(key[2])))
    rows = [row for key in order for row in results[key]]
    save_csv(folder / "results.csv", *marked(HEADER, rows, words))
    means = {arm: round(float(auc.mean()), 4) for arm, auc in aucs.items()}
    with open(folder / "log.jsonl", "a") as f:
        f.write(json.dumps({"split": split, "ratio": ratio, **note, **means}) + "\n")
