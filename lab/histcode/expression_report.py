"""What a run of `expression` found: genes.csv, its main figures in words, report.md.

`found` is what lab.histcode.expression.judge gives: a dict of (G,) arrays, a number for each gene.
"""

import numpy as np

import stats
from histcode import LOG2_FC
from lab.audit.ledger import ledger_lines, saw
from lab.cohort.genes import as_in_sets
from lab.cohort.scale import said_of_expression
from lab.files import few, save_csv, save_text
from lab.gene_sets import ALPHA, enrich
from lab.histcode.bags import left_out_lines
from lab.histcode.expression_plots import draw
from lab.progress import table
from lab.provenance import marked, warning
from lab.show.packed import Column
from lab.show.page import write_page
from lab.show.report import clauses, opening, settings_section
from lab.simulation.cohort import planted_programmes

BEST_GENES = 50  # whose gene sets are asked for [HistCode Fig. 9]
LISTED = 20  # genes in the report [ours]
TASK = "Differential expression, tumour against normal"
COLUMNS = {  # of genes.csv, and their names in `found`
    "n": "n",
    "R": "r",
    "p": "p",
    "bh": "bh",
    "p_t": "p_t",
    "R_within_folds": "r_folds",
    "spearman": "rho",
    "R_random": "baseline",
    "p_location": "location_p",
    "bh_location": "location_bh",
    "p_errors": "error_p",
    "bh_errors": "error_bh",
    "better": "better",
    "mean_fc": "fc",
    "share_label_1": "positive",
    "accuracy": "accuracy",
    "majority": "majority",
}
KINDS = {"n": "whole", "p": "p", "bh": "p"}  # in the page; of the others r
LISTED_COLUMNS = ("n", "R", "bh", "R_within_folds", "spearman", "mean_fc", "accuracy", "majority")
MAY_SEE = {  # steps that see test patients, and why they may; None: they judge [ours]
    "gene filter": "availability only: a gene needs fold changes that vary, in half of all pairs",
    "decoys": "each value given to another patient, so it says nothing of its own",
    "random baseline": None,
    "shuffled patients": None,
}


def mean(values):
    """Mean of what is known; nan where nothing is."""
    known = values[~np.isnan(values)]
    return known.mean() if len(known) else np.nan


def best_first(r):
    """Numbers of the genes by R (G,), the highest first, those without R last."""
    return np.argsort(np.where(np.isnan(r), np.inf, -r), kind="stable")


def gene_rows(genes, found, columns, order):
    """Of each gene its name and these figures, nothing where there is none."""
    for j in order:
        figures = [float(found[COLUMNS[column]][j]) for column in columns]
        yield genes[j], *("" if np.isnan(v) else f"{v:.5g}" for v in figures)


# ---- The main figures in words -------------------------------------------------------------------


def five_sentences(config, genes, found, n_pairs, knew):
    """How the report opens; knew: what a model that predicts a pair knew of it."""
    r, bh, known = found["r"], found["bh"], ~np.isnan(found["r"])
    hits = np.flatnonzero(bh < ALPHA)
    best = [j for j in best_first(r) if j in hits][:3]
    first = ", ".join(f"{genes[j]} (R {r[j]:.2f})" for j in best)
    right, common = found["accuracy"], found["majority"]
    slides = "tumour slides" if config["slides"] == "tumour" else "slides of both tissues"
    return opening(
        f"Which of {len(genes):,} genes change in a patient's tumour against her or his normal "
        f"tissue, as {slides} tell it ({config['features']['source']}, model {config['model']})?",
        f"{n_pairs} pairs of tumour and normal expression, of a patient each, and each predicted "
        f"by the model that {knew}.",
        f"{len(hits):,} of {known.sum():,} genes are predicted better than chance (BH < {ALPHA})"
        f"{': first ' * bool(best)}{first}; R has mean {mean(r):.3f} and is above .4 in "
        f"{(r > 0.4).sum():,}. Whether |log2 fc| is above {LOG2_FC} is told better than by always "
        f"the commoner label in {(right > common).sum():,} genes, worse in "
        f"{(right < common).sum():,}.",
        f"p, one-sided: {how_p(found)}.",
        clauses(
            config["provenance"],
            "that the first genes, which were chosen for their R, keep it in other patients",
            "that a high accuracy is skill, where the commoner label has it, too",
            "that slides show the gene itself, and not what goes with it, such as the share of "
            "tumour",
        ),
    )


