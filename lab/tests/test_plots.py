"""Plots of numbers: what is written on them, and what is said where they can't be drawn."""

import io
import sys

import numpy as np
import pytest

from lab.files import InputError
from lab.show.plots import draw_scatter, need_matplotlib
from lab.tests.helpers import swap


@pytest.mark.parametrize("n", [1, 2, 60, 3000])
def test_scatter_writes_r_and_medians(monkeypatch, n):
    import matplotlib.pyplot as plt

    rng, seen = np.random.default_rng(0), []
    scores, values = rng.normal(size=n), rng.poisson(9, n)
    swap(
        monkeypatch,
        "lab.files",
        "save_file",
        lambda path, write: (
            write(io.BytesIO()),
            seen.extend(
                [plt.gcf().texts[0].get_text(), *(t.get_text() for t in plt.gcf().axes[1].texts)]
            ),
        ),
    )
    draw_scatter("a.png", scores, values, "x", "y", "t")
    best = values[np.argsort(-scores)[: max(1, min(100, n // 2))]]
    assert seen[0].startswith(
        f"t: R = {np.corrcoef(scores, values)[0, 1]:.2f}" if n > 1 else "t: no R"
    )
    assert seen[1:] == [f"{np.median(best):.4g}", f"{np.median(values):.4g}"]


def test_without_matplotlib_one_line_names_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        need_matplotlib()
