"""Plots of numbers: what is written on them, and what is said where they can't be figures."""

import sys

import numpy as np
import pytest
from PIL import Image

from lab.files import InputError
from lab.show.plots import (
    LONGEST_NAME,
    PICTURE_DPI,
    draw_folds,
    draw_scatter,
    drawable,
    figure,
    need_matplotlib,
    r_said,
)

pytestmark = pytest.mark.usefixtures("printed")


@pytest.mark.parametrize("n", [1, 2, 60, 3000])
def test_scatter_writes_r_and_medians(figures, n):
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=n), rng.poisson(9, n)
    draw_scatter("a.png", scores, values, "x", "y", "t", ["SIMULATED cohort"])
    (fig,) = figures
    best = values[np.argsort(-scores)[: max(1, min(100, n // 2))]]
    title, words = (text.get_text() for text in fig.texts)
    r = f"R = {np.corrcoef(scores, values)[0, 1]:.2f}" if n > 2 else "no R, too few"
    assert title == f"t: {r} over {n:,} tile{'s' * (n > 1)}".replace("-", "−")
    assert words == "SIMULATED cohort"
    medians = [text.get_text() for text in fig.axes[1].texts]
    assert medians == [f"{np.median(best):.4g}", f"{np.median(values):.4g}"]


def test_folds_stand_in_the_legend_with_their_own_r_beside_equal_values(figures):
    """Each fold off by its own level: R 1 in each, little over all; unknown truth is left out."""
    truth = np.arange(48.0) % 4
    fold = np.arange(48) // 4
    predicted = truth - 9 * fold
    truth[0] = np.nan
    with figure("a.png", title="$x_1$ of 12 folds") as ax:
        draw_folds(ax, truth, predicted, fold)
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said[:2] == ["fold 0: R = 1.00 (n 3)", "fold 1: R = 1.00 (n 4)"]
    assert said[10:] == ["and 2 more folds", "predicted = true"]
    assert len(ax.get_legend().get_texts()) == 12
    looks = {
        (str(dots.get_facecolor()), dots.get_paths()[0].vertices.tobytes())
        for dots in ax.collections
    }
    assert len(looks) >= 12
    low, high = ax.get_ylim()
    assert low < 1 < high  # the line of equal values is in sight
    assert r_said(truth[4:], predicted[4:]) != "R = 1.00"
    assert figures[0].get_suptitle() == "$x_1$ of 12 folds"


NAMES = [
    "$\\frac{",
    "a$b$c",
    "x_1^{2",
    "_hidden",
    "\\alpha",
    "基因",
    "مرحبا",
    "نص_^",
    "😀",
    "\udc80",
    "a\nb",
]
NAMES += ["N" * 3000, "", "%s {0}", "É"]


@pytest.mark.filterwarnings("error")
def test_any_name_is_drawn(tmp_path):
    """As title, label of an axis, of a tick and in the legend; two names stay two."""
    shown = [drawable(name) for name in NAMES]
    assert len(set(shown)) == len(NAMES) and max(map(len, shown)) <= LONGEST_NAME + 1
    with figure(tmp_path / "a.b.png", title="; ".join(NAMES), words=["SIMULATED cohort"]) as ax:
        for i, name in enumerate(shown):
            ax.plot([i], [i], "o", label=name)
        ax.set_xticks(range(len(shown)), shown, rotation=90)
        ax.set(xlabel=shown[0], ylabel=shown[1])
        ax.legend()
    assert len(ax.get_legend().get_texts()) == len([name for name in shown if name])
    written = (tmp_path / "a.b.svg").read_text()
    assert "x_1^{2" in written and "SIMULATED cohort" in written and "\\u57fa" in written
    with Image.open(tmp_path / "a.b.png") as image:
        assert round(image.info["dpi"][0]) == PICTURE_DPI == 300


def test_the_same_picture_is_the_same_file_whatever_the_users_settings_are(tmp_path):
    import matplotlib

    kept = []
    for size in (9, 30):
        matplotlib.rcParams.update({"font.size": size, "savefig.bbox": "tight"})
        with figure(tmp_path / "a.png", title="t", figsize=(2, 2)) as ax:
            ax.plot([0, 1], label="a")
        kept.append([(tmp_path / f"a.{kind}").read_bytes() for kind in ("png", "svg")])
    assert kept[0] == kept[1]


def test_without_matplotlib_one_line_names_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        need_matplotlib()
