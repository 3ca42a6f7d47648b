"""The report of a run, a function for each of its sections; each returns its lines.

`results` is what he2rna.evaluate gives: {cancer: a dict of r, n, p, hs, bh (G,), r_sign ...}.
"""

import numpy as np

import he2rna
import stats
from lab.audit.choices import switches
from lab.audit.ledger import ledger_lines
from lab.cohort.scale import said_of_expression, unit_of_run
from lab.files import save_csv, save_text
from lab.he2rna.best import best_genes, best_section, holds
from lab.he2rna.choices import CHOICES
from lab.he2rna.effects import apart_said, losses_said, who_stands_apart
from lab.he2rna.evaluation import judged_in
from lab.he2rna.folds import certificate
from lab.he2rna.report_opening import beside_the_paper, opening_of
from lab.he2rna.report_plots import draw_r, draw_scatter, with_value
from lab.progress import clock, table
from lab.provenance import marked, warning
from lab.runs import read_log, seconds_of
from lab.show.packed import Column
from lab.show.page import write_page
from lab.show.report import section, settings_section
from lab.simulation.cohort import planted_programmes

SMALL_FOLD = 8  # test patients of a cancer in a fold; with fewer the report warns [ours]
MAY_SEE = {  # steps that see test patients, and why they may; None: they judge [ours]
    "gene filter": "as the paper words it, over all samples: it decides which genes are asked for",
    "untrained null": None,
    "decoys": "each value given to another patient, so it says nothing of its own",
}
SUMMARY_HEADER = (
    "cancer",
    "slides",
    "patients",
    "genes",
    "mean R",
    "median R",
    "significant HS",
    "significant BH",
)


def write_report(folder, cohort, config, data, results, prediction, notes, ledgers, seconds):
    """report.md, report.html, their pictures and recurrent.csv.

    prediction (S, G): each slide by the model that did not learn from its patient; notes, ledgers:
    of each fold, how its training went and {step: patients that it saw}.
    """
    leaks, seen = ledger_lines(ledgers, data.tested, MAY_SEE, data.encoder)
    programmes = planted_programmes(cohort, data.genes)
    words = config["provenance"]
    lines = [f"# HE2RNA: {folder.name}", "", *warning(words)]
    lines += [*opening_of(config, data, results), *leaks, *what_was_done(config, data, results)]
    lines += [*cancers(results), *beside_the_paper(config, data, results)]
    lines += nulls(results, config, data)
    lines += best_section(results, data.genes)
    if programmes:
        lines += planted(programmes, results)
    merged = "merged" not in config["code"]
    lines += several_cancers(folder / "recurrent.csv", data, results, merged, words)
    if data.coding is not None:
        coding = table(SUMMARY_HEADER, summary(results, data.coding))
        lines += section("Protein-coding genes", coding, data.coding_note)
    lines += [*folds(folder, data, notes, ledgers), *seen, *left_out(data)]
    lines += settings_section(config, **{"run time of this call": clock(seconds)})
    draw_r(folder / "r_distribution.png", results, merged, words)
    about = results, unit_of_run(config), words
    draw_scatter(folder / "scatter.png", best_genes(results), data, prediction, *about)
    write_page(folder / "report.html", lines, gene_columns(data.genes, results), "cancer")
    save_text(folder / "report.md", lines)


def gene_columns(genes, results):
    """All genes of all cancers, for the page."""
    gene, cancer = np.arange(len(genes)), np.arange(len(results))
    every = {}
    for name in ("n", "r", "hs", "bh"):
        every[name] = np.concatenate([e[name] for e in results.values()])
    both = np.concatenate([holds(e) for e in results.values()])
    corrected = "one-sided p under the null that decides, by {} over all genes of the cancer"
    return [
        Column("gene", "word", np.tile(gene, len(cancer)), words=tuple(genes)),
        Column("cancer", "word", np.repeat(cancer, len(gene)), words=tuple(results)),
        Column("patients", "whole", every["n"], "patients behind R"),
        Column("R", "r", every["r"], "Pearson's R over slides, mean of the folds"),
        Column("p HS", "p", every["hs"], corrected.format("Holm–Šidák")),
        Column("p BH", "p", every["bh"], corrected.format("Benjamini–Hochberg")),
        Column("holds", "word", both.astype(int), "see Best genes", ("no", "yes")),
    ]


