"""What a diagnosis found: table.csv, curves.png, report.md.

data: the bags (lab.histcode.bags); trained: {pooling: the checkpoints of its folds}.
"""

import math

import numpy as np

import stats
from lab.audit.ledger import ledger_lines
from lab.cohort.labels import words_line
from lab.files import save_csv, save_text
from lab.histcode.bags import left_out_lines
from lab.histcode.choices import turned_lines
from lab.histcode.figures import figures_of, kept, mean_sd, with_interval
from lab.histcode.splits import MAY_SEE
from lab.progress import table
from lab.provenance import marked, warning
from lab.show.page import write_page
from lab.show.plots import RULE, drawable, figure
from lab.show.report import clauses, opening, settings_section
from lab.words import same

TABLE_1 = {  # accuracy and AUC  [HistCode Table 1]
    "MIL-RNN": (0.8619, 0.9107),
    "ABMIL": (0.9000, 0.9551),
    "DSMIL": (0.9268, 0.9633),
    "max": (0.8930, 0.8846),
    "mean": (0.9114, 0.9073),
    "HistCode": (0.9630, 0.9765),
}
LUNG = ["luad", "lusc"]  # the classes of Table 1
NOT_OURS = (
    " The paper's figures are of its own slides, those of MIL-RNN, ABMIL and DSMIL copied from "
    "other works and splits: no comparison."
)
FIGURES = ("accuracy", "ROC-AUC", "PR-AUC")


def write_report(folder, config, data, folds, trained, ledger, external, o):
    """table.csv, curves.png, report.md, report.html; the table also to the terminal.

    ledger: of each fold, whom each step learned from; external: lines on another cohort.
    """
    y, words = data["y"], config["provenance"]
    figures = {}  # of each pooling, of each fold
    for pooling, models in trained.items():
        figures[pooling] = [figures_of(y[f.test], s) for f, s in zip(folds, models, strict=True)]
    columns = list(figures[o.pooling][0])
    summary = {}
    for pooling, each in figures.items():
        summary[pooling] = {c: mean_sd([fold[c] for fold in each]) for c in columns}
    write_table(folder, columns, summary, len(folds), words)
    tested, pooled = first_repeat(y, folds, trained)
    draw_curves(folder / "curves.png", pooled, data, task_of(data), words)
    bounds = {}
    for pooling, pair in pooled.items():
        bounds[pooling] = with_interval(*pair, data["patients"][tested])
    honest = honest_table(summary, y[tested], is_of_table_1(data, words))
    print(honest, optimism_table(summary), sep="\n\n")
    test_patients = [set(data["patients"][fold.test].tolist()) for fold in folds]
    leaks, seen = ledger_lines(ledger, test_patients, MAY_SEE, data["encoder"])
    lines = [f"# {task_of(data)}: {folder.name}", "", *warning(words)]
    lines += five_sentences(data, words, tested, bounds, external, o)
    lines += [*leaks, *turned_lines(o), how_it_was_done(data, folds, figures[o.pooling], o), ""]
    lines += [honest, "", *pooled_section(bounds, o), *optimism_section(summary, o)]
    lines += [*external, *seen, *left_out_lines(data), *settings_section(config)]
    write_page(folder / "report.html", lines)
    save_text(folder / "report.md", lines)


# ----- Words --------------------------------------------------------------------------------------


def task_of(data):
    """'Diagnosis of tumour against normal'"""
    negative, positive = data["classes"]
    return f"Diagnosis of {positive} against {negative}"


def is_of_table_1(data, words):
    """Whether the task is that of the paper's Table 1: LUAD against LUSC, of slides of patients."""
    kinds = sorted(same(name).removeprefix("tcga-") for name in data["classes"])
    return kinds == LUNG and data["what"] == "slides" and not words


def in_words(data):
    """'92 bags of 92 patients, 47 1'"""
    patients = len(set(data["patients"].tolist()))
    y = data["y"]
    return f"{len(y)} {data['what']} of {patients} patients, {y.sum()} {data['classes'][1]}"


