"""The best genes of a run, and what its pictures say."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

import he2rna
from lab.he2rna.best import best_genes, best_section, holds, said_of_best
from lab.he2rna.report_plots import draw_null, draw_r, draw_scatter
from lab.tests.helpers import texts

pytestmark = pytest.mark.usefixtures("printed")

WORDS = ["SIMULATED cohort"]


def judged(prediction, y, fold, projects, genes, **more):
    """(data, results) of predictions (S, G)."""
    data = SimpleNamespace(y=y, fold=fold, projects=projects, genes=genes)
    return data, he2rna.evaluate(prediction, y, fold, projects, int(fold.max()) + 1, **more)


def drifting(genes=("offset$_1^{", "steady", "noise")):
    """Genes of 60 patients in 5 folds: told apart within folds whose models are off by far more
    than the gene varies; told apart everywhere; not at all.
    """
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 3))
    fold = np.arange(60) % 5
    prediction = y + rng.normal(0, 0.2, y.shape)
    prediction[:, 0] -= 9 * (fold - 2)
    prediction[:, 1] += rng.normal(0, 0.6, 60)
    prediction[:, 2] = rng.normal(size=60)
    return (prediction, *judged(prediction, y, fold, np.repeat("A", 60), list(genes)))


def test_a_gene_holds_where_its_folds_and_all_slides_agree():
    """The best R of all, of a gene that no picture of all slides shows, does not come first."""
    prediction, data, results = drifting()
    e = results["A"]
    assert e["r"][0] > 0.9 > e["r"][1] > 0.5 and e["pooled"][0] < 0.2
    for gene in range(3):
        r, p = scipy.stats.pearsonr(prediction[:, gene], data.y[:, gene], alternative="greater")
        assert e["pooled"][gene] == pytest.approx(r)
        assert holds(e)[gene] == (max(p, e["p"][gene]) < 0.05)
    assert holds(e).tolist() == [False, True, False]
    assert best_genes(results) == [("A", 1), ("A", 0), ("A", 2)]
    assert said_of_best(results, data.genes).startswith("steady (A, R 0.")
    report = "\n".join(best_section(results, data.genes))
    assert "1 of 2 in A" in report and report.index("steady") < report.index("offset")


def test_the_best_genes_stand_once_each():
    """Those that hold first, by p; without p by the lower R; none without R."""
    nan, n = np.nan, 40
    a = {"p": [0.001, 0.01, nan, nan, 0.04], "r": [0.2, 0.5, nan, 0.5, 0.5]}
    a["pooled"] = [-0.1, 0.5, nan, 0.3, 0.6]
    b = {"p": [0.02, 0.001, nan, nan, 0.3], "r": [0.4, 0.6, nan, 0.9, 0.1], "pooled": [0.4] * 5}
    results = {"A": a, "B": b}
    results = {name: {k: np.array(v) for k, v in e.items()} for name, e in results.items()}
    for e in results.values():
        e["patients"] = n
    assert best_genes(results) == [("B", 1), ("B", 0), ("A", 4), ("B", 3)]
    assert best_genes(results, 1) == [("B", 1)]


def test_no_picture_of_a_gene_is_contradicted_by_its_title(figures):
    """Each fold with its R in the legend; both R in the title, and that the gene does not hold."""
    prediction, data, results = drifting()
    about = data, prediction, results, "FPKM-UQ", WORDS
    draw_scatter("a.png", best_genes(results), *about)
    (fig,) = figures
    steady, offset, noise = fig.axes
    assert steady.get_title("left").startswith("steady in A\nR = ")
    assert "does not hold" not in steady.get_title("left")
    assert offset.get_title("left").startswith("offset$_1^{ in A\n")
    assert "does not hold" in offset.get_title("left") and "does not hold" in noise.get_title(
        "left"
    )
    for f in range(5):
        rows = data.fold == f
        r = scipy.stats.pearsonr(data.y[rows, 1], prediction[rows, 1])[0]
        assert f"fold {f}: R = {r:.2f} (n 12)".replace("-", "−") in texts(steady)
    assert "predicted = true" in texts(steady)
    assert steady.get_title("left").endswith("\n60 patients, 60 slides")
    assert steady.get_xlabel() == "true, log₁₀(1 + FPKM-UQ)" and WORDS[0] in texts(fig)


@pytest.mark.filterwarnings("error")  # a warning would reach the user's terminal
def test_pictures_of_cancers_with_many_genes_few_and_none(figures):
    """A violin or dots; numbers, names and R_sign spelled out; axes of counts begin at 0."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(100, 40))
    projects = np.repeat(["MANY_$", "Z"], [98, 2])
    prediction = y * np.r_[np.ones(9), np.zeros(31)] + rng.normal(size=y.shape)
    untrained = {"MANY_$": rng.normal(0, 0.1, (50, 40)), "Z": np.full((50, 40), np.nan)}
    _, results = judged(prediction, y, np.arange(100) % 5, projects, None, untrained=untrained)
    assert np.isnan(results["Z"]["r"]).all()
    draw_r("r.png", results, True, WORDS)
    draw_null("null.png", results, {"decoys": None, "untrained": untrained}, WORDS)
    few = {"MANY_$": {**results["MANY_$"], "r": results["MANY_$"]["r"][:4]}}
    draw_r("r.png", few, True)
    cancers, recurrent = figures[0].axes
    found = (results["MANY_$"]["hs"] < 0.05).sum()
    assert found >= 5 and {f"{found}", "no p"} <= {text.get_text() for text in cancers.texts}
    assert "Holm–Šidák" in cancers.get_title("left")
    ticks = [tick.get_text() for tick in cancers.get_xticklabels()]
    assert ticks[0] == "MANY_$\n98 patients\n98 slides\n40 genes" and "0 genes" in ticks[1]
    assert recurrent.get_ylim()[0] == 0 and recurrent.texts[0].get_text() == f"{found}"
    many, none = figures[1].axes
    r_sign = results["MANY_$"]["r_sign"]["untrained"]
    assert f" R_sign\n {r_sign:.2f}" in texts(many) and "no R" in texts(none)
    assert any(line.get_xdata()[0] == r_sign for line in many.lines)
    assert many.get_ylabel() and "untrained models" in figures[1].get_suptitle()
    assert "R of untrained" in texts(figures[1]) and WORDS[0] in texts(figures[1])
    dots = figures[2].axes[0].collections[0]
    assert len(dots.get_offsets()) == 4 and dots.get_label() == "a dot: a gene"
