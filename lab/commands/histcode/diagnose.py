"""lab.commands.histcode.diagnose"""

import argparse
import math
import time
from pathlib import Path

import numpy as np

import histcode
import stats
from lab.audit.choices import add_choices
from lab.audit.ledger import encoder_saw, ledger_lines, saw
from lab.cohort.features import features_of
from lab.commands.options import add_options, report_failures
from lab.devices import pick_device
from lab.files import InputError, few, save_csv, save_text
from lab.histcode.bags import bags_of_cohort, bags_of_table, left_out_lines
from lab.histcode.choices import CHOICES, settle_choices, turned_lines
from lab.histcode.figures import figures_of, probabilities, with_interval
from lab.histcode.heads import apply_heads
from lab.histcode.options import DIAGNOSIS, pooling_options, settle_training
from lab.histcode.runs import claim_run
from lab.histcode.splits import folds_of
from lab.histcode.training import train_pooling
from lab.progress import clock, counted, say_left_out
from lab.progress import table as progress_table
from lab.runs import read_log, write_log
from lab.show.plots import figure, need_matplotlib

BAGS = dict(lr=5e-4, weight_decay=5e-3, epochs=100, folds=10, repeats=5, hidden=64, embed=(64,))
#                            # small tables: rate, decay, epochs of Ilse et al. 2018 for MUSK1; one layer, Adam [ours]


TABLE_1 = {
    "MIL-RNN": (0.8619, 0.9107),
    "ABMIL": (0.9000, 0.9551),
    "DSMIL": (0.9268, 0.9633),
    "max": (0.8930, 0.8846),
    "mean": (0.9114, 0.9073),
    "HistCode": (0.9630, 0.9765),
}  # accuracy, AUC: LUAD against LUSC [HistCode Table 1]


MAY_SEE = {
    "gene filter": "availability only: a gene needs fold changes, not all equal, in half of all pairs",
    "optimism table": None,
    "random baseline": None,
    "shuffled patients": None,
    "external cohort": None,
}


def draw_curves(path, curves):
    """ROC and precision-recall side by side; curves: {name: (y, p)}. [HistCode Figs. 2, 3]"""
    with figure(path, 1, 2, figsize=(10, 4.6)) as (left, right):
        for name, (y, p) in curves.items():
            if 0 < y.mean() < 1:
                left.plot(*stats.roc_curve(y, p), label=f"{name}, AUC {stats.roc_auc(y, p):.3f}")
                right.step(
                    *stats.pr_curve(y, p),
                    where="pre",
                    label=f"{name}, area {stats.pr_auc(y, p):.3f}",
                )
                right.axhline(y.mean(), color="0.8", lw=1, zorder=0)
        left.plot((0, 1), (0, 1), color="0.8", lw=1, zorder=0)
        left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
        right.set(xlabel="recall", ylabel="precision", title="Precision-recall", ylim=(0, 1.02))
        for ax in (left, right):
            ax.legend(fontsize=8)