def how_p(found):
    """Under which null p of the genes was computed."""
    if "p_of_all" in found:
        return "patients shuffled, all folds fitted anew"
    if "decoys" in found:
        return f"R of {len(found['decoys'][0])} decoys, genes whose patients changed places"
    return "that of a t, which is too small"


def sentences(found, n_pairs):
    """The run's main figures."""
    r, baseline, bh = found["r"], found["baseline"], found["bh"]
    yield (
        f"Pearson R over {n_pairs} held-out pairs: mean {mean(r):.3f}, Spearman "
        f"{mean(found['rho']):.3f}; R > .2 in {(r > 0.2).sum()}, > .4 in {(r > 0.4).sum()} of "
        f"{(~np.isnan(r)).sum()} genes; p below {ALPHA} by Benjamini-Hochberg in "
        f"{(bh < ALPHA).sum()} (p, one-sided: {how_p(found)})."
    )
    yield said_of_nulls(found)
    yield said_of_baseline(r, baseline, found.get("p_of_all"))
    differ, skill, better = found["location_bh"], found["error_bh"], found["better"]
    yield (
        "Against them gene by gene, two-sided signed-rank, BH: predictions differ in "
        f"{(differ < ALPHA).sum()} genes, as the paper words it (location, not skill); errors are "
        f"smaller in {((skill < ALPHA) & (better == 1)).sum()}, larger in "
        f"{((skill < ALPHA) & (better == 0)).sum()}."
    )
    right, common = found["accuracy"], found["majority"]
    yield (
        f"Label |log2 fc| > {LOG2_FC}: accuracy above .9 in {(right > 0.9).sum()}, above .8 in "
        f"{(right > 0.8).sum()} of {len(right)} genes; always the commoner label would have it in "
        f"{(common > 0.9).sum()} and {(common > 0.8).sum()}. Accuracy beats the commoner label in "
        f"{(right > common).sum()} genes, falls short in {(right < common).sum()}; mean "
        f"{mean(right):.3f} against {mean(common):.3f}."
    )
    yield said_of_fold_change(r, found["fc"])


def said_of_nulls(found):
    """What each p assumes."""
    t = (
        "p_t takes R for that of one sample of independent pairs, but each pair's model has "
        "learned from others that are tested too, so that R scatters more."
    )
    if "decoys" not in found:
        return t
    r = found["decoys"][0]
    return (
        f"p assumes that a gene which follows nothing could as well have been other patients': of "
        f"{len(r)} genes whose patients changed places, learned beside the others by networks "
        f"trained and stopped alike, R has mean {mean(r):.3f}, SD {np.nanstd(r):.3f}. {t}"
    )


def said_of_baseline(r, baseline, p_of_all):
    """All R against those of random predictions [HistCode Fig. 4]; p_of_all: None, or shuffled."""
    holds = "no p that holds for a network, which would have to learn anew from each order"
    if p_of_all is not None:
        holds = f"p {p_of_all:.2g} by patients shuffled, all genes of each together"
    rank_sum = stats.r_against_baseline(r, baseline)[1]
    return (
        "Random predictions between the 5 % and the 95 % of the truth: mean R "
        f"{mean(baseline):.3f}, SD {np.nanstd(baseline):.3f}. All R against theirs: {holds}. The "
        f"paper's rank-sum test of both distributions (p {rank_sum:.2g}) "
        "takes genes for independent, and is below .05 in a fifth to four fifths of studies in "
        "which there is nothing to find."
    )


def said_of_fold_change(r, fc):
    """Genes with higher fold change are predicted more precisely? [HistCode Results, Fig. 7]"""
    r, fc = (values[~np.isnan(r + fc)] for values in (r, fc))
    tie = stats.spearman(r, fc) if len(r) > 2 else np.nan
    groups = {"R > .5": r > 0.5, "R > .2": r > 0.2, "R < .2": r < 0.2}
    said = [f"{name}: {mean(fc[inside]):.3f} ({inside.sum()})" for name, inside in groups.items()]
    return (
        f"Mean fold change of genes with {', '.join(said)}; Spearman of R and mean fold change "
        f"over genes {tie:.3f}."
    )


# ---- Parts of the report -------------------------------------------------------------------------


def enriched_lines(folder, genes, r, sets, words):
    """Gene sets among the best of the genes that have an R. [HistCode Fig. 9]"""
    names, _ = as_in_sets(genes, sets)
    ranked = [names[j] for j in best_first(r) if not np.isnan(r[j])]
    best = ranked[:BEST_GENES]
    said = f"{len(best)} best of {len(ranked):,} tested genes"
    lines = enrich(folder, "enrichment", said, best, sets, ranked, words)
    return [f"## Gene sets of the {len(best)} best genes", *lines]


