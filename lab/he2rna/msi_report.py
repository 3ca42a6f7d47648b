"""The report of an MSI study: AUC of each arm, and Fig. 5."""

from collections import defaultdict
from fractions import Fraction

import numpy as np

import he2rna
import stats
from lab.audit.choices import switches
from lab.cohort.scale import said_of_expression
from lab.files import save_csv, save_text
from lab.he2rna.choices import CHOICES
from lab.he2rna.report_opening import of_tcga
from lab.progress import table
from lab.provenance import marked, warning
from lab.runs import read_log
from lab.show.page import write_page
from lab.show.plots import BLUE, COLORS, INK, ORANGE, RULE, counted, figure
from lab.show.report import clauses, opening, section, settings_section

INTERVAL = (0.16, 0.84)  # 68 % of the splits [HE2RNA Fig. 5b]
ARMS_AT = 0.75  # of the patients in A, or the share nearest to it [ours]
QUARTILES = (0.25, 0.75)
LINES = {  # name, colour, line and mark of each arm
    "transcriptome": ("transcriptome of A", BLUE, "-", "o"),  # [HE2RNA Fig. 5b]
    "direct": ("direct, one network", ORANGE, "-", "^"),  # [HE2RNA Fig. 5b]
    "ensemble": ("direct, ensemble", COLORS[2], "--", "s"),
    "autoencoder-a": ("autoencoder of A", COLORS[3], "-.", "D"),
    "autoencoder-b": ("autoencoder of B", COLORS[4], ":", "v"),
}
WHO = (
    "Patients that each step learned from, in the test folds of hospital B (of the last split that "
    "did it):"
)
HEADER = (
    *("ratio", "patients_b", "msi_h_b", "arm", "splits"),
    *("auc", "sd", "low_68", "high_68"),
    *("transcriptome_less_it", "low_95", "high_95", "p"),
    *("p_splits", "transcriptome_better"),
)


def as_share(ratio):
    """The share of the patients in A of a ratio's name; 0 where the hospitals are given."""
    return Fraction(0 if ratio == "given" else ratio)


class Aucs:
    """Mean AUC of each split, by ratio and arm, from the rows of results.csv."""

    def __init__(self, results, n_patients):
        self.of = defaultdict(dict)  # {(ratio, arm): {split: AUC}}
        self.in_b = {}  # {ratio: (patients, MSI-H) in hospital B}
        self.n_patients = n_patients  # of both hospitals
        for (split, ratio, arm), rows in sorted(results.items()):
            self.of[ratio, arm][split] = np.mean([float(row[5]) for row in rows])
            self.in_b[ratio] = rows[0][6:8]
        self.ratios = sorted(self.in_b, key=as_share)
        self.drawn = self.ratios != ["given"]  # the hospitals, many times over
        self.arms = [arm for arm in he2rna.MSI_ARMS if any(arm == a for _, a in self.of)]

    def each(self, ratio, arm):
        """The AUC of every split, an array."""
        return np.array(list(self.of[ratio, arm].values()))

    def against(self, ratio, arm):
        """(AUC of the arm, of the transcriptome) in the splits that have both."""
        own, other = self.of[ratio, arm], self.of[ratio, "transcriptome"]
        if arm == "transcriptome":
            other = {}
        return np.array([(own[s], other[s]) for s in own if s in other]).reshape(-1, 2).T

    def advantage(self, ratio, arm):
        """Of the transcriptome over an arm: mean, 95 % interval and p for other patients.

        Hospitals that are given are one division: the last three are nan.
        """
        own, other = self.against(ratio, arm)
        if not own.size:
            return (np.nan,) * 4
        in_b = int(self.in_b[ratio][0])
        if ratio == "given":
            return float((other - own).mean()), np.nan, np.nan, np.nan
        return stats.corrected_t(other - own, in_b / (self.n_patients - in_b))


