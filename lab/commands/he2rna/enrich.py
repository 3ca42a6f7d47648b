"""lab.commands.he2rna.enrich"""

import re
from pathlib import Path

import numpy as np

import he2rna
import stats
from lab.cohort.expression import as_symbols, read_gene_table
from lab.files import InputError, save_text
from lab.gene_sets import enrich, read_sets
from lab.he2rna.evaluation import code_of, separate
from lab.he2rna.gene_sets import read_results
from lab.he2rna.runs import gene_set_options
from lab.show.plots import need_matplotlib


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
        coding = (
            f", {sum(h in known_coding for h in hits):,} of them protein-coding"
            if known_coding is not None
            else ""
        )
        line = f"{name}: {len(hits):,} hits of {len(universe):,} tested genes{coding}"
        file = re.sub(r"[^\w.-]", "_", name)
        text += [f"## {name}", "", *enrich(folder, file, line, hits, sets, universe)]
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