def planted_lines(cohort, genes, found):
    """Of a simulated cohort: how the genes of each programme were predicted."""
    programmes = planted_programmes(cohort, genes)
    if programmes is None:
        return []
    rows = []
    for name, inside in programmes.items():
        hits = (found["bh"][inside] < ALPHA).sum()
        rows.append((name, inside.sum(), f"{mean(found['r'][inside]):.3f}", hits))
    said = [f"{name} {hits} of {n} (mean R {r})" for name, n, r, hits in rows]
    print(f"SIMULATED: {'; '.join(said)}")
    return [
        "## Against what was planted",
        "SIMULATED cohort. Housekeeping and noise genes follow nothing on the slide.",
        table(("programme", "genes", "mean R", f"BH < {ALPHA}"), rows),
    ]


def who_saw_whom(folds, encoder):
    """Lines for the top of the report, and a table of all steps; encoder: whom it learned from."""
    ledgers = []
    tested = [saved["test_patients"] for saved in folds]
    for saved, patients in zip(folds, tested, strict=True):
        ledger = dict(saved["saw"])
        saw(ledger, "random baseline", patients)
        if saved["kind"] == "linear":
            saw(ledger, "shuffled patients", patients)
        ledgers.append(ledger)
    return ledger_lines(ledgers, tested, MAY_SEE, encoder)


def fold_rows(folds):
    for f, saved in enumerate(folds):
        pairs = [len(saved[f"{part}_patients"]) for part in ("train", "valid", "test")]
        yield f, *pairs, few(saved["epochs"].tolist(), 3), saved.get("penalty", "")


def gene_columns(genes, found):
    """All genes, for the page."""
    columns = [Column("gene", "word", np.arange(len(genes)), words=tuple(genes))]
    for name in ("n", "R", "p", *LISTED_COLUMNS[2:]):
        columns.append(Column(name, KINDS.get(name, "r"), found[COLUMNS[name]]))
    return columns


# ---- All of it -----------------------------------------------------------------------------------


def write_report(folder, config, study, folds, found, prediction, encoder, turned, sets):
    """genes.csv, pictures, report.md and report.html; the main figures are printed, too.

    turned: lines on the choices that are turned; sets: {name: genes}, none without --gmt.
    """
    genes, r, order = study.pairs.genes, found["r"], best_first(found["r"])
    words = config["provenance"]
    rows = gene_rows(genes, found, COLUMNS, order)
    save_csv(folder / "genes.csv", *marked(("gene", *COLUMNS), rows, words))
    said = list(sentences(found, len(prediction)))
    print("\n".join(said))
    title = f"model {config['model']}"
    if config["model"] == "attention":
        title += f", {config['pooling']} pooling"
    draw(folder, title, study, found, prediction, words)
    knew = "did not know its patient, neither in its attention nor in its regression"
    if "stop" in config["code"]:
        knew = "chose its epoch by it"
    leaks, seen = who_saw_whom(folds, encoder)
    paragraphs = [
        f"# {TASK}: {folder.name}",
        *warning(words),
        "\n".join(five_sentences(config, genes, found, len(prediction), knew)).strip(),
        *leaks,
        *turned,
        f"{len(prediction)} pairs of tumour and matched normal tissue, {len(genes):,} genes, y = "
        f"log10(fc + 1) [HistCode]; {title}. {said_of_expression(config)} "
        f"{config['folds']} parts by patient; each pair is "
        f"predicted by the model that {knew}. R is over all pairs; R_within_folds: mean over the "
        f"test parts. Slides by their words: {study.pairs.words}.",
        *said,
        "![R](r.png) ![Accuracy](accuracy.png)",
        "## Best genes",
        table(("gene", *LISTED_COLUMNS), gene_rows(genes, found, LISTED_COLUMNS, order[:LISTED])),
        "![Predicted against true](scatter.png)",
        "## R and fold change",
        "![Fold change](fold_change.png)",
        *(enriched_lines(folder, genes, r, sets, words) if sets else ()),
        *planted_lines(config["cohort"], genes, found),
        "## Folds",
        table(("fold", "train", "validation", "test", "epoch", "penalty"), fold_rows(folds)),
        *seen,
        *left_out_lines(study.slides),
        *settings_section(config),
    ]
    lines = ["\n\n".join(filter(None, paragraphs)), ""]
    write_page(folder / "report.html", lines, gene_columns(genes, found))
    save_text(folder / "report.md", lines)
