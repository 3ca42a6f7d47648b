"""lab.commands.he2rna.signatures"""

from pathlib import Path

import numpy as np

import he2rna
import stats
from lab.cohort.expression import as_symbols, read_gene_table
from lab.commands.options import natural
from lab.files import InputError, few, save_csv, save_text, whole_arrays
from lab.gene_sets import read_sets
from lab.he2rna.evaluation import code_of, separate
from lab.he2rna.gene_sets import pick_signatures, read_results
from lab.he2rna.runs import gene_set_options
from lab.progress import table
from lab.show.plots import figure, need_matplotlib


def plot_signatures(path, observed, chance, names, n_cancers, label):
    """Each signature in each cancer: its value against that of random lists, with the identity line (Fig. 3)."""
    ends = [np.nanmin([observed, chance]), np.nanmax([observed, chance])]
    with figure(path, figsize=(6.4, 5)) as ax:
        for i, name in enumerate(names):
            ax.scatter(chance[i], observed[i], s=16, label=name, color=f"C{i % 10}")
        ax.plot(ends, ends, "k:", lw=0.8)
        ax.set(xlabel=f"{label} of random lists", ylabel=f"{label} of the signature")
        ax.set_title(f"{n_cancers} cancer{'s' * (n_cancers > 1)}, a point each", fontsize=9)
        ax.legend(fontsize=7)


def run(o):
    """Are the genes of a pathway better predicted than random lists of as many genes? (Fig. 3)"""
    need_matplotlib()
    genes, results = read_results(o.run)
    if o.lists < 1:
        raise InputError(f"--lists {o.lists}: must be at least 1")
    names, note = as_symbols(genes, read_gene_table(o.gene_table)[0] if o.gene_table else {})
    wanted, projects = (
        pick_signatures(o.signature, read_sets(o.gmt)),
        separate(results, code_of(o.run)),
    )
    r = np.stack([results[p]["r"] for p in projects], 1)  # (G, P)
    significant = np.stack([results[p][o.correction] for p in projects], 1)
    members = np.array(
        [np.isin(names, list(g)) if g else np.zeros(len(names), bool) for g, _ in wanted.values()]
    )  # (S, G)
    z = whole_arrays(Path(o.run) / "predictions.npz", genes="UG", truth="fSG")
    level, rng = dict(zip(z["genes"].tolist(), z["truth"].mean(0))), np.random.default_rng(o.seed)
    lost = [g for g in genes if not np.isfinite(level.get(g, np.nan))]
    if lost:
        raise InputError(
            f"{o.run}: predictions.npz has no expression of {few(lost)}, which genes.csv has: run the "
            "command that made both again"
        )
    bins = stats.expression_bins(np.array([level[g] for g in genes]))
    plain, matched = (
        stats.random_list_test(r, significant, members, o.lists, rng, b) for b in (None, bins)
    )
    columns = {
        "R_p": plain["r"],
        "R_o": plain["r_random"],
        "p": plain["p_r"],  # each (S, P)
        "f_p": plain["share"],
        "f_o": plain["share_random"],
        "p (share)": plain["p_share"],
        "R_o matched": matched["r_random"],
        "p matched": matched["p_r"],
        "f_o matched": matched["share_random"],
        "p (share) matched": matched["p_share"],
    }
    header = ("signature", "cancer", "genes in it", "with R", *columns)
    rows = [
        (
            name,
            p,
            len(g),
            plain["size"][i, c],
            *("" if np.isnan(v[i, c]) else f"{v[i, c]:.4g}" for v in columns.values()),
        )
        for i, (name, (g, _)) in enumerate(wanted.items())
        for c, p in enumerate(projects)
    ]
    folder = Path(o.run) / "signatures"
    save_csv(folder / "signatures.csv", header, rows)
    for k, label in (("r", "mean R"), ("share", "share of significant genes")):
        if np.isfinite(plain[k]).any():
            plot_signatures(
                folder / f"{k}.png",
                plain[k],
                plain[k + "_random"],
                list(wanted),
                len(projects),
                label,
            )
    beaten = [
        (
            name,
            f"{(t['p_r'][i] < he2rna.ALPHA).sum()} and {(t['p_share'][i] < he2rna.ALPHA).sum()}",
            which,
        )
        for i, name in enumerate(wanted)
        for t, which in ((plain, "any genes"), (matched, "genes of like expression"))
        if t["size"][i].any()
    ]
    empty = [name for i, name in enumerate(wanted) if not plain["size"][i].any()]
    remarks = (
        [f"- {name}: {line}" for name, (_, line) in wanted.items() if line]
        + [f"- {name}: no gene of it was measured; no test" for name in empty]
        + [f"- {note}"] * bool(note)
    )
    save_text(
        folder / "report.md",
        [
            f"# Signatures in {o.run}",
            "",
            f"{len(genes):,} genes, {len(projects)} cancers; {o.lists:,} random lists of the "
            "same length. R_p, f_p: mean R and share of significant genes of the signature; R_o, f_o: of the lists; p: share of "
            "lists (and the signature) that reach it, not corrected for the number of tests. matched: lists of genes of like "
            "mean expression. The genes of a signature vary together, those of a list do not: p tells that these genes stand "
            "out, not that their pathway would again. Who saw whom: the signatures, published sets, no patient of this run; the "
            "mean expression all of them, by design, for it judges and nothing learns from it.",
            "",
            *remarks,
            "",
            table(header, rows),
            "",
            "![R](r.png) ![Share](share.png)",
            "",
            f"## In how many of {len(projects)} cancers p < {he2rna.ALPHA} (mean R and share)",
            "",
            table(("signature", "cancers", "against"), beaten),
            "",
        ],
    )
    print("\n".join([table(header, rows), *remarks, f"report: {folder / 'report.md'}"]))
    return 0


def options(parser):
    gene_set_options(parser)
    a = parser.add_argument
    a(
        "--signature",
        action="append",
        metavar="NAME[=SET,SET..]",
        help="genes in at least two of the sets; a set's "
        f"name; or one of the paper's: {', '.join(stats.SIGNATURES)} (default: those and housekeeping sets); may be "
        "given again",
    )
    a(
        "--lists",
        type=int,
        default=stats.N_LISTS,
        help=f"random lists (default {stats.N_LISTS:,}, the paper's)",
    )
    a("--seed", type=natural, default=0, help="of the random lists (default 0)")
