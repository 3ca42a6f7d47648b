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
from lab.commands.options import natural
from lab.files import InputError, few, save_csv, save_text, whole_arrays
from lab.gene_sets import read_sets
from lab.he2rna.evaluation import code_of
from lab.he2rna.gene_sets import pick_signatures, read_results
from lab.he2rna.options import gene_set_options
from lab.progress import table
from lab.show.plots import figure, need_matplotlib

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
        type=int,
        default=stats.N_LISTS,
        help=f"random lists (default {stats.N_LISTS:,}, the paper's)",
    )
    a("--seed", type=natural, default=0, help="of the random lists (default 0)")


def run(o):
    need_matplotlib()
    if o.lists < 1:
        raise InputError(f"--lists {o.lists}: must be at least 1")
    genes, results = read_results(o.run)
    symbols = read_gene_table(o.gene_table)[0] if o.gene_table else {}
    names, note = as_symbols(genes, symbols)
    signatures = pick_signatures(o.signature, read_sets(o.gmt))
    cancers = he2rna.separate(results, "merged" not in code_of(o.run))
    tests = test_signatures(o, genes, names, signatures, [results[name] for name in cancers])
    header, rows = tested_table(signatures, cancers, *tests)
    remarks = remarks_on(signatures, tests[0], note)

    folder = Path(o.run) / "signatures"
    save_csv(folder / "signatures.csv", header, rows)
    draw(folder / "r.png", signatures, tests[0]["r"], tests[0]["r_random"], "mean R")
    shares = tests[0]["share"], tests[0]["share_random"]
    draw(folder / "share.png", signatures, *shares, "share of significant genes")
    about = f"{len(genes):,} genes, {len(cancers)} cancers; {o.lists:,} random lists. {ABOUT}"
    lines = [f"# Signatures in {o.run}", "", about, "", *remarks, "", table(header, rows), ""]
    lines += ["![R](r.png) ![Share](share.png)", ""]
    lines += won(signatures, len(cancers), *tests)
    save_text(folder / "report.md", lines)
    print("\n".join([table(header, rows), *remarks, f"report: {folder / 'report.md'}"]))
    return 0


def test_signatures(o, genes, names, signatures, results):
    """Every signature against lists of any genes, and of genes of like expression: two dicts."""
    r = np.array([e["r"] for e in results])  # (P, G)
    significant = np.array([e[o.correction] for e in results])
    members = np.array([np.isin(names, list(own)) for own, _ in signatures.values()])
    level = mean_expression(o.run, genes)
    rng = np.random.default_rng(o.seed)
    lists = {"n_lists": o.lists}
    any_genes = he2rna.signature_test(r, significant, members, rng, **lists)
    alike = he2rna.signature_test(r, significant, members, rng, level, **lists)
    return any_genes, alike


def mean_expression(run, genes):
    """Mean of each gene's true expression over the slides of a run. (G,)"""
    z = whole_arrays(Path(run) / "predictions.npz", genes="UG", truth="fSG")
    level = dict(zip(z["genes"].tolist(), z["truth"].mean(0)))
    lost = [gene for gene in genes if not np.isfinite(level.get(gene, np.nan))]
    if lost:
        raise InputError(
            f"{run}: predictions.npz has no expression of {few(lost)}, which genes.csv has: run "
            "the command that made both again"
        )
    return np.array([level[gene] for gene in genes])


def tested_table(signatures, cancers, any_genes, alike):
    """(header, rows): a row for each signature and cancer; what has no value stays empty."""
    columns = {
        "R_p": any_genes["r"],
        "R_o": any_genes["r_random"],
        "p": any_genes["p_r"],
        "f_p": any_genes["share"],
        "f_o": any_genes["share_random"],
        "p (share)": any_genes["p_share"],
        "R_o matched": alike["r_random"],
        "p matched": alike["p_r"],
        "f_o matched": alike["share_random"],
        "p (share) matched": alike["p_share"],
    }  # each (signatures, P)
    rows = []
    for i, (name, (genes, _)) in enumerate(signatures.items()):
        for c, cancer in enumerate(cancers):
            values = [column[i, c] for column in columns.values()]
            shown = ["" if np.isnan(value) else f"{value:.4g}" for value in values]
            rows.append((name, cancer, len(genes), any_genes["size"][i, c], *shown))
    return ("signature", "cancer", "genes in it", "with R", *columns), rows


def remarks_on(signatures, tested, note):
    """What is missing, a line each."""
    remarks = [f"- {name}: {missing}" for name, (_, missing) in signatures.items() if missing]
    for name, size in zip(signatures, tested["size"]):
        if not size.any():
            remarks.append(f"- {name}: no gene of it was measured; no test")
    return [*remarks, f"- {note}"] if note else remarks


def won(signatures, n_cancers, any_genes, alike):
    """Lines: in how many cancers a signature beats the lists."""
    rows = []
    for i, name in enumerate(signatures):
        for tested, lists in ((any_genes, "any genes"), (alike, "genes of like expression")):
            by_r, by_share = ((tested[p][i] < he2rna.ALPHA).sum() for p in ("p_r", "p_share"))
            if tested["size"][i].any():
                rows.append((name, f"{by_r} and {by_share}", lists))
    title = f"## In how many of {n_cancers} cancers p < {he2rna.ALPHA} (mean R and share)"
    return [title, "", table(("signature", "cancers", "against"), rows), ""]


def draw(path, signatures, observed, chance, label):
    """Each signature in each cancer against random lists, with the line of equal values. [Fig. 3]"""
    if not np.isfinite(observed).any():
        return
    ends = [np.nanmin([observed, chance]), np.nanmax([observed, chance])]
    with figure(path, figsize=(6.4, 5)) as ax:
        for i, name in enumerate(signatures):
            ax.scatter(chance[i], observed[i], s=16, label=name, color=f"C{i % 10}")
        ax.plot(ends, ends, "k:", lw=0.8)
        ax.set(xlabel=f"{label} of random lists", ylabel=f"{label} of the signature")
        ax.set_title("A point for each cancer", fontsize=9)
        ax.legend(fontsize=7)
