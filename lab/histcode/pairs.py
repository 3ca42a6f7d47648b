"""Patients with tumour and matched normal expression, and the genes whose fold change is known."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from histcode import fold_change
from lab.application import pick_genes
from lab.audit.ledger import saw
from lab.cohort.check import check_cohort
from lab.cohort.expression import read_expression, rows_told
from lab.cohort.genes import as_spelled
from lab.cohort.names import who
from lab.cohort.samples import TISSUES, barcode, read_samples
from lab.files import InputError, few, number, read_rows
from lab.findings import Findings
from lab.histcode.bags import tissue_of, tissue_words
from lab.histcode.options import DRIVERS

FEWEST = 3  # pairs: one trains, one chooses the epoch, one tests [ours]


@dataclass
class Pairs:
    """P patients who have tumour and normal expression of G genes, and slides."""

    patients: np.ndarray  # (P,) names
    slides: list  # of each patient, the slides whose tiles stand for the pair
    genes: list  # (G,) names
    y: np.ndarray  # (P, G) log10(fc + 1), nan where unknown
    label: np.ndarray  # (P, G) whether |log2 fc| > 1.5, nan where unknown
    known: dict  # {slide: (patient, 1 tumour or 0 normal)}: all that can teach where to look
    left_out: dict  # {why: names}; this and the ledger are one for all that is chosen of the pairs
    words: str = ""  # which words of samples.csv are tumour, and which normal
    ledger: dict = field(default_factory=dict)  # {step: patients that it saw}

    def of_genes(self, columns):
        """These genes alone."""
        names = [self.genes[j] for j in columns]
        return replace(self, genes=names, y=self.y[:, columns], label=self.label[:, columns])

    def with_slides(self, names):
        """The pairs that have all of their slides among `names`; the others are left out."""
        names = set(names)
        whole = np.array([names.issuperset(slides) for slides in self.slides], bool)
        self.left_out["pairs of which a slide failed"] = self.patients[~whole].tolist()
        return replace(
            self,
            patients=self.patients[whole],
            slides=[self.slides[i] for i in np.flatnonzero(whole)],
            y=self.y[whole],
            label=self.label[whole],
        )


def bags_of_pairs(pairs, slides):
    """The pairs in the form of lab.histcode.bags: of each all tiles of its slides."""
    at = {name: i for i, name in enumerate(slides["names"])}
    rows = [[at[name] for name in names] for names in pairs.slides]
    sums = []
    for own in rows:
        parts = zip(*(slides["sums"][i] for i in own), strict=True)
        sums.append([sum(part) for part in parts])
    return {
        "names": pairs.patients,
        "patients": pairs.patients,
        "bag": lambda i: np.concatenate([slides["bag"](j) for j in rows[i]]),
        "sums": sums,
        "n_features": slides["n_features"],
    }


def pairs_of(cohort, which="tumour", o=None, scale=None):
    """The Pairs of a cohort folder. which: the slides that stand for a patient, tumour or both;
    o: options that name the features, which are checked before anything is made of them; scale: of
    the expression table.

    Several samples of a patient count as their mean. A normal sample needs no slide, if its name is
    a TCGA barcode, which says patient and tissue, or he2rna.py expression told whose it is.
    """
    samples = read_samples(cohort)
    found = Findings()
    tissue = found.of(tissue_of, samples, cohort)
    table = found.of(read_expression, cohort, scale, found.warn)
    owner = tissue and table and found.of(owners, cohort, samples, tissue, table[0])
    check_cohort(found, cohort, samples, o, table)
    found.tell(cohort)
    _, ids, genes, expression = table
    rows = {1: {}, 0: {}, None: {}}  # {tissue: {patient: rows of the expression table}}
    called = {who(s["patient"]): s["patient"] for s in samples}
    told = {}
    for name, (patient, kind) in rows_told(cohort).items():
        told[name] = patient, TISSUES.get(kind.lower())
    for name, row in sorted(zip(ids, range(len(ids)))):  # a mean's last digit knows the order
        patient, kind = owner.get(name) or told.get(name) or barcode(name)
        rows[kind].setdefault(called.get(patient, patient), []).append(row)
    slides, known, neither = {}, {}, []
    for s, kind in zip(samples, tissue, strict=True):
        if kind is None:
            neither.append(s["slide"])
            continue
        known[s["slide"]] = (s["patient"], kind)
        if kind == 1 or which == "both":
            slides.setdefault(s["patient"], []).append(s["slide"])
    tumour, normal, seen = set(rows[1]), set(rows[0]), set(slides)
    patients = sorted(tumour & normal & seen)
    if len(patients) < FEWEST:
        raise InputError(
            f"{cohort}: {len(patients)} patients have tumour and normal expression and a slide; at "
            f"least {FEWEST} are needed, to train, validate and test ({len(tumour)} have tumour, "
            f"{len(normal)} normal expression, {len(seen)} slides)"
        )
    means = []
    for kind in (1, 0):
        each = [expression[rows[kind][who]].mean(0, dtype=np.float64) for who in patients]
        means.append(np.stack(each))
    y, label = fold_change(*means)
    left_out = {
        "patients with tumour but no normal expression": sorted(tumour - normal),
        "patients with normal but no tumour expression": sorted(normal - tumour),
        "patients with both but no slide": sorted((tumour & normal) - seen),
        "expression rows of no known patient or tissue": sorted(
            ids[row] for own in rows[None].values() for row in own
        ),
        "slides that are neither tumour nor normal": neither,
    }
    slides = [slides[who] for who in patients]
    said = tissue_words(samples, tissue)
    return Pairs(np.array(patients), slides, genes, y, label, known, left_out, said)


def owners(cohort, samples, tissue, key):
    """{row of the expression table: (patient, 1 tumour or 0 normal)}, as samples.csv says.

    key: the column of samples.csv that names those rows; "" where the table does not say.
    """
    key = key or ("sample" if "sample" in samples[0] else "slide")
    if key not in samples[0]:
        raise InputError(
            f"{cohort}/expression: its rows are samples, but samples.csv has no column sample"
        )
    owner = {}
    for s, kind in zip(samples, tissue, strict=True):
        name, whose = s[key], (s["patient"], kind)
        if name and owner.setdefault(name, whose) != whose:
            raise InputError(
                f"{cohort}/samples.csv: {key} {name} is {owner[name]} and {whose} (patient, tumour "
                "1 or normal 0): its expression can't be both's"
            )
    return owner


def chosen_genes(pairs, genes="all", drivers=None, top=DRIVERS):
    """The pairs with the genes asked for, less those that nothing can be learned of.

    A gene needs a fold change in half of the pairs, and not the same one in all of them. [ours]
    """
    if drivers:
        asked = columns_of_drivers(pairs, drivers, top)
    else:
        asked = pick_genes(genes, pairs.genes, "the expression table")
    pairs = pairs.of_genes(asked)
    known = ~np.isnan(pairs.y)
    lowest = np.where(known, pairs.y, np.inf).min(0)
    highest = np.where(known, pairs.y, -np.inf).max(0)
    usable = (known.sum(0) >= max(FEWEST, len(known) / 2)) & (highest > lowest)
    if not usable.any():
        raise InputError(
            f"no gene of {len(asked)} has a fold change in half of the {len(known)} pairs"
        )
    saw(pairs.ledger, "gene filter", pairs.patients)
    pairs.left_out[
        "genes whose fold change is unknown in more than half of the pairs (no expression in "
        "normal tissue), or does not vary"
    ] = [pairs.genes[j] for j in np.flatnonzero(~usable)]
    return pairs.of_genes(np.flatnonzero(usable))


def columns_of_drivers(pairs, path, top):
    """Columns of the `top` genes of a compendium; those without expression are left out."""
    wanted = as_spelled(driver_genes(path, top), pairs.genes)
    column = {gene: j for j, gene in enumerate(pairs.genes)}
    missing = [gene for gene in wanted if gene not in column]
    pairs.left_out[f"of the {len(wanted)} driver genes, without expression"] = missing
    if len(missing) == len(wanted):
        raise InputError(
            f"--drivers {path}: none of its genes ({few(wanted, 3)}) is in the expression table, "
            f"which has {few(pairs.genes, 3)}"
        )
    return [column[gene] for gene in wanted if gene in column]


def driver_genes(path, top):
    """The `top` most mutated genes of a compendium, mutations summed over its cohorts.

    A table with columns symbol (or gene) and mutations. [HistCode Methods, Cancer driver genes]
    """
    header, rows = read_rows(path, even=True)
    names = ["symbol" if column.lower() == "gene" else column.lower() for column in header]
    if not {"symbol", "mutations"} <= set(names):
        raise InputError(
            f"--drivers {path}: wanted columns symbol and mutations; it has {few(header)}"
        )
    symbol, mutations = names.index("symbol"), names.index("mutations")
    total = Counter()
    for row in rows:
        count = number(row[mutations])
        total[row[symbol].strip()] += 0 if math.isnan(count) else count
    del total[""]
    return sorted(total, key=lambda gene: (-total[gene], gene))[:top]