def count(p):
    """Genes that are significant by corrected p (G,)."""
    return int((p < he2rna.ALPHA).sum())


def what_was_done(config, data, results):
    """Choices that are turned; slides, genes, folds; what R and significant mean here."""
    code = config["code"]
    turned = [f"{name}: {switches(CHOICES, 'train')[name]}" for name in code]
    lines = []
    if turned:
        said = "; ".join(turned)
        lines = [f"Turned to their other side (`python he2rna.py choices`): {said}.", ""]
    genes = f"with a positive median (of {config.get('genes_in_table', 0):,})"
    if "from_run" in config:
        genes = f"of the run {config['from_run']['name']}, its models fine-tuned on all tiles"
    elif "genes" in code:
        genes = "unfiltered"
    over = "within a fold's test part, never over several cancers, and the mean of the folds"
    if "pooled" in code:
        over = "of all folds together, never over several cancers"
    null = next(iter(results.values()))["null"]
    text = (
        f"{said_of_expression(config)} "
        f"{len(data.y)} slides of {len(set(data.patients))} patients, {len(data.genes):,} genes "
        f"{genes}, {config['folds']} folds by {config['folds_by']}. R is Pearson's over the slides "
        f"of a cancer {over}. HS is Holm–Šidák, BH Benjamini–Hochberg, over all genes of the "
        f"cancer, significant below {he2rna.ALPHA}, of the one-sided p under the {null} null."
    )
    return [*lines, text, ""]


def summary(results, genes=slice(None)):
    """A row for each cancer, as SUMMARY_HEADER says, of some genes (G,)."""
    for name, e in results.items():
        r = with_value(e["r"][genes])
        middle = (f"{r.mean():.3f}", f"{np.median(r):.3f}") if len(r) else ("no value",) * 2
        found = count(e["hs"][genes]), count(e["bh"][genes])
        yield name, e["slides"], e["patients"], len(r), *middle, *found


def cancers(results):
    picture = "![Distribution of R](r_distribution.png)"
    return [table(SUMMARY_HEADER, summary(results)), "", picture, ""]


def nulls(results, config, data):
    """R_sign and significant genes under each null, and a warning where folds are too small."""
    rows = []
    for name, e in results.items():
        for null, p in e["all_p"].items():
            found = count(stats.holm_sidak(p)), count(stats.benjamini_hochberg(p))
            n = f"{e['fits'][null][1]:.0f}"
            rows.append((name, null, n, f"{e['r_sign'][null]:.3f}", *found))
    text = (
        "The smallest R that is significant (first Šidák step) and the genes significant by "
        "Holm–Šidák and by Benjamini–Hochberg under each null; n: of how many patients one R "
        "scatters as widely.\n\n"
        f"decoys: R of {config['decoys']} genes whose patients changed places, learned by the same "
        "networks; it assumes only that a gene that follows nothing could as well have been "
        "another patient's. t (one R of n patients), permutation (patients change places within "
        "their test fold) and untrained (models of the same architecture that learned nothing, "
        "the paper's) assume that the folds' R are independent, but each model has learned from "
        "the others' test patients: their p are too small. Where patients have several slides, t "
        "and permutation count patients alone, and their p may be too large."
    )
    parts = [text, table(("cancer", "null", "n", "R_sign", "HS", "BH"), rows)]
    parts += ["![R of the genes beside the null](null.png)", *small_folds(results, config, data)]
    return section("The nulls", *parts)


