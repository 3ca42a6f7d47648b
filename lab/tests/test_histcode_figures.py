"""Figures of a diagnosis worked by hand, the best threshold by trying all, what pictures say."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from matplotlib.figure import Figure
from scipy import special

import stats
from lab.histcode.diagnose_report import draw_curves
from lab.histcode.expression_plots import draw, draw_bins
from lab.histcode.figures import best_cut, figures_of, mean_sd, pr_interval, share_interval
from lab.show.plots import ORANGE
from lab.tests.helpers import texts

pytestmark = pytest.mark.usefixtures("printed")

P = torch.tensor(
    [[0.9, 0.1, 0.8, 0.2, 0.7], [0.4, 0.3, 0.2, 0.6, 0.45], [0.6, 0.55, 0.9, 0.1, 0.8]]
)
TESTS = torch.stack([(1 - P).log(), P.log()], 2)  # logits: (epochs, n, 2)


def test_figures_of_a_fold_and_their_optimism():
    found = figures_of(np.array([1, 0, 1, 0, 1]), {"tests": TESTS, "epoch": 3})
    assert found["accuracy"] == pytest.approx(0.8) and found["auc"] == found["pr_auc"] == 1
    assert found["best_epoch"] == found["best_epoch_auc"] == found["best_threshold"] == 1


def test_a_fold_of_one_class_has_no_auc():
    found = figures_of(np.ones(5, int), {"tests": TESTS, "epoch": 1})
    assert found["accuracy"] == pytest.approx(0.6) and found["best_threshold"] == 1
    assert np.isnan(found["auc"])
    assert mean_sd([0.5, found["auc"], 0.7]) == pytest.approx((0.6, np.std([0.5, 0.7], ddof=1)))
    assert np.isnan(mean_sd([np.nan])).all()


def test_intervals_of_a_share_and_of_pr_auc():
    """SciPy's Wilson interval, and a loop that leaves out patients."""
    for hits in (9, 12, 20):
        wilson = scipy.stats.binomtest(hits, 20).proportion_ci(method="wilson")
        ours = share_interval(np.arange(20) < hits, np.arange(20))
        assert ours == pytest.approx(tuple(wilson), abs=0.006)  # n - 1 where SciPy has n
    four = np.arange(80) // 4  # four slides of a patient, all alike, count once
    alike = share_interval(four < 9, four), share_interval(np.arange(20) < 9, np.arange(20))
    assert alike[0] == pytest.approx(alike[1])
    rng = np.random.default_rng(0)
    y, who = rng.random(60) < 0.4, rng.integers(0, 20, 60)
    p = y + rng.normal(size=60)
    area = stats.pr_auc(y, p)
    areas = [stats.pr_auc(y[who != i], p[who != i]) for i in range(20)]
    error = np.std(areas) * np.sqrt(19) / (area * (1 - area))
    half = scipy.stats.t.ppf(0.975, len(set(who[y])) - 1) * error
    ends = special.logit(area) + np.array([-half, half])
    assert pr_interval(y.astype(int), p, who) == pytest.approx(tuple(special.expit(ends)))
    low, high = pr_interval(y, y * 1.0, who)
    n = len(set(who[y]))
    assert low == pytest.approx(scipy.stats.binomtest(n, n).proportion_ci(method="exact").low)
    assert high == 1
    assert np.isnan(share_interval(y, np.zeros(60))).all()
    assert np.isnan([pr_interval(y & False, p, who), pr_interval(y, p * np.nan, who)]).all()


def test_one_slide_astray_does_not_take_the_pr_auc_its_lower_end():
    """Without that patient the area is 1: it was 0 to 1."""
    y = np.arange(200) < 100
    p = np.arange(200, 0, -1.0)
    p[[99, 100]] = p[[100, 99]]
    assert 0.9 < stats.pr_auc(y, p) < 1
    low, high = pr_interval(y, p, np.arange(200))
    perfect, _ = pr_interval(y, y * 1.0, np.arange(200))
    assert 0.95 < low <= perfect < high < 1


@pytest.mark.parametrize("n", [5, 30])
def test_the_best_threshold_is_the_best_of_all(n):
    rng = np.random.default_rng(n)
    y = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    p = rng.integers(0, 6, n) / 6
    tried = [((p >= cut) == y).mean() for cut in [*np.unique(p), 2]]
    assert best_cut(y, p) == pytest.approx(max(tried))


