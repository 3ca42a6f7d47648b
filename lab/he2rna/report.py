"""lab.he2rna.report"""

import numpy as np

import he2rna
import stats
from lab.audit.choices import switches
from lab.audit.ledger import ledger_lines
from lab.files import save_csv, save_text
from lab.he2rna.choices import CHOICES
from lab.he2rna.evaluation import judged_in, separate
from lab.progress import clock, table
from lab.show.plots import BLUE, ORANGE, figure
from lab.simulation.cohort import planted_programmes

SMALL_FOLD = 8  # test slides of a cancer; with fewer the report warns [ours]


MAY_SEE = {
    "gene filter": "as the paper words it, over all samples: it decides which genes are asked for",
    "untrained null": None,
}  # steps that see test patients and why they may; None: they judge     [ours]


NULLS_HEADER = ("cancer", "null", "n", "R_sign", "HS", "BH")


SUMMARY_HEADER = (
    "cancer",
    "slides",
    "genes",
    "mean R",
    "median R",
    "significant HS",
    "significant BH",
)


# Report
def plot_r(results, path, code=()):
    """R per cancer, the smallest significant R (triangle) and the number of significant genes (Fig. 2a); beside it, how
    many genes are significant in at least so many cancers (Fig. 2b)."""
    at_least = stats.recurrent(
        np.array([results[n]["hs"] < he2rna.ALPHA for n in separate(results, code)])
    )[1]
    with figure(
        path,
        1,
        2,
        figsize=(max(8, 4 + 0.8 * len(results)), 4),
        width_ratios=(max(2, 0.4 * len(results)), 1),
    ) as (ax, many):
        for i, (name, e) in enumerate(results.items()):
            r = e["r"][~np.isnan(e["r"])]
            if len(r) > 1 and np.ptp(r) > 0:
                drawn = ax.violinplot(r, [i], widths=0.8, showextrema=False, showmedians=True)
                drawn["cmedians"].set_color(BLUE)
                drawn["bodies"][0].set_facecolor(BLUE)
            label = f"R for significance (Holm–Šidák, {e['null']} null)" if i == 0 else None
            ax.plot(i, e["r_sign"][e["null"]], "k^", ms=6, label=label)
            ax.annotate(
                f"{(e['hs'] < he2rna.ALPHA).sum():,}",
                (i, 1.02),
                ha="center",
                color=ORANGE,
                annotation_clip=False,
            )
        ax.axhline(0, color="grey", lw=0.5)
        ax.set(
            xticks=range(len(results)), ylabel="R over slides, mean of the folds", ylim=(-1, 1.12)
        )
        ax.set_xticklabels(
            [f"{name}\nn = {e['slides']}" for name, e in results.items()], fontsize=8
        )
        ax.set_title("Prediction of each gene; number: significant genes", fontsize=10)
        ax.legend(loc="lower right", fontsize=8)
        many.bar(range(1, len(at_least) + 1), np.maximum(at_least, 0.5), color=BLUE)
        many.set(
            xlabel="in at least so many cancers",
            ylabel="significant genes",
            yscale="log",
            ylim=(0.5, None),
        )
        many.set_xticks(range(1, len(at_least) + 1))


