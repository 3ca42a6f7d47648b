"""Tell tumour from normal slides, or any two labels, and report how well it goes.

    python histcode.py diagnose COHORT --encoder FILE --rotate
    python histcode.py diagnose COHORT --encoder FILE --table  the six rows of the paper's Table 1
    python histcode.py diagnose --bags musk1.csv               of a multiple-instance table
    python histcode.py diagnose                                on SIMULATED pairs, demo-pairs/

The patients are dealt out into parts; one tests, one chooses the epoch, the others train. Writes
COHORT/runs/diagnosis/: report.md, table.csv, predictions.csv, curves.png, a checkpoint a fold.
Without a cohort a simulated one is drawn, and maps, in three minutes on two quiet cores.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np

from lab.audit.choices import add_choices
from lab.audit.ledger import encoder_saw, saw
from lab.cohort.features import content_of, features_of
from lab.cohort.labels import words_line
from lab.cohort.names import person, who
from lab.commands.histcode.demo import demo_of, draw_maps, draw_pairs
from lab.commands.histcode.options import pooling_options, settle_encoder
from lab.commands.slide_options import add_options, refuse_slide_options
from lab.devices import pick_device
from lab.files import InputError, few, save_csv
from lab.histcode.bags import (
    BAGS,
    bags_of_cohort,
    bags_of_table,
    labelled_slides,
    left_out_lines,
    table_of,
)
from lab.histcode.choices import CHOICES, settle_choices
from lab.histcode.diagnose_report import (
    FIGURES,
    draw_curves,
    in_words,
    task_of,
    with_ends,
    write_report,
)
from lab.histcode.figures import kept, with_interval
from lab.histcode.heads import apply_heads
from lab.histcode.networks import POOLINGS
from lab.histcode.options import DIAGNOSIS, settle_training
from lab.histcode.runs import claim_run
from lab.histcode.splits import folds_of
from lab.histcode.training import train_pooling
from lab.processes import by_first
from lab.progress import clock, counted, report_failures, say_left_out, table
from lab.provenance import marked, merged, of_cohort, warning
from lab.runs import read_log, write_log
from lab.show.plots import need_matplotlib
from lab.words import same, tidy


def options(parser):
    a = parser.add_argument
    parser.set_defaults(within="")
    a("cohort", help="a folder: slides/ and samples.csv (default: demo-pairs)", nargs="?")
    a(
        "--bags",
        metavar="FILE",
        help="instead of a cohort: a table whose rows are label, bag and an instance's features; "
        "results go to ./<its name>-diagnosis",
    )
    a(
        "--label",
        type=tidy,
        metavar="COLUMN",
        help="of samples.csv, two labels (default: tumour or normal, by the column tumor, else "
        "sample_type, else the TCGA barcode)",
    )
    a(
        "--positive",
        metavar="LABEL",
        help="with --label or --bags: the positive class (default: the higher of two numbers, "
        "the later of two words); a word that usually says nothing, such as None, is a class where "
        "it is named here or by --negative",
    )
    a(
        "--negative",
        action="append",
        metavar="LABEL",
        help="with --label or --bags: the negative class; may be given again (default: all other "
        "labels but those that say nothing, such as Unknown or [Not Evaluated])",
    )
    a(
        "--pooling",
        choices=POOLINGS,
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
        action=argparse.BooleanOptionalAction,
        help="test every part (default with --bags); the paper's five tests of 10 %% cover half "
        "of the patients",
    )
    a(
        "--external",
        metavar="COHORT",
        help="test the models on this cohort too, of other patients (with --features: files "
        "in the same folder)",
    )
    a("--name", help="of the run (default diagnosis); an interrupted run goes on")
    add_choices(a, CHOICES, "diagnose")
    pooling_options(parser, DIAGNOSIS, BAGS)
    add_options(parser, encoder="resnet50-stage3", there=True)


def run(o):
    start = time.monotonic()
    check_source(o)
    settle_choices(o)
    demo = {} if o.bags else demo_of(o)
    settle_training(o, BAGS if o.bags else DIAGNOSIS | demo)
    if o.rotate is None:
        o.rotate = bool(o.bags)
    need_matplotlib()  # better now than after a day
    device = pick_device(o.device)
    if demo:
        by_first(draw_pairs)
    settle_encoder(o, demo)
    check = partial(look_first, o=o)
    data = bags_of_table(o) if o.bags else bags_of_cohort(o.cohort, o, check=check)
    say_left_out(data["left_out"])
    print(words_line(data))
    folds, parts = folds_of(data, o)
    other = external_cohort(data, o)
    folder = folder_of(o)
    config = claim(folder, data, parts, o)
    poolings = POOLINGS if o.table else (o.pooling,)
    print(
        f"{in_words(data)}, {data['n_features']} features; {o.repeats} x "
        f"{len(folds) // o.repeats} folds; {', '.join(poolings)}, on {device}",
        flush=True,
    )
    trained = {}
    for pooling in poolings:
        trained[pooling] = train_pooling(pooling, data, folds, o, folder, device)
    if o.share[0]:  # the first process judges
        return 0
    write_log(folder, read_log(folder))
    write_predictions(folder, data, folds, trained, config["provenance"])
    data["encoder"] = [] if o.bags else encoder_saw(o.cohort, features_of(o))
    external = judge_external(folder, other, trained, data["encoder"], config, o, device)
    write_report(
        folder, config, data, folds, trained, ledgers(data, folds, trained, other), external, o
    )
    print(f"report: {folder / 'report.md'}   ({clock(time.monotonic() - start)})")
    failed = data["failed"] | (other["failed"] if other else {})
    status = report_failures(failed, len(data["y"]) + len(data["failed"]), folder)
    return draw_maps(o, folder) | status if demo else status


def check_source(o):
    """Slides or a table, and of a table none of the options of slides."""
    if o.cohort and o.bags:
        raise InputError("give either a cohort folder or --bags FILE")
    if o.bags:
        refuse_slide_options(o, o.bags, "external", "label")
    if o.bags and "folds" in o.code:
        raise InputError(
            f"--code folds: only with a cohort folder; every part of {o.bags} is tested"
        )
    for option in ("positive", "negative"):
        word = getattr(o, option)
        if word is not None and not o.bags and o.label is None:
            raise InputError(
                f"--{option} {word}: with --label COLUMN; tumour is the positive class otherwise"
            )


def folder_of(o):
    if o.bags:
        return Path(o.name or Path(o.bags).stem + "-diagnosis")
    return Path(o.cohort) / "runs" / o.within / (o.name or "diagnosis")


def claim(folder, data, parts, o):
    """Claim the folder of the run and write who is in which part -> the run's settings."""
    names, patients, y = (data[k].tolist() for k in ("names", "patients", "y"))
    more = {"classes": list(data["classes"]), "rotate": o.rotate, "label": o.label}
    config = claim_run(folder, o, data, more, names, patients, y, parts.tolist())
    if not o.share[0]:
        header = [data["what"][:-1], "patient", "label"]
        header += [f"part_{repeat}" for repeat in range(len(parts))]
        labels = [data["classes"][label] for label in y]
        save_csv(folder / "folds.csv", header, zip(names, patients, labels, *parts, strict=True))
    return config