def write_msi_report(folder, config, study, results):
    """report.md, table.csv, shares.png and arms.png."""
    aucs = Aucs(results, len(set(study.patients)))
    rows = list(summary(aucs))
    save_csv(folder / "table.csv", *marked(HEADER, rows, config["provenance"]))
    log = read_log(folder)
    print("\n\n".join([table(HEADER, rows), *verdicts(aucs)]))
    pictures, words = ["![AUC of each arm](arms.png)"], config["provenance"]
    draw_arms(folder / "arms.png", aucs, words)
    if aucs.drawn:
        draw_shares(folder / "shares.png", aucs, words)
        pictures.insert(0, "![AUC against the fraction in B](shares.png)")
    lines = [
        f"# MSI: what hospital A's transcriptome is worth in hospital B, {config['study']}",
        "",
        *warning(words),
        *opening_of(config, study, aucs),
        *leaks(log),
        table(HEADER, rows),
        "",
        *(f"- {verdict}" for verdict in verdicts(aucs)),
        "",
        "\n\n".join(pictures),
        "",
        *beside_the_paper(config, study),
        *section("How it was done", what_was_done(config)),
        *section("What saw whom", WHO, whom_steps_saw(log)),
        *settings_section(config),
    ]
    write_page(folder / "report.html", lines)
    save_text(folder / "report.md", lines)
    print(f"report: {folder / 'report.md'}, and report.html to look at")


# ----- Words --------------------------------------------------------------------------------------


def opening_of(config, study, aucs):
    """Lines of the five sentences."""
    asked = "How well do features of slides tell MSI-H from other patients of hospital B?"
    if "transcriptome" in aucs.arms:
        asked = (
            "Does what hospital A learned from expression tell MSI-H from other patients of "
            "hospital B better than the slides' features, or autoencoders of these, do?"
        )
    null = "None: the hospitals are given, one division, and splits of it test nothing."
    apart = "both are as the data say, with whatever else differs between them"
    if aucs.drawn:
        apart = "both are drawn from one cohort, and share its staining and scanners"
        null = (
            "Both have the same AUC in other patients: Nadeau and Bengio's corrected t over the "
            "splits, two-sided, not corrected over ratios and arms."
        )
    never = clauses(
        config["provenance"],
        "that arms which are not told apart are equal",
        "that a small p_splits speaks of other patients",
        f"that two other hospitals would see these AUC, since {apart}",
    )
    return opening(asked, f"{study.line}.", f"{mean_aucs(aucs)}; {told(aucs)}.", null, never)


def mean_aucs(aucs):
    """The mean AUC of each arm, at the least and at the largest share in A."""
    ends = list(dict.fromkeys((aucs.ratios[0], aucs.ratios[-1])))
    each = []
    for arm in aucs.arms:
        means = [f"{aucs.each(r, arm).mean():.3f}" for r in ends if aucs.of[r, arm]]
        each.append(f"{LINES[arm][0]} {' and '.join(means)}")
    where = f" with {' and '.join(ends)} of the patients in A" if aucs.drawn else ""
    return f"The mean AUC{where}: {'; '.join(each)}"


def told(aucs):
    """A clause on the arms than which the transcriptome is better or worse."""
    clauses = []
    for kind in ("better", "worse"):
        for arm in aucs.arms:
            ratios = kinds_of_ratios(aucs, arm)[kind]
            if ratios:
                clauses.append(f"{kind} than {LINES[arm][0]} with {', '.join(ratios)} in A")
    if not clauses:
        return "the transcriptome is told apart from no other arm"
    return f"for other patients the transcriptome is {'; '.join(clauses)}"


def beside_the_paper(config, study):
    """Lines of the section; none but of TCGA's colon, real slides."""
    colon = {he2rna.short(project) for project in study.projects.tolist()} == {"COAD"}
    if not colon or not of_tcga(study.patients.tolist()) or config["provenance"]:
        return []
    return section(
        "Beside the paper",
        "The paper, on the same cancer: with 3/4 of the patients in A the transcriptome is better "
        "than the direct network and both autoencoders (p < .0001 each, over 50 splits); with few "
        "patients in A the direct network is. [HE2RNA Results; Fig. 5]",
    )


