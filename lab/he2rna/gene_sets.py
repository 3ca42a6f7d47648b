"""lab.he2rna.gene_sets"""

import difflib
from pathlib import Path

import numpy as np

import stats
from lab.files import InputError, few, number, read_rows


# Signatures and enrichment  [HE2RNA Results; Methods, GSEA signatures, Statistics and reproducibility; Fig. 2c-e, 3]
def read_results(folder):
    """genes.csv of a run: (genes, {cancer: dict of r (G,), hs and bh (G,) bool}); a gene without R is nan and False."""
    path, tables = Path(folder) / "genes.csv", {}
    if not path.is_file():
        raise InputError(
            f"{path} is missing: give the folder of a finished run, such as COHORT/runs/he2rna"
        )
    header, rows = read_rows(path)
    if not {"gene", "project", "R", "significant_hs", "significant_bh"} <= set(header) or not rows:
        raise InputError(f"{path}: not the genes.csv of a run; it has the columns {few(header)}")
    odd = next((row for row in rows if len(row) != len(header)), None)
    gene, project, r, hs, bh = (
        header.index(c) for c in ("gene", "project", "R", "significant_hs", "significant_bh")
    )
    for row in rows if odd is None else ():
        tables.setdefault(row[project], {})[row[gene]] = (
            number(row[r]),
            row[hs] == "1",
            row[bh] == "1",
        )
    if len({frozenset(table) for table in tables.values()}) != 1:
        why = (
            "its cancers have different genes"
            if odd is None
            else f"{','.join(odd)[:40]!r} is no row of it"
        )
        raise InputError(f"{path}: not whole, {why}: run the command that made it again")
    genes = sorted(next(iter(tables.values())))
    return genes, {
        name: dict(zip(("r", "hs", "bh"), map(np.array, zip(*(table[g] for g in genes)))))
        for name, table in tables.items()
    }


def pick_signatures(asked, sets):
    """{name: (genes, line on what is missing)}: the paper's six and housekeeping genes, or 'NAME=SET,SET', or a set's
    name."""
    wanted = {}
    for text in asked or [*stats.SIGNATURES, *(n for n in sets if "HOUSEKEEPING" in n.upper())]:
        name, _, parts = text.partition("=")
        sources = (
            [p.strip() for p in parts.split(",") if p.strip()]
            or stats.SIGNATURES.get(name.strip())
            or [name.strip()]
        )
        there = [p for p in sources if p in sets]
        if asked and not there:
            near = difflib.get_close_matches(sources[0].upper(), list(sets), 3)
            nearest = f"; nearest: {', '.join(near)}" if near else ""
            raise InputError(
                f"--signature {text}: the .gmt files have no set {', '.join(sources)}{nearest}; built in: "
                + ", ".join(stats.SIGNATURES)
            )
        missing = [p for p in sources if p not in sets]
        enough = len(there) >= min(2, len(sources))  # a gene must stand in two of several sets
        line = f"without {', '.join(missing)}, in none of the .gmt files" + (
            "" if enough else ": two sets are needed"
        )
        wanted[name.strip()] = (
            stats.combine_sets([sets[p] for p in there]) if enough else (),
            line if missing else "",
        )
    return wanted