def write_predictions(folder, data, folds, trained, words):
    """predictions.csv: each test bag of each fold."""
    classes = data["classes"]
    rows = []
    for pooling, models in trained.items():
        for fold, saved in zip(folds, models, strict=True):
            for i, p in zip(fold.test, kept(saved), strict=True):
                who = [data["names"][i], data["patients"][i], classes[data["y"][i]]]
                where = [pooling, fold.repeat, fold.number]
                rows.append([*who, *where, f"{p:.6f}", classes[int(p > 0.5)]])
    header = [data["what"][:-1], "patient", "label", "pooling", "repeat", "fold"]
    header += [f"p_{classes[1]}", "predicted"]
    save_csv(folder / "predictions.csv", *marked(header, rows, words))


def ledgers(data, folds, trained, other):
    """Of each fold: whom each step learned from, over the poolings."""
    every = []
    for i, fold in enumerate(folds):
        ledger = {}
        for models in trained.values():
            for step, whom in models[i].get("saw", {}).items():
                saw(ledger, step, whom)
        saw(ledger, "optimism table", data["patients"][fold.test])
        if other:
            saw(ledger, "external cohort", other["patients"])
        every.append(ledger)
    return every


# Another cohort


def external_cohort(data, o):
    """The slides of --external, of other patients and of the same labels and features; or None."""
    if not o.external:
        return None
    other = bags_of_cohort(o.external, o, data["classes"])
    mine = {content_of(made) for made in data["seen"]} - {None}
    twins = [n for n, made in zip(other["names"], other["seen"]) if content_of(made) in mine]
    if twins:
        raise InputError(
            f"{o.external}: its slides {few(twins)} are also in {o.cohort}, by what their files "
            "hold; what a model has seen is no test"
        )
    say_left_out(other["left_out"])
    print(f"{o.external}: {words_line(other)}")
    if set(map(same, other["classes"])) != set(map(same, data["classes"])):
        raise InputError(
            f"labels of {o.external} are {few(other['classes'])}, of {o.cohort} "
            f"{few(data['classes'])}"
        )
    kinds = []
    for own in (other, data):
        made = own["features"]
        kind = {k: made.get(k) for k in ("source", "weights", "colour", "tile_um", "tile_px")}
        kinds.append({**kind, "features a tile": own["n_features"]})
    differ = [f"{k} {v}, there {kinds[1][k]}" for k, v in kinds[0].items() if kinds[1][k] != v]
    if differ:
        raise InputError(
            f"features of {o.external} are of another kind than those of {o.cohort}: "
            f"{'; '.join(differ)}"
        )
    return {**other, "classes": data["classes"]}