def five_sentences(data, words, tested, bounds, external, o):
    """How the report opens; tested: rows of the first repeat, bounds: its figures by pooling."""
    what, (negative, positive), y = data["what"], data["classes"], data["y"]
    parts = {"bags": "instances", "slides": "tiles"}[what]
    patients = data["patients"]
    everyone, asked_of = (len(set(who.tolist())) for who in (patients, patients[tested]))
    knew = "chose their epoch by them" if "stop" in o.code else "did not know them"
    common = max(y[tested].mean(), 1 - y[tested].mean())
    first = "In the first repeat: " if o.repeats > 1 else ""
    many = f"{everyone} patients, {len(y)} slides" if what == "slides" else f"{len(y)} bags"
    whose = "patients" if what == "slides" else "bags"
    return opening(
        f"Can {what} be told {positive} from {negative} by {o.pooling} pooling of their {parts} "
        f"({data['features']['source']}, {data['n_features']} features each)?",
        f"{many}: {y.sum()} are {positive}, {len(y) - y.sum()} are {negative}. {asked_of} of "
        f"{everyone} {whose} were tested, by models that {knew}.",
        f"{first}{found_of(bounds[o.pooling])}; always the commoner class has accuracy "
        f"{common:.3f}.{found_of_others(bounds, o.pooling)}",
        "Scores that know nothing have ROC-AUC .5; "
        f"{against_chance(*bounds[o.pooling][1])}. Intervals are 95 %, over patients; there is "
        "no p.",
        clauses(words, *not_concluded(what, parts, bounds, bounds[o.pooling][1], external)),
    )


def not_concluded(what, parts, bounds, auc, external):
    """What the figures don't say; auc: with its interval, of the pooling that was asked for."""
    if not auc[1] > 0.5:
        yield "that the classes cannot be told apart, which so few patients may not show"
    if what == "slides":
        end = "see the external cohort" if external else "all patients are of one cohort"
        yield f"that it holds for other hospitals ({end})"
        yield "that the label itself is seen, and not stain or hospital, where they go with it"
    yield f"that single {parts} have the label, which is the {what[:-1]}'s"
    if len(bounds) > 1:
        yield "that a pooling is better than another, where their intervals overlap"


def found_of(bounds):
    """'Accuracy 0.883 (0.800 to 0.940), ROC-AUC ...'"""
    said = zip(("Accuracy", *FIGURES[1:]), bounds, strict=True)
    return ", ".join(f"{name} {with_ends(each)}" for name, each in said)


def found_of_others(bounds, pooling):
    """The ROC-AUC of the other poolings."""
    others = [f"{name} {each[1][0]:.3f}" for name, each in bounds.items() if name != pooling]
    return f" ROC-AUC of the others: {', '.join(others)}." if others else ""


def with_ends(bounds):
    value, low, high = bounds
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def against_chance(_, low, high):
    """What the interval of a ROC-AUC says."""
    if math.isnan(low):
        return "there is no interval of so few patients"
    if low > 0.5:
        return "the interval lies above it"
    return "the interval lies below it" if high < 0.5 else "the interval holds it"


def how_it_was_done(data, folds, figures, o):
    chooses = "one tests and" if "stop" in o.code else "one tests, the next one"
    without = sum(math.isnan(fold["auc"]) for fold in figures)
    said = f" {without} test folds have one class only and no AUC." if without else ""
    tested = len(folds) // o.repeats
    return (
        f"{in_words(data)}. {o.folds} parts by patient, stratified; {chooses} chooses the epoch "
        f"(the last one with the fewest mistakes), {o.folds - 2} train. {tested} of them test in "
        f"turn, in {o.repeats} repeats. Mean ± SD over the {len(folds)} test folds, positive class "
        f"{data['classes'][1]}.{said} Labels: {words_line(data)}."
    )


# ----- Tables -------------------------------------------------------------------------------------


def first_repeat(y, folds, trained):
    """Rows tested in the first repeat, and {pooling: (their y, probabilities)}."""
    first = [i for i, fold in enumerate(folds) if fold.repeat == 0]
    tested = np.concatenate([folds[i].test for i in first])
    pooled = {}
    for pooling, models in trained.items():
        pooled[pooling] = y[tested], np.concatenate([kept(models[i]) for i in first])
    return tested, pooled


