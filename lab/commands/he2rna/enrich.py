"""lab.commands.he2rna.enrich"""

import math
import re
from pathlib import Path

import numpy as np

import he2rna
import stats
from lab.cohort.expression import as_symbols, read_gene_table
from lab.files import InputError, save_csv, save_text
from lab.he2rna.evaluation import code_of, separate
from lab.he2rna.gene_sets import read_results, read_sets
from lab.he2rna.runs import gene_set_options
from lab.progress import table
from lab.show.plots import BLUE, ORANGE, figure, need_matplotlib


def run(o):
    """Which pathways the well-predicted genes belong to: Fisher's exact test of every set, Benjamini-Hochberg (Fig. 2c-e)."""
    need_matplotlib()
    genes, results = read_results(o.run)
    symbol, known_coding = read_gene_table(o.gene_table) if o.gene_table else ({}, None)
    (names, note), sets, projects = (
        as_symbols(genes, symbol),
        read_sets(o.gmt),
        separate(results, code_of(o.run)),
    )
    if o.min_r is not None and not -1 <= o.min_r <= 1:
        raise InputError(f"--min-r {o.min_r:g}: an R lies between -1 and 1")
    if o.at_least is not None and not 1 <= o.at_least <= len(projects):
        raise InputError(
            f"--at-least {o.at_least}: the run has {len(projects)} cancer{'s' * (len(projects) > 1)}"
        )
    if o.at_least is not None and (o.project or o.min_r is not None):
        raise InputError("--at-least counts over all cancers: leave --project and --min-r out")
    groups = {}
    if o.at_least is not None:
        counted, _ = stats.recurrent(np.array([results[p][o.correction] for p in projects]))
        measured = np.any([~np.isnan(results[p]["r"]) for p in projects], axis=0)
        groups[f"at-least-{o.at_least}"] = counted >= o.at_least, measured
    else:
        asked = [he2rna.short(o.project)] if o.project else projects
        if asked[0] not in results:
            raise InputError(f"--project {o.project}: the run has {', '.join(results)}")
        for p in asked:
            r, significant = results[p]["r"], results[p][o.correction]
            groups[p] = (
                np.nan_to_num(r, nan=-2) > o.min_r if o.min_r is not None else significant,
                ~np.isnan(r),
            )
    what = (
        f"significant ({o.correction.upper()}) in at least {o.at_least} cancers"
        if o.at_least is not None
        else f"R above {o.min_r:g}"
        if o.min_r is not None
        else f"significant ({o.correction.upper()})"
    )
    folder = Path(o.run) / "enrichment"
    text = [
        f"# Enrichment in {o.run}",
        "",
        f"Hits: genes {what}. Fisher's exact test, one-sided, of {len(sets):,} sets "
        f"over the tested genes; BH over the sets. {note}",
        "",
    ]
    for name, (hit, tested) in groups.items():
        universe = [n for n, t in zip(names, tested) if t and n]
        hits = [n for n, h in zip(names, hit & tested) if h and n]
        e = stats.enrichment(hits, sets, universe)
        order = np.lexsort((-np.nan_to_num(e["fold"]), np.nan_to_num(e["p"], nan=2)))
        keys, inside, file = list(sets), set(hits), re.sub(r"[^\w.-]", "_", name)
        save_csv(
            folder / f"{file}.csv",
            ("set", "genes tested", "hits", "expected", "fold", "p", "p_bh", "hit genes"),
            (
                (
                    keys[i],
                    e["size"][i],
                    e["overlap"][i],
                    f"{e['expected'][i]:.4g}",
                    *(
                        "" if np.isnan(v) else f"{v:.4g}"
                        for v in (e["fold"][i], e["p"][i], e["bh"][i])
                    ),
                    " ".join(g for g in sets[keys[i]] if g in inside),
                )
                for i in order
            ),
        )
        best, found = (
            [i for i in order[:15] if e["overlap"][i]],
            int((e["bh"] < he2rna.ALPHA).sum()),
        )
        coding = (
            f", {sum(h in known_coding for h in hits):,} of them protein-coding"
            if known_coding is not None
            else ""
        )
        line = (
            f"{name}: {len(hits):,} hits of {len(universe):,} tested genes{coding}; {found} of "
            f"{(~np.isnan(e['p'])).sum():,} sets with a tested gene at BH < {he2rna.ALPHA}"
        )
        for i in best[:1]:
            line += (
                f"; first: {keys[i]} ({e['overlap'][i]} of {e['size'][i]}, p (BH) {e['bh'][i]:.2g})"
            )
        print(line)
        text += [
            f"## {name}",
            "",
            line + ".",
            "",
            table(
                ("set", "hits", "tested", "expected", "p", "p (BH)"),
                [
                    (
                        keys[i],
                        e["overlap"][i],
                        e["size"][i],
                        f"{e['expected'][i]:.1f}",
                        f"{e['p'][i]:.2g}",
                        f"{e['bh'][i]:.2g}",
                    )
                    for i in best
                ],
            ),
            "",
        ]
        if best:
            with figure(folder / f"{file}.png", figsize=(8, 0.7 + 0.28 * len(best))) as ax:
                ax.barh(range(len(best)), -np.log10(np.maximum(e["bh"][best], 1e-300)), color=BLUE)
                ax.axvline(-math.log10(he2rna.ALPHA), color=ORANGE, lw=1)
                labels = [f"{keys[i][:60]} ({e['overlap'][i]}/{e['size'][i]})" for i in best]
                ax.set_yticks(range(len(best)), labels, fontsize=7)
                ax.invert_yaxis()
                ax.set_xlabel("−log$_{10}$ p, Benjamini–Hochberg; line: .05")
            text += [f"![{name}]({file}.png)", ""]
    save_text(folder / "report.md", text)
    print((f"{note}\n" if note else "") + f"report: {folder / 'report.md'}")
    return 0


def options(parser):
    gene_set_options(parser)
    a = parser.add_argument
    a("--project", metavar="P", help="one cancer (default: each)")
    a(
        "--min-r",
        type=float,
        metavar="R",
        help="hits are the genes with an R above it instead (the paper: .4 where "
        "very many are significant)",
    )
    a(
        "--at-least",
        type=int,
        metavar="C",
        help="hits are the genes significant in at least C cancers",
    )
