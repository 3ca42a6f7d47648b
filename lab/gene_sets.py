"""Gene sets of .gmt files, and which of them are enriched among some genes.

[HE2RNA Fig. 2c-e; HistCode Fig. 9]
"""

import re
import zlib

import numpy as np

import stats
from lab.files import InputError, one_line, save_csv, unpacked
from lab.progress import table
from lab.provenance import marked
from lab.show.plots import BLUE, ORANGE, drawable, figure
from lab.words import tidy

ALPHA = 0.05  # after Benjamini-Hochberg over the sets [HE2RNA Methods; HistCode Results]
SHOWN = 10  # sets in picture and report [HistCode Fig. 9: "the top 10 enriched signaling pathways"]
COLUMNS = ("set", "genes tested", "hits", "expected", "fold", "p", "p_bh", "hit genes")


def read_sets(paths):
    """{set name: (gene, ...)} of .gmt files, plain or gzip.

    A line is a name, a description and genes, between tabs. A gene that stands twice in a set
    counts once; a set may be empty. A name that stands twice, in one file or two, must have the
    same genes.
    """
    sets, places = {}, {}
    for path in paths:
        found = False
        for place, line in lines_of(path):
            name, *fields = map(tidy, line.split("\t"))
            if not name and not any(fields):
                continue
            if not name or not fields:
                raise InputError(
                    f"--gmt: {place}: wanted a name, a description and genes between tabs, found "
                    f"{line.strip()[:40]!r}"
                )
            found, name = True, one_line(name)
            genes = tuple(dict.fromkeys(gene for gene in fields[1:] if gene))
            if set(genes) != set(sets.setdefault(name, genes)):
                raise InputError(
                    f"--gmt: {place}: set {name!r} stands in {places[name]} too, with different "
                    "genes"
                )
            places.setdefault(name, place)
        if not found:
            raise InputError(f"--gmt: {path}: no gene set in it")
    return sets


def lines_of(path):
    """("path, line n", line) of a text file, plain or gzip, with any line ends."""
    try:
        text = unpacked(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"--gmt: {path}: not a text file in UTF-8") from None
    except (OSError, EOFError, zlib.error) as e:
        why = e.strerror if isinstance(e, FileNotFoundError) else f"can't be read ({e})"
        raise InputError(f"--gmt: {path}: {why}") from None
    for i, line in enumerate(re.split("\r\n|\r|\n", text)):
        yield f"{path}, line {i + 1}", line


def enrich(folder, name, what, hits, sets, universe, words=(), shown=SHOWN):
    """Test every set for the hits among the tested genes -> lines of a report; the first is
    printed.

    Writes FOLDER/NAME.csv with all sets and NAME.png with the best. what: hits and universe in
    words; hits, universe: names of genes; sets: {name: genes}; words: of lab.provenance.
    """
    found = stats.enrichment(hits, sets, universe)
    names = list(sets)
    order = np.lexsort((-np.nan_to_num(found["fold"]), found["p"]))  # without p: last
    write_table(folder / f"{name}.csv", sets, set(hits), found, order, words)
    best = [i for i in order[:shown] if found["overlap"][i]]
    tested = (found["size"] > 0).sum()
    significant = (found["bh"] < ALPHA).sum()
    line = f"{what}; {significant:,} of {tested:,} sets with a tested gene at BH < {ALPHA}"
    for i in best[:1]:
        hit, size, bh = found["overlap"][i], found["size"][i], found["bh"][i]
        line += f"; first: {names[i]} ({hit} of {size}, p (BH) {bh:.2g})"
    print(line)
    if not best:
        return [f"{line}.", ""]
    draw(folder / f"{name}.png", line, names, found, best, words)
    return [f"{line}.", "", short_table(names, found, best), "", f"![Gene sets]({name}.png)", ""]


def write_table(path, sets, hits, found, order, words):
    """A row a set, the smallest p first; a set without a tested gene has no p."""
    rows = []
    names = list(sets)
    for i in order:
        figures = [found[key][i] for key in ("fold", "p", "bh")]
        rows.append(
            (
                names[i],
                found["size"][i],
                found["overlap"][i],
                f"{found['expected'][i]:.4g}",
                *("" if np.isnan(v) else f"{v:.4g}" for v in figures),
                " ".join(gene for gene in sets[names[i]] if gene in hits),
            )
        )
    save_csv(path, *marked(COLUMNS, rows, words))


def short_table(names, found, best):
    """The best sets, for a report."""
    rows = []
    for i in best:
        expected, p, bh = (found[key][i] for key in ("expected", "p", "bh"))
        row = (names[i], found["overlap"][i], found["size"][i], f"{expected:.1f}", f"{p:.2g}")
        rows.append((*row, f"{bh:.2g}"))
    return table(("set", "hits", "tested", "expected", "p", "p (BH)"), rows)


def draw(path, title, names, found, best, words):
    """Bars of -log10 p of the best sets, with the line that a significant one crosses."""
    labels = []
    for i in best:
        hits, size = found["overlap"][i], found["size"][i]
        labels.append(f"{drawable(names[i], 60)} ({hits:,} of {size:,})")
    with figure(path, figsize=(8, 1.5 + 0.28 * len(best)), title=title, words=words) as ax:
        ax.barh(range(len(best)), -np.log10(np.maximum(found["bh"][best], 1e-300)), color=BLUE)
        ax.axvline(-np.log10(ALPHA), color=ORANGE, lw=1.2, label=f"p = {ALPHA}")
        ax.set_yticks(range(len(best)), labels, fontsize=8)
        ax.invert_yaxis()
        ax.set(
            xlabel="−log₁₀ p, by Benjamini–Hochberg over the sets", ylabel="set (hits of tested)"
        )
        ax.legend(loc="lower right")