def small_folds(results, config, data):
    """A warning for each cancer that has few test patients in some fold, and what it costs."""
    fold, n_folds = judged_in(data.fold, config)
    groups = he2rna.cancers(data.projects)
    for name, e in results.items():
        each = [
            he2rna.count_patients(data.patients, groups[name] & (fold == f)) for f in range(n_folds)
        ]
        judged = [n for n in each if n >= stats.MIN_R]
        genes = len(with_value(e["r"]))
        if min(each) < SMALL_FOLD and judged and genes:
            chance = stats.chance_of_false(genes, judged, e["r_sign"]["permutation"])
            yield (
                f"**{name} has folds of {', '.join(map(str, each))} test patients, fewer than "
                f"{SMALL_FOLD} in some: a fitted law is rough there.** Of {genes:,} independent "
                "genes that follow nothing, in folds that were independent too, at least one would "
                f"be significant by Holm–Šidák in {chance:.2f} of studies under permutation, "
                f"where {he2rna.ALPHA} is meant."
            )


def planted(programmes, results):
    """Of a simulated cohort: how many genes of each programme were found."""
    rows = []
    for programme, of in programmes.items():
        for name, e in results.items():
            r = he2rna.mean_of_values(e["r"][of])
            found = count(e["hs"][of]), count(e["bh"][of])
            rows.append((programme, name, of.sum(), f"{r:.3f}", *found))
    header = ("programme", "cancer", "genes", "mean R", "significant HS", "significant BH")
    text = "Housekeeping and noise genes follow nothing on the slide."
    return section("Against what was planted", text, table(header, rows))


def several_cancers(path, data, results, merged, words):
    """recurrent.csv, and how many genes are significant in at least 1, 2, ... cancers. [Fig. 2b]"""
    significant = he2rna.significant_genes(results, "hs", merged)  # (P, G)
    hs, at_least = stats.recurrent(significant)
    bh, _ = stats.recurrent(he2rna.significant_genes(results, "bh", merged))
    counted = he2rna.separate(results, merged)
    mean = he2rna.mean_of_values(np.array([results[name]["r"] for name in counted]))
    order = np.lexsort((-np.nan_to_num(mean), -hs))
    rows = []
    for j in order:
        rows.append((data.genes[j], hs[j], bh[j], "" if np.isnan(mean[j]) else f"{mean[j]:.4g}"))
    header = ("gene", "cancers_hs", "cancers_bh", "mean_R")
    save_csv(path, *marked(header, rows, words))

    header, columns = ("at least", "genes"), [range(1, len(counted) + 1), at_least]
    if data.coding is not None:
        header += ("protein-coding",)
        columns.append(stats.recurrent(significant[:, data.coding])[1])
    parts = [table(header, zip(*columns))]
    first = [f"{data.genes[j]} ({hs[j]})" for j in order[:30] if hs[j] > 1]
    if first:
        said = "First (all in recurrent.csv) by number of cancers, then by mean R"
        parts.append(f"{said}: {', '.join(first)}.")
    return section("Genes significant in several cancers", *parts)


def folds(folder, data, notes, ledgers):
    """How the training of each fold went, how even the folds are, and who stands apart in them."""
    apart = who_stands_apart(data.y, data.patients, data.projects)
    remarks = [*losses_said(folder, ledgers, apart), *apart_said(apart)]
    rows, took = [], seconds_of(read_log(folder))
    for f, note in enumerate(notes):
        seconds = took.get((f, note["epochs"]), note.get("seconds", 0))  # as older runs kept them
        epochs = note["best_epoch"], note["epochs"], note["by"]
        rows.append((f, (data.fold == f).sum(), *epochs, clock(seconds)))
    header = ("fold", "test slides", "best epoch", "epochs run", "chosen by", "training time")
    return section("Folds", table(header, rows), *remarks, *certificate(data, len(notes)))


def left_out(data):
    lines = [f"- {len(v)} {what}: {', '.join(v)}" for what, v in data.left_out.items() if v]
    lines += [f"- slide {name} failed: {why}" for name, why in data.failed.items()]
    return section("Left out", "\n".join(lines) or "Nothing.")