def what_was_done(config):
    turned = [f" As the authors' code: {switches(CHOICES, 'msi')[c]}." for c in config["code"]]
    return (
        f"{said_of_expression(config)} "
        f"{config['repeats']} x {config['folds']} folds in B by patient. auc is over a test fold's "
        "patients, its mean over folds and repeats, then over splits; low_68 to high_68 is the "
        "range of 68 % of the splits. transcriptome_less_it: the difference of AUC, its 95 % "
        "interval (low_95 to high_95) and p for other patients, by Nadeau and Bengio's corrected t "
        "over the splits: they divide the same patients again and again, and the correction is "
        "for that. With equal arms at most .05 of studies have p < .05, often fewer. p_splits is "
        "the paper's two-tailed Wilcoxon test, paired over splits of the same patients: no test "
        "of new patients. With equal arms it is below .05 in a tenth to nine tenths of studies, "
        "in more the more splits. No p is corrected over ratios and arms. "
        f"The transcriptome is the mean of {config['folds']} networks' representations, as "
        "autoencoder-a is; direct and autoencoder-b lack that advantage of ensembling, and the "
        f"fair comparison of features is with the ensemble of as many networks.{''.join(turned)}"
    )


def leaks(log):
    steps = sorted({step for entry in log for step in entry["leaks"]})
    return [f"**Steps that saw test patients: {', '.join(steps)}** (below).", ""] if steps else []


def whom_steps_saw(log):
    rows = {row[0]: row for entry in log for row in entry["saw"]}
    return table(("step", "patients", "test patients of the fold", ""), rows.values())


def summary(aucs):
    """The rows of table.csv."""
    for ratio in aucs.ratios:
        for arm in aucs.arms:
            auc = aucs.each(ratio, arm)
            if not len(auc):
                continue
            own, other = aucs.against(ratio, arm)
            sd = auc.std(ddof=1) if len(auc) > 1 else 0
            numbers = [f"{v:.4f}" for v in (auc.mean(), sd, *np.quantile(auc, INTERVAL))]
            *gain, p = aucs.advantage(ratio, arm)
            tests = [*(said(v, "+.4f") for v in gain), said(p, ".3g")]
            if own.size:
                tests += [f"{he2rna.arms_p(other, own):.3g}", int((other > own).sum())]
            row = ratio, *aucs.in_b[ratio], arm, len(auc), *numbers, *tests
            yield *row, *[""] * (len(HEADER) - len(row))


def said(value, form):
    """A number as text, nothing where there is none."""
    return "" if np.isnan(value) else f"{value:{form}}"


def verdicts(aucs):
    """Of each arm, at which ratios the transcriptome is better, worse, or not to be told apart."""
    if not aucs.drawn:
        yield (
            "The hospitals are given: one division, whose splits only draw folds and seeds anew. "
            "Nothing here tells of other patients; the table has no interval."
        )
        return
    for arm in aucs.arms:
        kinds = kinds_of_ratios(aucs, arm)
        if kinds:
            told = "; ".join(f"{kind} at {', '.join(ratios)}" for kind, ratios in kinds.items())
            yield f"Verdict for other patients, transcriptome against {LINES[arm][0]}: {told} in A."


def kinds_of_ratios(aucs, arm):
    """{better, worse or not told apart: the ratios at which the transcriptome is}."""
    kinds = defaultdict(list)
    for ratio in aucs.ratios:
        _, low, high, p = aucs.advantage(ratio, arm)
        if not np.isnan(p):
            kind = "better" if low > 0 else "worse"
            kinds[kind if low > 0 or high < 0 else "not told apart"].append(ratio)
    return kinds


# ----- Pictures -----------------------------------------------------------------------------------


def patients_in(aucs):
    """How many patients and splits a picture is of."""
    splits = {split for of in aucs.of.values() for split in of}
    return f"MSI in hospital B: {aucs.n_patients} patients in both hospitals, {len(splits)} splits"