@pytest.mark.filterwarnings("error")
def test_genes_fall_into_bins_of_r_a_tenth_wide():
    """By hand; a gene without R or fold change is in none."""
    ax = Figure().subplots()
    r = np.array([0.31, 0.39, -0.05, 0.3, np.nan, 0.35])
    fc = np.array([1.0, 2.0, 9.0, 6.0, 5.0, np.nan])
    draw_bins(ax, r, fc)
    medians = [line.get_xydata().mean(0) for line in ax.lines if line.get_color() == ORANGE]
    assert np.allclose(medians, [(-0.05, 9), (0.35, 2)])
    assert [text.get_text() for text in ax.texts] == ["1", "3"]  # genes in each


@pytest.mark.filterwarnings("error")
def test_no_gene_with_r_leaves_the_picture_of_bins_empty():
    ax = Figure().subplots()
    draw_bins(ax, np.full(3, np.nan), np.ones(3))
    assert not ax.texts and ax.get_xlabel() == "Pearson R, bins of .1"


# ----- What pictures say --------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_curves_name_the_classes_their_numbers_and_chance(figures):
    y = np.repeat([0, 1], [30, 10])
    p = y + np.random.default_rng(0).normal(size=40)
    data = {"classes": ("MSS_$^{", "MSI-H"), "what": "slides"}
    for curves in ({"_max": (y, p), "mean": (y, -p)}, {"mean": (y * 0, p)}):
        draw_curves("a.png", curves, data, "Diagnosis of MSI-H against MSS_$^{", ["SIMULATED"])
    roc, pr = figures[0].axes
    won = (p[y == 1][:, None] > p[y == 0]).mean()  # pairs, one by one
    assert f"mean, AUC {1 - won:.3f}" in texts(roc) and "chance, AUC 0.500" in texts(roc)
    assert "chance, area 0.250" in texts(pr) and "MSI-H" in pr.get_xlabel()
    assert roc.get_xlabel() == "false positive rate: MSS_$^{ taken for MSI-H"
    title = figures[0].get_suptitle()
    assert title == "Diagnosis of MSI-H against MSS_$^{\n10 slides MSI-H, 30 MSS_$^{"
    assert "SIMULATED" in texts(figures[0])
    assert len(figures[1].axes[0].lines) == 1  # one class alone: no curve


@pytest.mark.filterwarnings("error")
def test_pictures_of_fold_changes_say_model_numbers_and_parts(figures, tmp_path):
    """Unknown pairs are left out; both R of a gene in its title, each part's in the legend."""
    rng = np.random.default_rng(0)
    y = rng.random((30, 2))
    y[:4, 1] = np.nan
    prediction, part = y + rng.normal(0, 0.1, y.shape), np.arange(30) % 3
    prediction[:4, 1] = 0.5
    pairs = SimpleNamespace(genes=["_A$", "B"], y=y)
    study = SimpleNamespace(pairs=pairs, bags={"part": part})
    found = {"r": [0.91, 0.5], "baseline": [-0.1, np.nan], "r_folds": [0.9, 0.4], "fc": [1.0, 2.0]}
    found |= {"accuracy": [0.7, 0.8], "majority": [0.6, 0.6]}
    found = {name: np.array(values) for name, values in found.items()}
    draw(tmp_path, "model linear", study, found, prediction, ["SIMULATED cohort"])
    for fig in figures:
        assert "tumour against matched normal tissue, model linear" in fig.get_suptitle()
        assert "30 pairs, 2 genes" in fig.get_suptitle().replace("\n", " ")
        assert "SIMULATED cohort" in texts(fig)
    assert "predicted (mean 0.71, 2 genes)" in texts(figures[0])
    assert any("(mean −0.10, 1 gene)" in text for text in texts(figures[0]))
    first, second = figures[3].axes[:2]
    assert first.get_title("left") == " _A$\nR = 0.91, in parts 0.90, n = 30 pairs"
    assert second.get_title("left").endswith("n = 26 pairs")
    rows = (part == 0) & ~np.isnan(y[:, 1])
    r = scipy.stats.pearsonr(y[rows, 1], prediction[rows, 1])[0]
    assert f"fold 0: R = {r:.2f} (n {rows.sum()})" in texts(second)
    assert "predicted = true" in texts(second)
