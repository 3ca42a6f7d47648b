"""What signatures and enrich read of a finished run, and the signatures that they ask about."""

import difflib
from pathlib import Path

import numpy as np

import stats
from lab.files import InputError, few, number, read_rows

COLUMNS = ("gene", "project", "R", "significant_hs", "significant_bh")


def read_results(folder):
    """genes.csv of a run: (genes, {cancer: {"r": (G,), "hs": (G,) bool, "bh": (G,) bool}}).

    A gene without R is nan there, and not significant.
    """
    path = Path(folder) / "genes.csv"
    if not path.is_file():
        raise InputError(f"{path} is missing: give a finished run, such as COHORT/runs/he2rna")
    header, rows = read_rows(path)
    tables = {}
    try:
        places = [header.index(column) for column in COLUMNS]
        for row in rows:
            gene, cancer, r, hs, bh = (row[place] for place in places)
            tables.setdefault(cancer, {})[gene] = number(r), hs == "1", bh == "1"
    except (ValueError, IndexError):
        tables = {}
    if len({frozenset(table) for table in tables.values()}) != 1:
        raise InputError(f"{path}: not a whole genes.csv: run the command that made it again")
    genes = sorted(next(iter(tables.values())))
    results = {}
    for cancer, table in tables.items():
        columns = zip(*(table[gene] for gene in genes))
        results[cancer] = dict(zip(("r", "hs", "bh"), map(np.array, columns)))
    return genes, results


def pick_signatures(asked, sets):
    """{name: (genes, what is missing)} of the signatures asked for, by default the paper's.

    asked: 'NAME=SET,SET', the name of one of the paper's, or of a set. sets: {name: genes}. A gene
    must stand in two of several sets. [HE2RNA Methods, GSEA signatures]
    """
    housekeeping = [name for name in sets if "HOUSEKEEPING" in name.upper()]
    picked = {}
    for text in asked or [*stats.SIGNATURES, *housekeeping]:
        name, sources = sources_of(text)
        there = [source for source in sources if source in sets]
        missing = [source for source in sources if source not in sets]
        if asked and not there:
            near = difflib.get_close_matches(sources[0].upper(), list(sets), 3)
            known = few([*near, *stats.SIGNATURES])
            raise InputError(
                f"--signature {text}: the .gmt files have no such set; there are {known}"
            )
        remark = f"without {', '.join(missing)}, in none of the .gmt files" if missing else ""
        genes = ()
        if len(there) >= min(2, len(sources)):
            genes = stats.combine_sets([sets[source] for source in there])
        else:
            remark += ": two sets are needed"
        picked[name] = genes, remark
    return picked


def sources_of(text):
    """(name, its sets) of what --signature says."""
    name, _, given = text.partition("=")
    name = name.strip()
    sources = [source.strip() for source in given.split(",") if source.strip()]
    return name, sources or stats.SIGNATURES.get(name) or [name]
