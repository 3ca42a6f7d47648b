"""What a cohort gives HE2RNA to learn from: slides with expression, their folds, their bags."""

from dataclasses import dataclass, field

import numpy as np

import he2rna
from lab.audit.ledger import encoder_saw, saw
from lab.cohort.check import read_checked
from lab.cohort.expression import as_symbols, read_gene_table
from lab.cohort.features import features_of, source_name
from lab.cohort.samples import read_samples, select
from lab.cohort.supertiles import make_supertiles, of_supertiles
from lab.files import InputError
from lab.findings import Findings
from lab.he2rna.bags import load_bags
from lab.he2rna.folds import authors_roles, check_folds, folds_of
from lab.processes import share_out
from lab.progress import report_failures, say_left_out

GENES_AT_ONCE = 4096  # whose median is looked at together, for memory  [ours]


@dataclass
class CohortData:
    """The slides that a run learns from and is judged on, and what is known of them."""

    slides: np.ndarray  # (S,) names
    patients: np.ndarray  # (S,)
    projects: np.ndarray  # (S,)
    fold: np.ndarray  # (S,) the fold that tests the slide
    y: np.ndarray  # (S, G) float32, log10(1 + FPKM-UQ)
    genes: list
    left_out: dict  # {what: names}
    failed: dict  # {slide: why}
    ledgers: list  # of each fold: {step: the patients it learned from}
    encoder: list | None  # patients whose tiles the encoder learned from; None: not known
    learned_as: dict  # {slide: what a run remembers of its features}
    chooses: dict = field(default_factory=dict)  # {patient: folds whose epoch he or she chooses}
    tested: list | None = None  # test patients of each fold, where they are not those of `fold`
    genes_in_table: int | None = None
    coding: np.ndarray | None = None  # (G,) bool, protein-coding genes
    coding_note: str = ""
    targets: np.ndarray | None = None  # (S, G + m): y, and the decoys that are learned beside it

    def __post_init__(self):
        if self.targets is None:
            self.targets = self.y
        if self.tested is None:
            folds = range(len(self.ledgers))
            self.tested = [sorted({*self.patients[self.fold == f].tolist()}) for f in folds]


def learn_beside(data, decoys):
    """Put decoys (S, m) behind the genes; y becomes a view, so that it is held once."""
    if decoys.shape[1]:
        data.targets = np.hstack([data.y, decoys])
        data.y = data.targets[:, : len(data.genes)]
        for ledger in data.ledgers:
            saw(ledger, "decoys", data.patients)


def rows_of(samples, fold, y):
    """The columns of CohortData that samples.csv, the folds and the expression table give."""
    columns = {c + "s": np.array([s[c] for s in samples]) for c in ("slide", "patient", "project")}
    return dict(columns, fold=fold, y=y.astype(np.float32))


def read_cohort(cohort, o):
    """All that training needs, checked in the order of its cost: tables, folds, then slides.

    -> (CohortData, x (S, T, D), mask (S, T)). Folds are of all projects, then one is selected, so
    that those of one organ agree with those of all. [HE2RNA Methods, Training and evaluation]
    """
    samples, wrong_type = select(read_samples(cohort), o.types, None)
    genes, a, (samples, rows, unmatched) = read_checked(Findings(), cohort, samples, o)
    left_out = say_left_out({**wrong_type, **unmatched})
    fold = folds_of(samples, o)
    chooses = {}
    if "folds" in o.code and o.valid:
        _, chooses = authors_roles([s["patient"] for s in samples])
    keep, failed = ready_slides(cohort, samples, o)
    samples = [s for s, kept in zip(samples, keep) if kept]
    rows, fold = rows[keep], fold[keep]
    check_folds(cohort, samples, fold, o, failed)

    kept = genes_to_learn(cohort, a, np.unique(rows), o.code)  # over samples, not slides
    ledger = {}
    if "genes" not in o.code:
        saw(ledger, "gene filter", [s["patient"] for s in samples])
    data = CohortData(
        **rows_of(samples, fold, he2rna.log_expression(a[np.ix_(rows, kept)])),
        genes=[genes[j] for j in kept],
        left_out=left_out,
        failed=failed,
        ledgers=[dict(ledger) for _ in range(o.folds)],
        encoder=encoder_saw(cohort, features_of(o)),
        learned_as={s["slide"]: of_supertiles(cohort, o, s["slide"]) for s in samples},
        chooses=chooses,
        genes_in_table=len(genes),
    )
    return data, *load_bags(cohort, source_name(o), data.slides.tolist())


def ready_slides(cohort, samples, o):
    """Make the super-tiles of the projects asked for -> (which samples have them (n,), failed)."""
    chosen = [s["slide"] for s in select(samples, "all", o.project)[0]]
    failed = share_out(make_supertiles, cohort, chosen, o)
    ready = set(chosen) - set(failed)
    if not ready:
        report_failures(failed, len(chosen))
        raise InputError(f"{cohort}: no slide is left to train on")
    return np.array([s["slide"] in ready for s in samples]), failed


def genes_to_learn(cohort, a, rows, code):
    """Numbers of the genes of positive median over some rows of a (n, genes); the authors: all."""
    if "genes" in code:
        return np.arange(a.shape[1])
    starts = range(0, a.shape[1], GENES_AT_ONCE)  # the table may be half of the memory
    blocks = [he2rna.expressed(a[rows, start : start + GENES_AT_ONCE]) for start in starts]
    kept = np.flatnonzero(np.concatenate(blocks))
    if not len(kept):
        raise InputError(f"{cohort}: no gene has a positive median over its {len(rows)} samples")
    return kept


def read_coding(path):
    """--gene-table: ({id: symbol}, names of protein-coding genes); None without the option."""
    if path is None:
        return None
    symbols, coding = read_gene_table(path)
    if coding is None:
        why = "it has no column biotype to count protein-coding genes by"
        raise InputError(f"--gene-table {path}: {why}")
    return symbols, coding


def mark_coding(data, symbols, coding):
    """Say in `data` which of its genes are protein-coding."""
    names, data.coding_note = as_symbols(data.genes, symbols)
    data.coding = np.isin(names, list(coding))