def run(o):
    """Cross-validate classifiers of slides, or of the bags of a table, and report how well they tell the classes apart."""
    start = time.time()
    if (o.cohort is None) == (o.bags is None):
        raise InputError("give either a cohort folder or --bags FILE")
    of_slides = dict.fromkeys(
        [
            "external",
            "features",
            "label",
            "weights",
            "precision",
            "mpp",
            "tile_um",
            "min_tissue",
            "max_tiles",
            "colour",
            "tissue",
            "tissue_threshold",
            "min_area",
        ],
        None,
    ) | dict(encoder="resnet50-stage3")
    given = [f"--{k.replace('_', '-')}" for k, usual in of_slides.items() if getattr(o, k) != usual]
    if o.bags and given:
        raise InputError(
            f"{', '.join(given)}: only with a cohort folder; {o.bags} is the whole of the data"
        )
    if o.bags and "folds" in o.code:
        raise InputError(f"--code folds: with a cohort folder; every part of {o.bags} is tested")
    settle_choices(o)
    settle_training(o, BAGS if o.bags else DIAGNOSIS)
    o.rotate = bool(o.bags) if o.rotate is None else o.rotate
    if o.positive is not None and not o.bags and o.label is None:
        raise InputError(
            f"--positive {o.positive}: with --label COLUMN; tumour is the positive class otherwise"
        )
    need_matplotlib()  # better now than after a day
    device = pick_device(o.device)
    d = bags_of_table(o) if o.bags else bags_of_cohort(o.cohort, o)
    say_left_out(d["left_out"])
    jobs, parts = folds_of(d, o)
    other = bags_of_cohort(o.external, o, d["classes"]) if o.external else None
    if other:
        check_external(d, other, o)
    y, poolings = d["y"], list(histcode.POOLINGS) if o.table else [o.pooling]
    folder = (
        Path(o.name or Path(o.bags).stem + "-diagnosis")
        if o.bags
        else Path(o.cohort) / "runs" / o.within / (o.name or "diagnosis")
    )
    config = claim_run(
        folder,
        o,
        d,
        dict(classes=list(d["classes"]), rotate=o.rotate, label=o.label),
        d["names"].tolist(),
        d["patients"].tolist(),
        y.tolist(),
        parts.tolist(),
    )
    if not o.share[0]:
        save_csv(
            folder / "folds.csv",
            (d["what"][:-1], "patient", "label", *(f"part_{r}" for r in range(o.repeats))),
            zip(d["names"], d["patients"], (d["classes"][v] for v in y), *parts),
        )
    print(
        f"{len(y)} {d['what']} of {len(set(d['patients'].tolist()))} patients, {y.sum()} {d['classes'][1]}, "
        f"{d['n_features']} features; {o.repeats} x {len(jobs) // o.repeats} folds; {', '.join(poolings)}, on {device}",
        flush=True,
    )
    trained = {pooling: train_pooling(pooling, d, jobs, o, folder, device) for pooling in poolings}
    if o.share[0]:  # the first process judges
        return 0
    write_log(folder, read_log(folder))
    own = {
        (pooling, *job[:2]): probabilities(s := trained[pooling][job[:2]])[s["epoch"] - 1]
        for pooling in poolings
        for job in jobs
    }
    save_csv(
        folder / "predictions.csv",
        (
            d["what"][:-1],
            "patient",
            "label",
            "pooling",
            "repeat",
            "fold",
            f"p_{d['classes'][1]}",
            "predicted",
        ),
        (
            (
                d["names"][i],
                d["patients"][i],
                d["classes"][y[i]],
                pooling,
                r,
                f,
                f"{p:.6f}",
                d["classes"][int(p > 0.5)],
            )
            for pooling in poolings
            for r, f, _, _, test in jobs
            for i, p in zip(test, own[pooling, r, f])
        ),
    )
    d["encoder"], d["ledgers"] = (
        [] if o.bags else encoder_saw(o.cohort, features_of(o)),
        [{} for _ in jobs],
    )
    for ledger, job in zip(d["ledgers"], jobs):
        for one in trained.values():
            for step, whom in one[job[:2]].get("saw", {}).items():
                saw(ledger, step, whom)
        saw(ledger, "optimism table", d["patients"][job[4]])
        if other:
            saw(ledger, "external cohort", other["patients"])
    write_diagnosis(folder, config, d, jobs, trained, own, o)
    for stale in (folder / "external.csv", folder / "external.png"):
        stale.unlink(missing_ok=True)
    if other:
        judge_external(folder, other, trained, d["encoder"], o, device)
    print(f"report: {folder / 'report.md'}   ({clock(time.time() - start)})")
    return report_failures(
        d["failed"] | (other["failed"] if other else {}), len(y) + len(d["failed"]), folder
    )