def write_table(folder, columns, summary, n, words):
    """table.csv: mean and SD of each figure over the test folds, a row a pooling."""
    header = ["pooling", "folds"]
    for column in columns:
        header += [column, f"{column}_sd"]
    rows = []
    for pooling, figures in summary.items():
        numbers = [f"{number:.4f}" for pair in figures.values() for number in pair]
        rows.append([pooling, n, *numbers])
    save_csv(folder / "table.csv", *marked(header, rows, words))


def honest_table(summary, y, beside):
    """Table 1: mean ± SD over the test folds, and what always the commoner class reaches.

    beside: whether the paper's figures stand in it.
    """
    rows = []
    for pooling, figures in summary.items():
        cells = ["{:.3f} ± {:.3f}".format(*figures[c]) for c in ("accuracy", "auc", "pr_auc")]
        papers = ["{:.4f}, {:.4f}".format(*TABLE_1[pooling])] * beside
        rows.append([pooling, *cells, *papers])
    header = ("pooling", *FIGURES, *["paper's accuracy, AUC"] * beside)
    majority = max(y.mean(), 1 - y.mean())
    return (
        f"{table(header, rows)}\n\nAlways the commoner class: accuracy {majority:.3f}; chance: "
        f"ROC-AUC .5, PR-AUC {y.mean():.3f}.{NOT_OURS * beside}"
    )


def pooled_section(bounds, o):
    knew = "chose its epoch by it" if "stop" in o.code else "did not know its patient"
    rows = [[pooling, *map(with_ends, each)] for pooling, each in bounds.items()]
    return [
        f"## {'First repeat' if o.repeats > 1 else 'All folds'} pooled",
        "",
        f"Each tested sample once, by the model that {knew}; 95 % intervals over patients.",
        "",
        table(("pooling", *FIGURES), rows),
        "",
        "![Curves](curves.png)",
        "",
    ]


def optimism_section(summary, o):
    but = ", but for the epoch (--code stop)" if "stop" in o.code else ""
    return [
        "## Optimism",
        "",
        "What the same models seem to reach when the test part chooses the epoch, or the "
        f"threshold. Shown since published figures often are such; nothing here uses them{but}.",
        "",
        optimism_table(summary),
        "",
    ]


def optimism_table(summary):
    columns = {
        "accuracy": "accuracy, honest",
        "best_epoch": "best epoch on test",
        "best_threshold": "best threshold on test",
        "auc": "AUC, honest",
        "best_epoch_auc": "AUC, best epoch on test",
    }
    rows = []
    for pooling, figures in summary.items():
        rows.append([pooling, *(f"{figures[c][0]:.3f}" for c in columns)])
    return table(("pooling", *columns.values()), rows)


# ----- Picture ------------------------------------------------------------------------------------


def draw_curves(path, curves, data, title, words):
    """ROC and precision-recall side by side; curves: {name: (y, p)}. [HistCode Figs. 2, 3]

    data: the bags whose y it is, for the names of what they are; title: of the picture.
    """
    y = next(iter(curves.values()))[0]
    negative, positive = (drawable(name, 24) for name in data["classes"])
    title = f"{title}\n{y.sum()} {data['what']} {positive}, {len(y) - y.sum()} {negative}"
    with figure(path, 1, 2, figsize=(10, 5.4), title=title, words=words) as (left, right):
        for i, (name, (y, p)) in enumerate(curves.items()):
            if 0 < y.mean() < 1:
                line = {"ls": ("-", "--", "-.", ":")[i % 4], "lw": 1.5}
                roc = f"{name}, AUC {stats.roc_auc(y, p):.3f}"
                left.plot(*stats.roc_curve(y, p), label=roc, **line)
                pr = f"{name}, area {stats.pr_auc(y, p):.3f}"
                right.step(*stats.pr_curve(y, p), where="pre", label=pr, **line)
        thin = {"color": RULE, "lw": 1, "zorder": 0}
        left.plot((0, 1), (0, 1), label="chance, AUC 0.500", **thin)
        right.axhline(y.mean(), label=f"chance, area {y.mean():.3f}", **thin)
        left.set(title="ROC", ylabel=f"true positive rate: {positive} found")
        left.set(xlabel=f"false positive rate: {negative} taken for {positive}")
        right.set(title="Precision-recall", xlabel=f"recall: {positive} found")
        right.set(ylabel=f"precision: {positive} among those found")
        for axes in (left, right):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.legend(loc="lower right" if axes is left else "lower left")
