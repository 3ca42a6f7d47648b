"""python histcode.py ablation COHORT --encoders FILE FILE: encoders x poolings on fold changes.

The same pairs, folds, genes and seeds in every cell; in each a network of all genes at once, which
is `expression --model attention`. [HistCode Fig. 6] It costs as many of those runs as there are
cells, and writes them beside runs/NAME/ with table.csv, ablation.png, report.md.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np

import stats
from lab.commands.expression_options import check_count
from lab.commands.histcode import expression
from lab.commands.histcode.options import pair_options
from lab.encoders import ENCODERS, encoder_name, encoder_wants
from lab.files import InputError, load_arrays, number, read_rows, save_csv, save_text
from lab.histcode.expression import POOLED, compared_over_parts, r_of_parts
from lab.histcode.expression_report import ALPHA
from lab.histcode.options import check_ranges
from lab.histcode.pairs import pairs_of
from lab.histcode.runs import VERSION
from lab.progress import table
from lab.provenance import marked, merged, of_folder, warning
from lab.runs import claim_folder
from lab.show.plots import BLUE, ORANGE, RULE, counted, drawable, figure
from lab.show.report import clauses, opening, settings_section

TABLE = ("encoder", "pooling", "genes", "mean R ± SD", "median R", "mean Spearman ± SD")
PAIRED = (
    *("one", "other", "difference of R", "p over genes", "of Spearman", "p over genes "),
    *("of R within test parts", "95 % interval", "p"),
)
NOTE = (
    "p and the interval are for other patients: Nadeau and Bengio's corrected t over the test "
    "parts, of the mean R within a part of three pairs or more. p over genes: two-sided "
    "signed-rank test, paired. It takes genes for independent, which they are not: of two encoders "
    "that are worth the same it is below .05 in a tenth to six tenths of studies."
)


def run(o):
    names = checked_names(o)
    folder = Path(o.cohort) / "runs" / (o.name or "ablation")
    settings = {"command": "ablation", "version": VERSION, "encoders": names}
    settings["poolings"] = list(o.poolings)  # the rest is in the settings of each cell
    config = claim_folder(folder, settings, "report.md", o.share)
    status = 0
    runs = {}
    for encoder, name in zip(o.encoders, names, strict=True):
        for pooling in o.poolings:
            cell = options_of_cell(o, encoder, pooling, f"{folder.name}-{name}-{pooling}")
            print(f"--- {name}, {pooling} pooling", flush=True)
            status |= expression.run(cell)
            runs[name, pooling] = folder.with_name(cell.name)
    if o.share[0]:  # the first process compares
        return 0
    patients, parts = parts_of(runs)
    words = merged(*map(of_folder, runs.values()))
    write(folder, figures_of(runs), parts, patients, config, words)
    print(f"report: {folder / 'report.md'}")
    return status


def checked_names(o):
    """Names of the encoders. Refused now is what would stop a later cell, after hours."""
    names = [encoder_name(encoder) for encoder in o.encoders]
    if len(set(names)) < len(names):
        raise InputError(
            f"--encoders {' '.join(o.encoders)}: two have the name {max(names, key=names.count)}, "
            "and so would their features"
        )
    check_ranges(o)
    check_count(o.decoys)
    for encoder in o.encoders:
        if not made_elsewhere(encoder):
            encoder_wants(argparse.Namespace(**vars(o) | {"encoder": encoder}))
    pairs_of(o.cohort, scale=o.scale)
    return names


def made_elsewhere(encoder):
    """A folder of features, in the place of an encoder?"""
    return encoder not in ENCODERS and Path(encoder).is_dir()


def options_of_cell(o, encoder, pooling, name):
    """The options of `expression` for one cell."""
    cell = argparse.Namespace(**vars(o))
    vars(cell).update(verb="expression", model="attention", pooling=pooling, name=name)
    vars(cell).update(code=[], follow=None, gmt=None, ridge=0)
    if made_elsewhere(encoder):
        cell.features = encoder
    else:
        cell.encoder = encoder
    if encoder not in ENCODERS:
        cell.weights = None
    return cell


def figures_of(runs):
    """{cell: R and Spearman (genes, 2)} of the genes that have an R in every cell."""
    values = {}
    for cell, run in runs.items():
        header, rows = read_rows(run / "genes.csv")
        r, rho = header.index("R"), header.index("spearman")
        by_name = sorted(rows)  # cells have the same genes, each by its own R
        values[cell] = np.array([[number(row[r]), number(row[rho])] for row in by_name])
    known = ~np.isnan(list(values.values())).any((0, 2))
    if not known.any():
        raise InputError(
            "no gene has an R in every cell of the table: is there any signal, or are predictions "
            "constant?"
        )
    return {cell: value[known] for cell, value in values.items()}


def parts_of(runs):
    """Number of pairs, and {cell: R within each test part (parts, genes)}."""
    parts = {}
    for cell, run in runs.items():
        z = load_arrays(run / "predictions.npz")
        parts[cell] = r_of_parts(z["prediction"], z["truth"], z["part"])
    return len(z["part"]), parts


def rows_of_cells(values):
    for cell, value in values.items():
        r, rho = (f"{v.mean():.3f} ± {v.std():.3f}" for v in value.T)
        yield *cell, len(value), r, f"{np.median(value[:, 0]):.3f}", rho


def paired_tests(values, parts):
    """Two cells that differ in one thing alone, over genes and over parts: a row for each two."""
    for one, other in itertools.combinations(values, 2):
        if (one[0] == other[0]) != (one[1] == other[1]):
            row = [", ".join(one), ", ".join(other)]
            for a, b in zip(values[one].T, values[other].T, strict=True):
                p = stats.wilcoxon_signed_rank(a, b)[1]
                row += [f"{(a - b).mean():+.3f}", f"{p:.2g}"]
            yield row + over_parts(parts[one], parts[other])


def over_parts(one, other):
    """Cells of the table: one R (parts, genes) against the other."""
    mean, low, high, p = compared_over_parts(one, other)
    if np.isnan(p):
        return ["", "", ""]
    return [f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{p:.2g}"]


def write(folder, values, parts, patients, config, words):
    """table.csv, ablation.png and report.md; the tables are printed, too."""
    rows, compared = list(rows_of_cells(values)), list(paired_tests(values, parts))
    save_csv(folder / "table.csv", *marked(TABLE, rows, words))
    draw(folder / "ablation.png", values, words)
    cells, tests = table(TABLE, rows), table(PAIRED, compared)
    print(cells, tests, NOTE, sep="\n\n")
    paragraphs = [
        f"# Ablation, tumour against normal: {folder.name}",
        *warning(words),
        "\n".join(five_sentences(values, compared, patients, words)).strip(),
        "The same pairs, folds, genes and seeds in every cell; networks of all genes at once, "
        "stopped on validation patients [HistCode Fig. 6]. Whom each step saw, the encoder's "
        "training among them, is in the reports of the runs.",
        cells,
        "![R and Spearman](ablation.png)",
        tests,
        NOTE,
        *settings_section(config),
    ]
    save_text(folder / "report.md", ["\n\n".join(filter(None, paragraphs)), ""])


def five_sentences(values, compared, patients, words):
    """How the report opens; compared: the rows of the paired tests."""
    mean = {", ".join(cell): value[:, 0].mean() for cell, value in values.items()}
    best, last = max(mean, key=mean.get), min(mean, key=mean.get)
    n_genes = len(next(iter(values.values())))
    told = [row for row in compared if row[-1] and float(row[-1]) < ALPHA]
    apart = ", ".join(f"{one} against {other} ({d})" for one, other, *_, d, _, _ in told)
    return opening(
        f"Which of {len(mean)} cells, of an encoder and a pooling each, predicts fold changes "
        "best?",
        f"{patients} pairs of one patient each, and {n_genes:,} genes that have an R in every "
        "cell; the same folds in all.",
        f"Mean R is highest in {best} ({mean[best]:.3f}), lowest in {last} ({mean[last]:.3f}). "
        f"Told apart for other patients: {apart or 'no two cells'}.",
        f"p of a difference of mean R within test parts, corrected t, below {ALPHA}; not "
        "corrected for the number of comparisons.",
        clauses(
            words,
            "that the highest cell is the best, where it is not told apart from the others: p over "
            "genes, which are not independent, does not tell",
            "that this holds for other tissues",
        ),
    )


def draw(path, values, words):
    """Over the genes, a box for each cell. [HistCode Fig. 6]"""
    labels = ["\n".join(drawable(name, 18) for name in cell) for cell in values]
    genes = counted(len(next(iter(values.values()))), "gene")
    title = (
        f"Fold changes, tumour against normal: {genes} in each box of an encoder and a pooling. "
        "Box: quartiles; line: median; triangle: mean"
    )
    size = (4 + 1.6 * len(values), 4.6)
    style = {"tick_labels": labels, "showmeans": True}
    style |= {"medianprops": {"color": ORANGE, "lw": 1.5}, "meanprops": {"mfc": BLUE, "mec": BLUE}}
    with figure(path, 1, 2, figsize=size, title=title, words=words) as axes:
        for k, what in enumerate(("Pearson R", "Spearman's rho")):
            axes[k].boxplot([v[:, k] for v in values.values()], **style)
            axes[k].axhline(0, color=RULE, lw=1, zorder=0)
            axes[k].set_ylabel(f"{what} of a gene over all pairs")


def options(parser):
    parser.set_defaults(within="")
    a = parser.add_argument
    a("cohort", help="a cohort folder: slides/, samples.csv, expression.csv")
    a(
        "--encoders",
        nargs="+",
        required=True,
        metavar="ENCODER",
        help="files of pretrain, resnet50-stage3 with --weights, TorchScript files: as tiling.py's "
        "--encoder; folders: as --features of the other commands",
    )
    a(
        "--poolings",
        nargs="+",
        choices=tuple(POOLED),
        default=("attention", "mean"),
        help="default: attention mean, the paper's",
    )
    a(
        "--weights",
        metavar="W|FILE",
        help="of resnet50-stage3 and the like: imagenet (default), a torchvision state_dict file, "
        "or random",
    )
    pair_options(parser, None)