def write_diagnosis(folder, config, d, jobs, trained, own, o):
    """table.csv, curves.png, report.md; the table also to the terminal."""
    columns, y, table = (
        ("accuracy", "auc", "pr_auc", "best_epoch", "best_threshold", "best_epoch_auc"),
        d["y"],
        progress_table,
    )
    figures = {
        pooling: {job[:2]: figures_of(y[job[4]], saved[job[:2]]) for job in jobs}
        for pooling, saved in trained.items()
    }
    mean_sd, first = {}, [job for job in jobs if job[0] == 0]
    tested = np.concatenate([job[4] for job in first])
    for pooling, by_fold in figures.items():
        v = np.array([[f[c] for c in columns] for f in by_fold.values()])  # (folds, figures)
        there = [x[~np.isnan(x)] for x in v.T]  # a fold of one class has no AUC
        mean_sd[pooling] = [
            (x.mean() if len(x) else math.nan, x.std(ddof=1) if len(x) > 1 else math.nan)
            for x in there
        ]
    pooled = {
        pooling: (y[tested], np.concatenate([own[(pooling, *job[:2])] for job in first]))
        for pooling in trained
    }
    save_csv(
        folder / "table.csv",
        ("pooling", "folds", *(f"{c}{end}" for c in columns for end in ("", "_sd"))),
        (
            (pooling, len(jobs), *(f"{x:.4f}" for pair in pairs for x in pair))
            for pooling, pairs in mean_sd.items()
        ),
    )
    draw_curves(folder / "curves.png", pooled)
    show = lambda pair: f"{pair[0]:.3f} ± {pair[1]:.3f}"
    header = ("pooling", "accuracy", "ROC-AUC", "PR-AUC", "paper's accuracy, AUC")
    honest = [
        (pooling, *map(show, pairs[:3]), "{:.4f}, {:.4f}".format(*TABLE_1[pooling]))
        for pooling, pairs in mean_sd.items()
    ]
    optimism_header = (
        "pooling",
        "accuracy, honest",
        "best epoch on test",
        "best threshold on test",
        "AUC, honest",
        "AUC, best epoch on test",
    )
    optimism = [
        (pooling, *(f"{v[j][0]:.3f}" for j in (0, 3, 4, 1, 5))) for pooling, v in mean_sd.items()
    ]
    bounds = [
        (
            pooling,
            *(
                f"{v:.3f} ({low:.3f} to {high:.3f})"
                for v, low, high in with_interval(*pair, d["patients"][tested], o.seed)
            ),
        )
        for pooling, pair in pooled.items()
    ]
    no_auc = sum(math.isnan(f["auc"]) for f in next(iter(figures.values())).values())
    majority = max(y[tested].mean(), 1 - y[tested].mean())
    baseline = f"Always the commoner class: accuracy {majority:.3f}; chance: ROC-AUC .5, PR-AUC {y[tested].mean():.3f}."
    note = (
        "The paper's figures are from LUAD against LUSC, those of MIL-RNN, ABMIL and DSMIL copied from other works and "
        "splits: no comparison."
    )
    as_text = lambda rows: "\n".join(
        f"{row[0]:10s}" + "".join(f"{cell:>26s}" for cell in row[1:]) for row in rows
    )
    print(
        f"{as_text([header, *honest])}\n{baseline} {note}\n\n{as_text([optimism_header, *optimism])}"
    )
    bags, (leaks, seen) = (
        d["what"],
        ledger_lines(
            d["ledgers"],
            [set(d["patients"][job[4]].tolist()) for job in jobs],
            MAY_SEE,
            d["encoder"],
        ),
    )
    save_text(
        folder / "report.md",
        [
            f"# Diagnosis: {folder.name}",
            "",
            *leaks,
            *turned_lines(o),
            f"{len(y)} {bags} of {len(set(d['patients'].tolist()))} patients; {y.sum()} {d['classes'][1]}, "
            f"{len(y) - y.sum()} {d['classes'][0]}. {o.folds} parts by patient, stratified; one tests"
            + (" and" if "stop" in o.code else ", the next one")
            + " chooses the epoch (the last one with the fewest mistakes), "
            f"{o.folds - 2} train; {len(first)} of them tested in turn, "
            f"{o.repeats} time{'s' * (o.repeats > 1)}. Mean ± SD "
            f"over the {len(jobs)} test folds, positive class {d['classes'][1]}."
            + (f" {no_auc} test folds have one class only and no AUC." if no_auc else ""),
            "",
            table(header, honest),
            "",
            f"{baseline} {note}",
            "",
            f"## {'First repeat' if o.repeats > 1 else 'All folds'} pooled",
            "",
            "Each tested sample once, by the model that "
            + ("chose its epoch by it" if "stop" in o.code else "did not know its patient")
            + "; 95 % intervals over patients.",
            "",
            table(("pooling", "accuracy", "ROC-AUC", "PR-AUC"), bounds),
            "",
            "![Curves](curves.png)",
            "",
            "## Optimism",
            "",
            "What the same models seem to reach when the test part chooses the epoch, or the threshold. "
            "Shown since published figures often are such; nothing here uses them"
            + ", but for the epoch (--code stop)" * ("stop" in o.code)
            + ".",
            "",
            table(optimism_header, optimism),
            "",
            "## Folds",
            "",
            table(
                ("pooling", "repeat", "fold", "test", "epoch", "accuracy", "AUC"),
                [
                    (
                        pooling,
                        r,
                        f,
                        len(test),
                        trained[pooling][r, f]["epoch"],
                        f"{figures[pooling][r, f]['accuracy']:.3f}",
                        f"{figures[pooling][r, f]['auc']:.3f}",
                    )
                    for pooling in figures
                    for r, f, _, _, test in jobs
                ],
            ),
            "",
            *seen,
            *left_out_lines(d),
            "## Settings",
            "",
            *(f"- {k}: {v}" for k, v in config.items()),
            "",
        ],
    )