def plot_null(results, untrained, permuted, path):
    """R of untrained models, of permuted slides, and the laws fitted to them, by cancer; and where R becomes significant."""
    columns, rows, grid = min(4, len(results)), -(-len(results) // 4), np.linspace(-1, 1, 801)
    with figure(path, rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False) as axes:
        for ax in axes.flat[len(results) :]:
            ax.axis("off")
        for ax, (name, e) in zip(axes.flat, results.items()):
            if np.isnan(e["r"]).all():
                continue
            for r, what, look in (
                (untrained[name], "untrained models", dict(color=BLUE, alpha=0.5)),
                (permuted[name], "slides permuted", dict(color="grey", histtype="step")),
                (e["r"], "trained", dict(color=ORANGE, histtype="step")),
            ):
                ax.hist(r[~np.isnan(r)], 60, density=True, label=what, **look)
            for null, style in (("untrained", "k-"), ("permutation", "k:")):
                tail = stats.null_p(grid, *e["fits"][null])
                ax.plot(
                    (grid[1:] + grid[:-1]) / 2,
                    -np.diff(tail) / np.diff(grid),
                    style,
                    lw=1,
                    label=f"{null}: n = {e['fits'][null][1]:.0f}",
                )
            ax.set(xlim=(-1, 1), ylim=(0, 1.6 * ax.get_ylim()[1]), yticks=[], xlabel="R")
            ax.set_title(
                f"{name}: {e['slides']} slides, R_sign {e['r_sign']['untrained']:.2f}",
                fontsize=9,
            )
            ax.legend(fontsize=6)


def best_genes(results, n=6):
    """The n (project, gene index, R) of smallest p, each gene once."""
    rows = sorted(
        (e["p"][j], -e["r"][j], name, j)
        for name, e in results.items()
        for j in np.argsort(np.where(np.isnan(e["p"]), 2, e["p"]))[:n]
        if not np.isnan(e["p"][j])
    )
    seen = set()
    return [(name, j, -r) for _, r, name, j in rows if not (j in seen or seen.add(j))][:n]


def interval(prediction, y, patients, fold, rows, rng):
    """'low to high' of R of one gene, prediction and y (S, 1), over the patients of some rows."""
    low_high = stats.bootstrap_r(
        *(v[rows] for v in (prediction, y, patients, fold)), stats.N_DRAWS, rng
    )
    return "{:.2f} to {:.2f}".format(*(v[0] for v in low_high))


def plot_scatter(best, genes, prediction, y, fold, groups, path):
    """Predicted against true expression of six genes; colours are folds, each predicted by the model that never saw it."""
    with figure(path, 2, 3, figsize=(9, 6)) as axes:
        for ax, (name, j, r) in zip(axes.flat, best):
            rows = groups[name]
            ax.scatter(y[rows, j], prediction[rows, j], c=fold[rows], cmap="viridis", s=14)
            ax.set_title(f"{genes[j]} in {name}: R = {r:.2f}", fontsize=9)
            ax.set(xlabel="true log10(1 + FPKM-UQ)", ylabel="predicted")
        for ax in axes.flat[len(best) :]:
            ax.axis("off")


def summary(results):
    """Rows of the table of cancers: name, slides, genes with a value, mean and median R, significant genes."""
    for name, e in results.items():
        r = e["r"][~np.isnan(e["r"])]
        mean, median = (
            (f"{np.mean(r):.3f}", f"{np.median(r):.3f}") if len(r) else ("no value", "no value")
        )
        yield (
            name,
            e["slides"],
            len(r),
            mean,
            median,
            *(int((e[c] < he2rna.ALPHA).sum()) for c in ("hs", "bh")),
        )


def planted(cohort, genes, results):
    """For a simulated cohort: by programme, how many genes were found; what follows nothing must not be. Rows, or None."""
    own = planted_programmes(cohort, genes)
    return own and [
        (
            p,
            name,
            int(of.sum()),
            f"{he2rna.mean_of_values(e['r'][of]):.3f}",
            *(int((e[c][of] < he2rna.ALPHA).sum()) for c in ("hs", "bh")),
        )
        for p, of in own.items()
        for name, e in results.items()
    ]


def nulls_table(results):
    for name, e in results.items():
        for null in ("t", "permutation", "untrained"):
            p, n = e["all_p"][null], e["fits"][null][1]
            yield (
                name,
                null,
                f"{n:.0f}",
                f"{e['r_sign'][null]:.3f}",
                *(
                    int((f(p) < he2rna.ALPHA).sum())
                    for f in (stats.holm_sidak, stats.benjamini_hochberg)
                ),
            )


def certificate(data, k):
    """Lines on how even the folds are: patients of each project in each, and chi-square of projects against folds."""
    counts, chi2, freedom, p = stats.fold_balance(
        data["patients"], data["projects"], data["fold"], k
    )
    return [
        table(
            ("project", *(f"fold {f}" for f in range(k))),
            [(name, *row) for name, row in counts.items()],
        ),
        "",
        "Patients of each project. "
        + (
            f"Chi-square of projects against folds {chi2:.2f}, {freedom} degrees of freedom, p = {p:.2g}: near 1 where "
            "the folds are more even than by lot, small where a fold has more of a project than others."
            if freedom
            else "One project: nothing to spread evenly."
        ),
    ]


def write_report(folder, cohort, config, data, results, prediction, notes, ledgers, seconds):
    """report.md and its pictures; genes.csv, predictions.npz and folds.csv stand beside it."""
    genes, y, fold, coding, code = (
        data["genes"],
        data["y"],
        data["fold"],
        data.get("coding"),
        config["code"],
    )
    names, (within, k) = separate(results, code), judged_in(fold, config)
    groups, truth = he2rna.cancers(data["projects"]), planted(cohort, genes, results)
    leaks, seen = ledger_lines(ledgers, tested_in(data, config["folds"]), MAY_SEE, data["encoder"])
    plot_r(results, folder / "r_distribution.png", code)
    plot_scatter(best_genes(results), genes, prediction, y, fold, groups, folder / "scatter.png")
    small = [name for name, rows in groups.items() if 0 < rows.sum() < SMALL_FOLD * k]
    significant = {
        c: np.array([results[n][c] < he2rna.ALPHA for n in names]) for c in ("hs", "bh")
    }  # (P, G)
    (in_hs, at_least), (in_bh, _) = (stats.recurrent(s) for s in significant.values())
    mean = he2rna.mean_of_values(np.array([results[n]["r"] for n in names]))  # (G,)
    order = np.lexsort((-np.nan_to_num(mean), -in_hs))
    save_csv(
        folder / "recurrent.csv",
        ("gene", "cancers_hs", "cancers_bh", "mean_R"),
        (
            (genes[j], in_hs[j], in_bh[j], "" if np.isnan(mean[j]) else f"{mean[j]:.4g}")
            for j in order
        ),
    )

    interval_of = lambda j, name: interval(
        prediction[:, j : j + 1],
        y[:, j : j + 1],
        data["patients"],
        within,
        groups[name],
        np.random.default_rng(config["seed"]),
    )
    text = [
        f"# HE2RNA: {folder.name}",
        "",
        *(
            ["**SIMULATED cohort: drawn slides and planted expression, no patient.**", ""]
            if truth
            else []
        ),
        *leaks,
        *(
            [
                "Turned to their other side (`python he2rna.py choices`): "
                + "; ".join(f"{c}: {switches(CHOICES, 'train')[c]}" for c in code)
                + ".",
                "",
            ]
            if code
            else []
        ),
        f"{len(y)} slides of {len(set(data['patients']))} patients, {len(genes):,} genes "
        + (
            f"of the run {config['from_run']['name']}, its models fine-tuned on all tiles"
            if "from_run" in config
            else "unfiltered"
            if "genes" in code
            else f"with a positive median (of {config['genes_in_table']:,})"
        )
        + f", {config['folds']} folds by {config['folds_by']}. R is Pearson's over the slides of a cancer "
        + ("of all folds together" if "pooled" in code else "within a fold's test part")
        + ", never over several cancers"
        + ("" if "pooled" in code else ", and the mean of the folds")
        + ". HS is Holm–Šidák, BH Benjamini–Hochberg, over all genes of "
        f"the cancer, significant below {he2rna.ALPHA}, of the one-sided p under the {results[names[0]]['null']} null.",
        "",
        table(SUMMARY_HEADER, summary(results)),
        "",
        "![Distribution of R](r_distribution.png)",
        "",
        "## The three nulls",
        "",
        "The smallest R that is significant (first Šidák step) and the genes significant by "
        "Holm–Šidák and by Benjamini–Hochberg under each. t: one R of n slides. permutation: the mean of folds of so many "
        "slides. untrained: R of models of the same architecture that learned nothing; n there is of how many slides one R "
        "scatters as theirs do.",
        "",
        table(NULLS_HEADER, nulls_table(results)),
        "",
        *(
            [
                f"**Folds of fewer than {SMALL_FOLD} test slides ({', '.join(small)}): no null holds there**; of runs on noise "
                "with 5 folds of 4 slides one in six has a false gene by Holm–Šidák, with 5 of 8 one in twenty.",
                "",
            ]
            if small
            else []
        ),
        "![Nulls](null.png)",
        "",
        "## Best genes",
        "",
        "95 % interval: over patients drawn with replacement, the models as they are.",
        "",
        table(
            ("gene", "cancer", "n", "R", "95 %", "p (HS)"),
            [
                (
                    genes[j],
                    name,
                    results[name]["n"][j],
                    f"{r:.3f}",
                    interval_of(j, name),
                    f"{results[name]['hs'][j]:.2g}",
                )
                for name, j, r in best_genes(results, 20)
            ],
        ),
        "",
        "![Predicted against true](scatter.png)",
        "",
    ]
    if truth:
        text += [
            "## Against what was planted",
            "",
            "Housekeeping and noise genes follow nothing on the slide.",
            "",
            table(
                ("programme", "cancer", "genes", "mean R", "significant HS", "significant BH"),
                truth,
            ),
            "",
        ]
    text += ["## Genes significant in several cancers", ""]
    if coding is None:
        text += [table(("at least", "genes"), enumerate(at_least, 1)), ""]
    else:
        both = zip(
            range(1, len(at_least) + 1), at_least, stats.recurrent(significant["hs"][:, coding])[1]
        )
        text += [
            table(("at least", "genes", "protein-coding"), both),
            "",
            "## Protein-coding genes",
            "",
            table(
                ("cancer", "HS", "BH"),
                [
                    (name, *(int((e[c][coding] < he2rna.ALPHA).sum()) for c in ("hs", "bh")))
                    for name, e in results.items()
                ],
            ),
            data["coding_note"],
            "",
        ]
    if len(names) > 1 and in_hs.max(initial=0) > 1:
        text += [
            "First (all in recurrent.csv) by number of cancers, then by mean R: "
            + ", ".join(f"{genes[j]} ({in_hs[j]})" for j in order[:30] if in_hs[j] > 1)
            + ".",
            "",
        ]
    text += [
        "## Folds",
        "",
        table(
            ("fold", "test slides", "best epoch", "epochs run", "chosen by", "training time"),
            [
                (
                    f,
                    int((fold == f).sum()),
                    n["best_epoch"],
                    n["epochs"],
                    n["by"],
                    clock(n["seconds"]),
                )
                for f, n in enumerate(notes)
            ],
        ),
        "",
        *certificate(data, config["folds"]),
        "",
        *seen,
        "## Left out",
        "",
        *(
            [
                f"- {len(names)} {what}: {', '.join(names)}"
                for what, names in data["left_out"].items()
                if names
            ]
            + [f"- slide {name} failed: {why}" for name, why in data["failed"].items()]
            or ["Nothing."]
        ),
        "",
        "## Settings",
        "",
        *(f"- {k}: {v}" for k, v in config.items()),
        f"- run time of this call: {clock(seconds)}",
        "",
    ]
    save_text(folder / "report.md", text)


def tested_in(data, k):
    """Test patients of each fold, also of slides that only the run gone on from had."""
    return data.get("held_out") or [
        sorted(set(data["patients"][data["fold"] == f].tolist())) for f in range(k)
    ]