def look_first(bags, o):
    """Refuse too few patients for the folds, and --external of the same patients, before work."""
    folds_of(bags, o)
    if not o.external:
        return
    other = table_of(*labelled_slides(o.external, o, bags["classes"]))
    mine, theirs = ({*map(who, t["patients"]), *map(person, t["names"])} for t in (bags, other))
    both = sorted(mine & theirs - {None})
    if both:
        raise InputError(
            f"{few(both)}: patients of both {o.cohort} and {o.external}; what a model has seen is "
            "no test"
        )


def judge_external(folder, other, trained, encoder, config, o, device):
    """external.csv, its curves, and the section of the report. [HistCode Results, CPTAC-BRCA]

    A slide's probability is the mean over the fold models. [ours]
    """
    for stale in ("external.csv", "external.png"):
        (folder / stale).unlink(missing_ok=True)
    if other is None:
        return []
    y, patients, classes = other["y"], other["patients"], other["classes"]
    rows, text, curves = [], [], {}
    for pooling, checkpoints in trained.items():
        models = [apply_heads(saved, device) for saved in checkpoints]
        p = np.zeros(len(y))
        for i in counted(f"external {pooling}", range(len(y)), "slides"):
            h = other["bag"](i)
            p[i] = np.mean([model(h)[0][0].double().softmax(0)[1].item() for model in models])
            about = [other["names"][i], patients[i], classes[y[i]]]
            rows.append([*about, pooling, f"{p[i]:.6f}"])
        text.append([pooling, *map(with_ends, with_interval(y, p, patients))])
        curves[pooling] = y, p
    header = ("slide", "patient", "label", "pooling", f"p_{classes[1]}")
    words = merged(config["provenance"], of_cohort(o.external))
    save_csv(folder / "external.csv", *marked(header, rows, words))
    title = f"{task_of(other)}, {Path(o.external).name}"
    draw_curves(folder / "external.png", curves, other, title, words)
    figures = table(("pooling", *FIGURES), text)
    print(f"{o.external}\n\n{figures}\n")
    said = f"{len(y)} slides, none of whose patients a model has seen; mean over the fold models."
    seen = {*map(who, encoder or ())} & {*map(who, patients.tolist())}
    if seen:
        said += (
            f" **The encoder learned from tiles of {len(seen)} of these patients, without labels.**"
        )
    said += f" Labels: {words_line(other)}."
    lines = [f"## External: {o.external}", "", *warning(of_cohort(o.external)), said, ""]
    return [*lines, figures, "", "![Curves](external.png)", "", *left_out_lines(other)]