def check_external(d, other, o):
    both = sorted(set(d["patients"].tolist()) & set(other["patients"].tolist()))
    if both:
        raise InputError(
            f"{few(both)}: patients of both {o.cohort} and {o.external}; what a model has seen is no test"
        )
    if set(other["classes"]) != set(d["classes"]):
        raise InputError(
            f"labels of {o.external} are {few(other['classes'])}, of {o.cohort} {few(d['classes'])}"
        )
    differ = [
        f"{k} {other['features'].get(k)}, there {v}"
        for k, v in d["features"].items()
        if k in ("source", "weights", "colour", "tile_um", "tile_px")
        and other["features"].get(k) != v
    ]
    if differ or other["n_features"] != d["n_features"]:
        raise InputError(
            f"features of {o.external} are of another kind than those of {o.cohort}: "
            + ("; ".join(differ) or f"{other['n_features']} a tile, there {d['n_features']}")
        )


def judge_external(folder, other, trained, encoder, o, device):
    """external.csv and its figures: an external cohort [HistCode Results, CPTAC]; each slide's probability is the
    mean over the fold models [ours]."""
    rows, text, curves = [], [], {}
    for pooling, saved in trained.items():
        models = [apply_heads(s, device) for s in saved.values()]
        p = np.array(
            [
                np.mean([m(h)[0][0].double().softmax(0)[1].item() for m in models])
                for h in counted(
                    f"external {pooling}",
                    map(other["bag"], range(len(other["y"]))),
                    "slides",
                    len(other["y"]),
                )
            ]
        )
        rows += zip(
            other["names"],
            other["patients"],
            (other["classes"][v] for v in other["y"]),
            [pooling] * len(p),
            (f"{v:.6f}" for v in p),
        )
        text.append(
            (
                pooling,
                *(
                    f"{v:.3f} ({low:.3f} to {high:.3f})"
                    for v, low, high in with_interval(other["y"], p, other["patients"], o.seed)
                ),
            )
        )
        curves[pooling] = other["y"], p
        print(
            f"{o.external}, {pooling}: accuracy {text[-1][1]}, ROC-AUC {text[-1][2]}, PR-AUC {text[-1][3]}"
        )
    save_csv(
        folder / "external.csv",
        ("slide", "patient", "label", "pooling", f"p_{other['classes'][1]}"),
        rows,
    )
    draw_curves(folder / "external.png", curves)
    report, seen = (
        (folder / "report.md").read_text("utf-8").split("\n"),
        {*(encoder or ())} & {*other["patients"].tolist()},
    )
    save_text(
        folder / "report.md",
        [
            *report,
            f"## External: {o.external}",
            "",
            f"{len(other['y'])} slides, none of whose "
            "patients a model has seen; mean over the fold models."
            + f" **The encoder learned from tiles of {len(seen)} of these patients, without labels.**"
            * bool(seen),
            "",
            progress_table(("pooling", "accuracy", "ROC-AUC", "PR-AUC"), text),
            "",
            "![Curves](external.png)",
            "",
            *left_out_lines(other),
        ],
    )


def options(parser):
    flag = argparse.BooleanOptionalAction
    parser.set_defaults(within="")
    parser.add_argument("cohort", help="a cohort folder: slides/ and samples.csv", nargs="?")
    p, a = parser, parser.add_argument
    a(
        "--bags",
        metavar="FILE",
        help="instead of a cohort: a table whose rows are label, bag and an instance's features; "
        "results go to ./<its name>-diagnosis",
    )
    a(
        "--label",
        metavar="COLUMN",
        help="of samples.csv, two labels (default: tumour or normal, by the column tumor, else "
        "sample_type, else the TCGA barcode)",
    )
    a(
        "--positive",
        metavar="LABEL",
        help="with --label or --bags: the positive class (default: the higher of two numbers, "
        "the later of two words)",
    )
    a(
        "--pooling",
        choices=histcode.POOLINGS,
        default="HistCode",
        help="HistCode: gated attention (default, the paper's)",
    )
    a(
        "--table",
        action="store_true",
        help="all six poolings on the same folds: the paper's Table 1",
    )
    a(
        "--rotate",
        action=flag,
        help="test every part (default with --bags); the paper's five tests of 10 %% cover half of "
        "the patients",
    )
    a(
        "--external",
        metavar="COHORT",
        help="test the models on this cohort too, of other patients (with --features: files "
        "in the same folder)",
    )
    a("--name", help="of the run (default diagnosis); an interrupted run goes on")
    add_choices(a, CHOICES, "diagnose")
    pooling_options(p, DIAGNOSIS, BAGS)
    add_options(p, encoder="resnet50-stage3")