def draw_shares(path, aucs, words):
    """AUC by the share of patients in B, mean and 68 % range over splits. [HE2RNA Fig. 5b]"""
    with figure(path, title=patients_in(aucs), words=words, figsize=(7.2, 5.2)) as ax:
        for arm in aucs.arms:
            ratios = [ratio for ratio in aucs.ratios if aucs.of[ratio, arm]]
            x = [float(1 - as_share(ratio)) for ratio in ratios]
            each = [aucs.each(ratio, arm) for ratio in ratios]
            name, color, style, mark = LINES[arm]
            means = [auc.mean() for auc in each]
            label = f"{name}, mean of {splits_in(each)}"
            ax.plot(x, means, style, color=color, marker=mark, ms=4, label=label)
            if arm in ("transcriptome", "direct"):
                low, high = np.array([np.quantile(auc, INTERVAL) for auc in each]).T
                range_of = {"label": f"{name}, 68 % of the splits", "alpha": 0.2, "lw": 0}
                ax.fill_between(x, low, high, color=color, **range_of)
        ax.axhline(0.5, color=RULE, lw=1, zorder=0, label="chance")
        in_b = [1 - as_share(ratio) for ratio in aucs.ratios]
        ticks = []
        for share, ratio in zip(in_b, aucs.ratios, strict=True):
            patients, high = aucs.in_b[ratio]
            ticks.append(f"{share}\n{patients}\n({high})")
        ax.set_xticks([float(share) for share in in_b], ticks)
        ax.set(xlabel="share of the patients in hospital B; their number (and of MSI-H)")
        ax.set(ylabel="ROC-AUC for MSI-H in hospital B", ylim=(None, 1.02))
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False, ncols=2)


def splits_in(each):
    """'20 splits', '18 to 20 splits'"""
    least, most = min(map(len, each)), max(map(len, each))
    return counted(most, "split") if least == most else f"{least} to {most} splits"


def draw_arms(path, aucs, words):
    """Each arm's AUC in the splits of one ratio, a dot each, and p of both tests. [HE2RNA Fig. 5c]

    An axis from 0 to 1.
    """
    ratio = min(aucs.ratios, key=lambda ratio: abs(as_share(ratio) - ARMS_AT))
    arms = [arm for arm in aucs.arms if aucs.of[ratio, arm]]
    title = f"{patients_in(aucs)}; {ratio} of the patients in A"
    size = (3 + 1.6 * len(arms), 5)
    with figure(path, title=title, words=words, figsize=size) as ax:
        names = []
        for i, arm in enumerate(arms):
            auc, (name, color, _, mark) = np.sort(aucs.each(ratio, arm)), LINES[arm]
            across = i + np.linspace(-0.25, 0.25, len(auc) + 2)[1:-1]
            dots = "a split, in order of AUC" if i == 0 else None
            ax.scatter(across, auc, s=12, color=color, marker=mark, alpha=0.7, lw=0, label=dots)
            low, middle, high = np.quantile(auc, (QUARTILES[0], 0.5, QUARTILES[1]))
            box = "median and quartiles" if i == 0 else None
            spread = {"yerr": [[middle - low], [high - middle]], "color": INK, "capsize": 4}
            ax.errorbar(i, middle, fmt="_", ms=18, lw=1.2, label=box, **spread)
            names.append(f"{name.replace(' ', chr(10), 1)}\n{counted(len(auc), 'split')}")
            own, other = aucs.against(ratio, arm)
            if own.size:
                p = said(aucs.advantage(ratio, arm)[3], ".2g")
                text = f"p = {p or 'no value'}\np over splits = {he2rna.arms_p(other, own):.2g}"
                ax.text(i, 1.03, text, ha="center", va="bottom", fontsize=7.5)
        ax.axhline(0.5, color=RULE, lw=1, zorder=0, label="chance")
        ax.set_xticks(range(len(arms)), names, fontsize=8)
        ax.set(
            ylabel="ROC-AUC for MSI-H in hospital B", ylim=(0, 1.02), xlim=(-0.6, len(arms) - 0.4)
        )
        ax.set_title(
            "p: the transcriptome against it, for other patients\n\n", fontsize=8, loc="left"
        )
        ax.legend(loc="lower left")
