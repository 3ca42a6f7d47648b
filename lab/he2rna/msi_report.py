"""lab.he2rna.msi_report"""

from fractions import Fraction

import numpy as np

import he2rna
import stats
from lab.audit.choices import switches
from lab.files import save_csv, save_text
from lab.he2rna.choices import CHOICES
from lab.progress import table
from lab.runs import read_log
from lab.show.plots import figure

MSI_INTERVAL = (0.16, 0.84)  # 68 %                                     [HE2RNA Fig. 5b]


MSI_ARMS = {
    "transcriptome": "transcriptome of A",
    "direct": "direct, one network",
    "ensemble": "direct, ensemble",
    "autoencoder-a": "autoencoder of A",
    "autoencoder-b": "autoencoder of B",
}
#   the ensemble: the mean of as many direct networks as A has folds, as many as stand behind its representation [ours]


MSI_LINES = {
    "transcriptome": ("tab:blue", "-"),
    "direct": ("tab:red", "-"),  # [HE2RNA Fig. 5b]
    "ensemble": ("tab:red", "--"),
    "autoencoder-a": ("tab:grey", "-"),
    "autoencoder-b": ("tab:grey", "--"),
}  # [ours]


def compare_to(results, ratio, arm, other="transcriptome"):
    """(AUC of an arm, of the other) over the splits that have both, two-sided p of their paired Wilcoxon test."""
    pairs = [
        (v, results[s, r, other])
        for (s, r, a), v in sorted(results.items())
        if (r, a) == (ratio, arm) and (s, r, other) in results
    ]
    a, b = np.array(pairs, float).reshape(-1, 2).T
    return a, b, stats.wilcoxon_signed_rank(b, a)[1] if len(a) and arm != other else np.nan


def verdict(results, ratios, arms, folds):
    """One paragraph: where the transcriptomic representation wins and where it does not, against each other arm."""
    text, given = [], ratios == ["given"]
    for arm in arms:
        kinds = {
            "wins at": [],
            "loses at": [],
            "cannot be told apart at": [],
            "has too few splits for a p < .05 at": [],
        }
        for ratio in ratios:
            a, b, p = compare_to(results, ratio, arm)
            if len(a):
                wins, loses, even, few_splits = kinds
                kind = (
                    few_splits
                    if 2 ** (1 - len(a)) >= he2rna.ALPHA
                    else even
                    if not p < he2rna.ALPHA
                    else wins
                    if b.mean() > a.mean()
                    else loses
                )
                kinds[kind].append(f"{ratio} ({b.mean() - a.mean():+.3f})")
        said = [f"{kind} {', '.join(v)}" for kind, v in kinds.items() if v]
        if said:
            text.append(f"Against {MSI_ARMS[arm]} it {'; '.join(said)}.")
    return (
        "The transcriptomic representation, by the share of the patients in hospital A (difference of mean AUC; told "
        f"apart: two-tailed Wilcoxon over paired splits, p < {he2rna.ALPHA}, not corrected over ratios and arms). "
        + " ".join(text)
        + f" It is the mean of the last hidden layers of A's {folds} networks, as autoencoder A is of "
        "its, an advantage of ensembling that the one direct network and autoencoder B lack: the fair comparison of "
        f"features is with the ensemble of {folds} direct networks. "
        + (
            "The hospitals are given: splits differ in folds and first weights alone, p and the 68 % range say "
            "nothing of other patients."
            if given
            else "Splits divide the same patients again and again: p and the 68 % "
            "range tell whether another split of *these* patients would agree, not whether other patients would."
        )
    )


def plot_shares(path, results, ratios, arms):
    """AUC against the fraction of the patients in B, mean and 68 % range over the splits (Fig. 5b)."""
    x = [1 - float(Fraction(r)) for r in ratios]
    with figure(path, figsize=(6.4, 4.4)) as ax:
        for arm in arms:
            each = [
                [v for (_, r, a), v in results.items() if (r, a) == (ratio, arm)]
                for ratio in ratios
            ]
            some = [i for i, v in enumerate(each) if v]
            line = [np.mean(each[i]) for i in some]
            color, style = MSI_LINES[arm]
            ax.plot(
                [x[i] for i in some],
                line,
                style,
                color=color,
                marker="o",
                ms=3,
                label=MSI_ARMS[arm],
            )
            if arm in ("transcriptome", "direct"):
                low_high = np.array([np.quantile(each[i], MSI_INTERVAL) for i in some]).T
                ax.fill_between([x[i] for i in some], *low_high, color=color, alpha=0.2, lw=0)
        ax.set(
            xlabel="fraction of the patients in hospital B", ylabel="AUC for MSI-H in hospital B"
        )
        ax.set_xticks(x, [f"{Fraction(1) - Fraction(r)}" for r in ratios])
        ax.legend(fontsize=8)


