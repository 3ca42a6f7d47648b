"""python histcode.py ablation COHORT --encoders FILE FILE: encoders x poolings on fold changes (Fig. 6).

The same pairs, folds, genes and seeds in every cell; in each a network of all genes at once, which is
`expression --model attention`. Costs as many of those runs as there are cells. Writes runs/NAME/ with
table.csv, genes.csv, ablation.png, report.md, and a run for each cell beside it.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np

import stats
from lab.audit.ledger import encoder_saw
from lab.cohort.features import features_of
from lab.commands.histcode import expression
from lab.commands.histcode.options import pair_options
from lab.encoders import ENCODERS, encoder_name, encoder_wants
from lab.files import InputError, load_arrays, number, read_rows, save_csv, save_text
from lab.histcode.expression import POOLED
from lab.histcode.options import check_ranges
from lab.histcode.pairs import pairs_of
from lab.histcode.runs import VERSION
from lab.progress import table
from lab.runs import claim_folder
from lab.show.plots import figure

TABLE = ("encoder", "pooling", "genes", "mean R ± SD", "median R", "mean Spearman ± SD")
PAIRED = ("one", "other", "mean difference of R", "p", "of Spearman", "p ")
NOTE = (
    "p: two-sided signed-rank test over genes, paired. Genes vary together, so it says that the two differ on "
    "these patients, not that they would on others."
)


def run(o):
    check(o)
    folder = Path(o.cohort) / "runs" / (o.name or "ablation")
    names = [encoder_name(encoder) for encoder in o.encoders]
    settings = {
        "command": "ablation",
        "version": VERSION,
        "encoders": names,
        "poolings": list(o.poolings),
    }
    claim_folder(folder, settings, "report.md", o.share)  # the rest is in the settings of each cell
    status, figures, seen = 0, {}, {}
    for encoder, pooling in itertools.product(o.encoders, o.poolings):
        name = encoder_name(encoder)
        cell = cell_of(o, encoder, pooling, f"{folder.name}-{name}-{pooling}")
        print(f"--- {name}, {pooling} pooling", flush=True)
        status |= expression.run(cell)
        if not o.share[0]:
            figures[name, pooling] = figures_of(folder.with_name(cell.name))
            seen[name] = seen_of_tested(folder.with_name(cell.name), cell)
    if o.share[0]:
        return 0
    genes, values = in_every_cell(figures)
    write(folder, genes, values, seen)
    return status


def check(o):
    """Refuse now what would stop a later cell after hours, before a folder is made."""
    names = [encoder_name(encoder) for encoder in o.encoders]
    if len(set(names)) < len(names):
        raise InputError(
            f"--encoders {' '.join(o.encoders)}: two have the name {max(names, key=names.count)}, and so would "
            "their features"
        )
    check_ranges(o)
    for encoder in o.encoders:
        if not is_folder(encoder):
            encoder_wants(argparse.Namespace(**vars(o) | {"encoder": encoder}))
    pairs_of(o.cohort, o.slides or "tumour")


def is_folder(encoder):
    """A folder of features that were made elsewhere?"""
    return encoder not in ENCODERS and Path(encoder).is_dir()


def cell_of(o, encoder, pooling, name):
    """Options of the run of one cell."""
    cell = argparse.Namespace(**vars(o))
    cell.verb, cell.name = "expression", name
    cell.model, cell.pooling = "attention", pooling
    cell.code, cell.follow, cell.gmt, cell.ridge = [], None, None, 0
    if is_folder(encoder):
        cell.features = encoder
    else:
        cell.encoder = encoder
    if encoder not in ENCODERS:
        cell.weights = None
    return cell


def figures_of(run):
    """{gene: (R, Spearman)} of a finished run."""
    header, rows = read_rows(run / "genes.csv")
    r, rho = header.index("R"), header.index("spearman")
    return {row[0]: (number(row[r]), number(row[rho])) for row in rows}


def seen_of_tested(run, cell):
    """How many of the tested patients the encoder learned from, without labels."""
    learned_from = encoder_saw(cell.cohort, features_of(cell))
    if learned_from is None:
        return "not known"
    tested = set(load_arrays(run / "predictions.npz")["patient"].tolist())
    return f"{len(tested & set(learned_from))} of {len(tested)}"


def in_every_cell(figures):
    """Genes that have an R in every cell, and of each cell their R and Spearman (genes, 2)."""
    known = [{gene for gene, v in cell.items() if v[0] == v[0]} for cell in figures.values()]
    first = next(iter(figures.values()))
    genes = [gene for gene in first if all(gene in cell for cell in known)]
    if not genes:
        raise InputError(
            "no gene has an R in every cell of the table: is there any signal, or are predictions constant?"
        )
    return genes, {name: np.array([cell[g] for g in genes]) for name, cell in figures.items()}


def table_rows(values):
    for (encoder, pooling), v in values.items():
        r, rho = (f"{m:.3f} ± {sd:.3f}" for m, sd in zip(v.mean(0), v.std(0), strict=True))
        yield encoder, pooling, len(v), r, f"{np.median(v[:, 0]):.3f}", rho


def paired_tests(values):
    """Each two cells that differ in one thing alone, compared over the genes."""
    for a, b in itertools.combinations(values, 2):
        if (a[0] == b[0]) == (a[1] == b[1]):
            continue
        row = [", ".join(a), ", ".join(b)]
        for x, y in zip(values[a].T, values[b].T, strict=True):
            row += [f"{(x - y).mean():+.3f}", f"{stats.wilcoxon_signed_rank(x, y)[1]:.2g}"]
        yield row


def write(folder, genes, values, seen):
    """table.csv, genes.csv, ablation.png and report.md; the tables are printed, too."""
    rows, tests = list(table_rows(values)), list(paired_tests(values))
    save_csv(folder / "table.csv", TABLE, rows)
    columns = [f"{figure} {' '.join(cell)}" for cell in values for figure in ("R", "spearman")]
    every = np.concatenate(list(values.values()), 1)  # (genes, 2 x cells)
    lines = ((gene, *(f"{v:.5g}" for v in row)) for gene, row in zip(genes, every, strict=True))
    save_csv(folder / "genes.csv", ("gene", *columns), lines)
    draw(folder / "ablation.png", values)
    print(table(TABLE, rows), table(PAIRED, tests), NOTE, sep="\n\n")
    who = "; ".join(f"{encoder} {patients}" for encoder, patients in seen.items())
    text = [
        f"# Ablation: {folder.name}",
        "",
        "The same pairs, folds, genes and seeds in every cell; networks of all genes at once, stopped on "
        "validation patients. [HistCode Fig. 6]",
        "",
        f"Tested patients whose tiles the encoder learned from, without labels: {who}. What the other steps "
        "saw: reports of the runs.",
        "",
        table(TABLE, rows),
        "",
        "![R and Spearman](ablation.png)",
        "",
        table(PAIRED, tests),
        "",
        NOTE,
        "",
    ]
    save_text(folder / "report.md", text)
    print(f"report: {folder / 'report.md'}")


def draw(path, values):
    """Box plots over the genes, a box for each cell. [HistCode Fig. 6]"""
    labels = ["\n".join(cell) for cell in values]
    with figure(path, 1, 2, figsize=(4 + 1.3 * len(values), 4)) as axes:
        for k, what in enumerate(("Pearson R", "Spearman")):
            axes[k].boxplot([v[:, k] for v in values.values()], tick_labels=labels)
            axes[k].axhline(0, color="0.8", lw=1, zorder=0)
            axes[k].set_ylabel(f"{what} of a gene")
            axes[k].tick_params(axis="x", labelsize=8)


def options(parser):
    parser.set_defaults(within="")
    a = parser.add_argument
    a("cohort", help="a cohort folder: slides/, samples.csv, expression.csv")
    a(
        "--encoders",
        nargs="+",
        required=True,
        metavar="ENCODER",
        help="files of pretrain, resnet50-stage3 with --weights, TorchScript files: as tiling.py's --encoder; "
        "folders: as --features of the other commands",
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
        help="of resnet50-stage3 and the like: imagenet (default), a torchvision state_dict file, or random",
    )
    pair_options(parser, None)
