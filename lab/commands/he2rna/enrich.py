"""python he2rna.py enrich RUN --gmt FILE...: which pathways the well-predicted genes belong to.

Fisher's exact test of every gene set over the tested genes, Benjamini-Hochberg over the sets: of
the significant genes of each cancer, of those significant in several cancers, or of those with a
high R. [HE2RNA Fig. 2c-e] It takes seconds. Writes RUN/enrichment/: report.md, a .csv and a .png
for each test.
"""

import re
from pathlib import Path

import numpy as np

import he2rna
from lab.cohort.expression import as_symbols, read_gene_table
from lab.cohort.genes import as_in_sets
from lab.commands.he2rna.options import count, gene_set_options
from lab.files import InputError, digest, save_text
from lab.gene_sets import enrich, read_sets
from lab.he2rna.evaluation import code_of
from lab.he2rna.gene_sets import read_results
from lab.provenance import of_folder, warning
from lab.show.plots import need_matplotlib


def options(parser):
    a = parser.add_argument
    gene_set_options(a)
    a("--project", metavar="P", help="one cancer (default: each)")
    a(
        "--min-r",
        type=float,
        metavar="R",
        help="hits are the genes with an R above it instead (the paper: .4 where very many are "
        "significant)",
    )
    a(
        "--at-least",
        type=count,
        default=1,
        metavar="C",
        help="hits are those of at least C cancers (default: each cancer apart)",
    )


def run(o):
    need_matplotlib()
    genes, results = read_results(o.run)
    symbols, coding = read_gene_table(o.gene_table) if o.gene_table else ({}, None)
    names, note = as_symbols(genes, symbols)
    sets = read_sets(o.gmt)
    names, remark = as_in_sets(names, sets)
    note = "; ".join(filter(None, (note, remark)))
    what, groups = hits_by_group(o, results)

    folder = Path(o.run) / "enrichment"
    test = f"Fisher's exact test, one-sided, of {len(sets):,} sets over the tested genes"
    about = f"Hits: genes {what}. {test}; BH over the sets. {note}"
    words = of_folder(o.run)
    lines = [f"# Enrichment in {o.run}", "", *warning(words), about, ""]
    for group, (hit, tested) in groups.items():
        universe = [name for name, has_r in zip(names, tested) if has_r and name]
        hits = [name for name, found in zip(names, hit & tested) if found and name]
        said = f"{group}: {len(hits):,} hits of {len(universe):,} tested genes"
        if coding is not None:
            said += f", {sum(hit in coding for hit in hits):,} of them protein-coding"
        file = re.sub(r"[^\w-]", "_", group)[:99]
        file += "" if file == group else f"-{digest(group)[:6]}"  # two never share one
        lines += [f"## {group}", "", *enrich(folder, file, said, hits, sets, universe, words)]
    save_text(folder / "report.md", lines)
    if note:
        print(note)
    print(f"report: {folder / 'report.md'}")
    return 0


def hits_by_group(o, results):
    """What makes a hit, in words, and {group: (hits, tested genes), both (G,) bool}."""
    name = he2rna.short(o.project or "")
    if name and name not in results:
        raise InputError(f"--project {o.project}: the run has {', '.join(results)}")
    cancers = [name] if name else he2rna.separate(results, "merged" not in code_of(o.run))
    groups = {cancer: [cancer] for cancer in cancers}
    what = f"significant ({o.correction.upper()})" if o.min_r is None else f"R above {o.min_r:g}"
    if o.at_least > 1:
        groups = {f"at-least-{o.at_least}": cancers}
        what += f" in at least {o.at_least} cancers"
    tests = {}
    for group, names in groups.items():
        r = np.array([results[name]["r"] for name in names])  # (P, G)
        significant = np.array([results[name][o.correction] for name in names])
        tests[group] = he2rna.well_predicted(r, significant, o.at_least, o.min_r)
    return what, tests