def plot_arms(path, results, ratio, arms):
    """Each arm's AUC over the splits of one ratio: quartiles, median, mean, p against the transcriptome (Fig. 5c)."""
    with figure(path, figsize=(1.5 + 1.5 * len(arms), 4.4)) as ax:
        for i, arm in enumerate(arms):
            a = np.array([v for (_, r, k), v in results.items() if (r, k) == (ratio, arm)])
            if len(a) > 1 and np.ptp(a) > 0:
                body = ax.violinplot(a, [i], widths=0.8, showextrema=False)["bodies"][0]
                body.set_facecolor(MSI_LINES[arm][0])
            ax.vlines(i, *np.quantile(a, (0.25, 0.75)), color="black", lw=5)
            ax.plot(
                i,
                np.median(a),
                "o",
                color="white",
                ms=5,
                mec="black",
                zorder=3,
                label="median" if i == 0 else None,
            )
            ax.plot(i, a.mean(), "^", color="red", ms=6, zorder=3, label="mean" if i == 0 else None)
            p = compare_to(results, ratio, arm)[2]
            if not np.isnan(p):
                stars = "*" * sum(p < level for level in (0.05, 0.01, 0.001, 0.0001))
                ax.annotate(
                    f"p = {p:.2g} {stars}",
                    (i, 1.01),
                    xycoords=("data", "axes fraction"),
                    ha="center",
                    fontsize=8,
                )
        ax.set_xticks(
            range(len(arms)), [MSI_ARMS[arm].replace(" ", "\n", 1) for arm in arms], fontsize=8
        )
        ax.set_ylabel(f"AUC for MSI-H in hospital B, {ratio} of the patients in A")
        ax.legend(fontsize=8, loc="lower left")


def write_msi_report(folder, config, d, results, sizes):
    """report.md, table.csv and the two figures from the mean AUC of each (split, ratio, arm). sizes: ratio -> (B, MSI-H)."""
    arms = [a for a in MSI_ARMS if any(k[2] == a for k in results)]
    ratios = sorted({k[1] for k in results}, key=lambda r: Fraction(r) if "/" in r else 0)
    n = max(len([k for k in results if k[1:] == which]) for which in {k[1:] for k in results})
    rows, cells = [], []
    for ratio in ratios:
        cells.append([ratio, f"{sizes[ratio][0]} ({sizes[ratio][1]})"])
        for arm in arms:
            a = np.array([v for (_, r, k), v in results.items() if (r, k) == (ratio, arm)])
            if not len(a):
                cells[-1].append("")
                continue
            (low, high), (own, other, p) = (
                np.quantile(a, MSI_INTERVAL),
                compare_to(results, ratio, arm),
            )
            rows.append(
                (
                    ratio,
                    arm,
                    len(a),
                    f"{a.mean():.4f}",
                    f"{a.std(ddof=1) if len(a) > 1 else 0:.4f}",
                    f"{low:.4f}",
                    f"{high:.4f}",
                    "" if np.isnan(p) else f"{p:.3g}",
                    "" if np.isnan(p) else int((other > own).sum()),
                )
            )
            cells[-1].append(
                f"{a.mean():.3f} ({low:.3f}–{high:.3f})"
                + ("" if np.isnan(p) else f", p {p:.2g}")
                + f", {len(a)} splits" * (len(a) < n)
            )
    save_csv(
        folder / "table.csv",
        ("ratio", "arm", "splits", "auc", "sd", "low_68", "high_68", "p", "transcriptome_better"),
        rows,
    )
    text = [
        f"# MSI: what hospital A's transcriptome is worth in hospital B, {config['study']}",
        "",
        d["line"] + ".",
        "",
        f"{n} splits where not said otherwise, {config['repeats']} x {config['folds']} folds in B by "
        "patient; AUC over a test fold's patients, its mean over folds and repeats, then over splits (68 % range over "
        "splits); p: "
        f"two-tailed Wilcoxon against transcriptome, paired, over the splits; of {n} it can't be below "
        f"{2 / 2**n:.2g}."
        + "".join(f" As the authors' code: {switches(CHOICES, 'msi')[c]}." for c in config["code"]),
        "",
        table(("in A", "patients in B (MSI-H)", *arms), cells),
        "",
    ]
    log = read_log(folder)
    leaks = sorted({step for e in log for step in e["leaks"]})
    text[2:2] = (
        [f"**Steps that saw test patients: {', '.join(leaks)}** (below).", ""] if leaks else []
    )
    seen = {row[0]: row for e in log for row in e["saw"]}
    text += (
        [
            "Patients that each step learned from, in the test folds of hospital B (of the last split that did it):",
            "",
            table(("step", "patients", "test patients of the fold", ""), seen.values()),
            "",
        ]
        if seen
        else []
    )
    r = [e["r_in_a"] for e in log if e.get("r_in_a") is not None]
    if r:
        text += [
            f"R of expression in A's own test folds, mean over genes and splits: {np.mean(r):.3f}.",
            "",
        ]
    if "transcriptome" in arms and len(arms) > 1:
        text += [
            verdict(results, ratios, [a for a in arms if a != "transcriptome"], config["folds"]),
            "",
        ]
        print(text[-2])
    if ratios != ["given"]:
        plot_shares(folder / "shares.png", results, ratios, arms)
        text += ["![AUC against the fraction in B](shares.png)", ""]
    at = min(ratios, key=lambda r: abs(float(Fraction(r)) - 0.75) if "/" in r else 0)
    plot_arms(
        folder / "arms.png",
        results,
        at,
        [a for a in arms if any(k[1:] == (at, a) for k in results)],
    )
    text += ["![AUC of each arm](arms.png)", ""]
    save_text(folder / "report.md", text)
    print(f"report: {folder / 'report.md'}")
