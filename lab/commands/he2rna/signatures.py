"""python he2rna.py signatures RUN --gmt FILE...: is a pathway better predicted than random genes?

The genes of each signature are compared with 10,000 random lists of as many genes, and with lists
of genes of like mean expression, in each cancer of the run. [HE2RNA Fig. 3; Methods, GSEA
signatures] It takes seconds for hundreds of genes and some minutes for 30,000 in 28 cancers.
Writes RUN/signatures/: signatures.csv, report.md, r.png, share.png.
"""

from pathlib import Path

import numpy as np

import he2rna
import stats
from lab.cohort.expression import as_symbols, read_gene_table
from lab.cohort.genes import as_in_sets
from lab.commands.he2rna.options import count, gene_set_options
from lab.commands.options import natural
from lab.files import InputError, few, save_csv, save_text, whole_arrays
from lab.gene_sets import read_sets
from lab.he2rna.evaluation import code_of
from lab.he2rna.gene_sets import pick_signatures, read_results
from lab.progress import table
from lab.provenance import marked, of_folder, warning
from lab.show.plots import COLORS, INK, MARKS, counted, drawable, figure, need_matplotlib

NAMED = 20  # signatures in the legend of a picture  [ours]
MEASURES = {"r": "mean R", "share": "share of significant genes"}
LISTS = {"R_o": "r_random", "p": "p_r", "f_o": "share_random", "p (share)": "p_share"}
ABOUT = (
    "R_p, f_p: mean R and share of significant genes of the signature; R_o, f_o: of the lists; p: "
    "share of lists (and the signature) that reach it, not corrected for the number of tests. "
    "matched: lists of genes of like mean expression. The genes of a signature vary together, "
    "those of a list do not: p tells that these genes stand out, not that their pathway would "
    "again. Who saw whom: the signatures, published sets, no patient of this run; the mean "
    "expression all of them, by design, for it judges and nothing learns from it."
)


def options(parser):
    a = parser.add_argument
    gene_set_options(a)
    a(
        "--signature",
        action="append",
        metavar="NAME[=SET,SET..]",
        help="genes in at least two of the sets; a set's name; or one of the paper's: "
        f"{', '.join(stats.SIGNATURES)} (default: those and housekeeping sets); may be given again",
    )
    a(
        "--lists",
        type=count,
        default=stats.N_LISTS,
        metavar="N",
        help=f"random lists (default {stats.N_LISTS:,}, the paper's)",
    )
    a("--seed", type=natural, default=0, help="of the random lists (default 0)")


def run(o):
    need_matplotlib()
    genes, results = read_results(o.run)
    symbols = read_gene_table(o.gene_table)[0] if o.gene_table else {}
    names, note = as_symbols(genes, symbols)
    signatures = pick_signatures(o.signature, read_sets(o.gmt))
    own = {name: of for name, (of, _) in signatures.items()}
    names, remark = as_in_sets(names, own, "the signatures")
    cancers = he2rna.separate(results, "merged" not in code_of(o.run))
    any_genes, alike = test_signatures(o, genes, names, signatures, [results[c] for c in cancers])
    header, rows = tested_table(signatures, cancers, any_genes, alike)
    remarks = [f"- {name}: {missing}" for name, (_, missing) in signatures.items() if missing]
    sizes = any_genes["size"].max(1)  # (signatures,)
    lost = [name for name, size in zip(signatures, sizes) if not size]
    if lost:
        remarks.append(f"- not found: a gene with R in this run of {', '.join(lost)}")
    remarks += [f"- {said}" for said in (note, remark) if said]

    folder = Path(o.run) / "signatures"
    words = of_folder(o.run)
    save_csv(folder / "signatures.csv", *marked(header, rows, words))
    for measure, label in MEASURES.items():
        pair = any_genes[measure], any_genes[f"{measure}_random"]
        draw(folder / f"{measure}.png", signatures, *pair, label, words)
    about = f"{len(genes):,} genes, {len(cancers)} cancers; {o.lists:,} random lists. {ABOUT}"
    tested = table(header, rows)
    lines = [f"# Signatures in {o.run}", "", *warning(words), about, "", *remarks, "", tested, ""]
    save_text(folder / "report.md", [*lines, "![R](r.png) ![Share](share.png)", ""])
    print("\n".join([tested, *remarks, f"report: {folder / 'report.md'}"]))
    return 1 if lost and (o.signature or len(lost) == len(signatures)) else 0


def test_signatures(o, genes, names, signatures, results):
    """Every signature against lists of any genes, and of genes of like expression: two dicts."""
    r = np.array([e["r"] for e in results])  # (P, G)
    significant = np.array([e[o.correction] for e in results])
    members = np.array([np.isin(names, list(own)) for own, _ in signatures.values()])
    rng = np.random.default_rng(o.seed)
    levels = None, mean_expression(o.run, genes)
    return [he2rna.signature_test(r, significant, members, rng, level, o.lists) for level in levels]


def mean_expression(run, genes):
    """Mean of each gene's true expression over the slides of a run. (G,)"""
    path = Path(run) / "predictions.npz"
    z = whole_arrays(path, genes="UG", truth="fSG")
    known = dict(zip(z["genes"].tolist(), z["truth"].mean(0)))
    level = np.array([known.get(gene, np.nan) for gene in genes])
    if not np.isfinite(level).all():
        lost = few([gene for gene, v in zip(genes, level) if not np.isfinite(v)])
        raise InputError(f"{path} has no expression of {lost}: run the command that made it again")
    return level


def tested_table(signatures, cancers, any_genes, alike):
    """(header, rows): a row for each signature and cancer; what has no value stays empty."""
    columns = {"R_p": any_genes["r"], "f_p": any_genes["share"]}  # each (signatures, P)
    for tested, lists in ((any_genes, ""), (alike, " matched")):
        for column, measure in LISTS.items():
            columns[column + lists] = tested[measure]
    rows = []
    for i, (name, (genes, _)) in enumerate(signatures.items()):
        for c, cancer in enumerate(cancers):
            values = [column[i, c] for column in columns.values()]
            shown = ["" if np.isnan(value) else f"{value:.4g}" for value in values]
            rows.append((name, cancer, len(genes), any_genes["size"][i, c], *shown))
    return ("signature", "cancer", "genes in it", "with R", *columns), rows


def draw(path, signatures, observed, chance, label, words):
    """Each signature in each cancer against random lists; the line: equal ones. [HE2RNA Fig. 3]"""
    if not np.isfinite(observed).any():
        return
    title = f"{label} of signatures and of random lists of as many genes: a point a cancer"
    with figure(path, figsize=(8, 5), title=title, words=words) as ax:
        for i, name in enumerate(signatures):
            style = {"color": COLORS[i % len(COLORS)], "marker": MARKS[i % len(MARKS)]}
            n = np.isfinite(observed[i]).sum()
            label_of = f"{drawable(name)} ({counted(n, 'cancer')})" if i < NAMED else None
            ax.scatter(chance[i], observed[i], s=22, label=label_of, **style)
        if len(signatures) > NAMED:
            ax.plot([], [], " ", label=f"and {len(signatures) - NAMED} more")
        ends = np.nanmin([observed, chance]), np.nanmax([observed, chance])
        ax.plot(ends, ends, color=INK, ls=":", lw=0.8, label="equal to random lists")
        ax.set(xlabel=f"{label} of random lists", ylabel=f"{label} of the signature")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
