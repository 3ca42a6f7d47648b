"""histcode.py ablation: encoders x poolings. Authorities: the runs of the cells, SciPy's test."""

import contextlib
import io
import shutil

import numpy as np
import pytest
import scipy.stats

from lab.files import InputError
from lab.tests.helpers import copy_of, read_csv
from lab.tests.helpers_histcode import GENES, drawn_run, opening_of

CELLS = [(encoder, pooling) for encoder in ("one", "two") for pooling in ("attention", "mean")]
DIFFER_IN_ONE_THING = [(0, 1), (0, 2), (1, 3), (2, 3)]


@pytest.fixture(scope="module")
def ablated_once(looked_at_once, tmp_path_factory):
    """A cohort whose cells are learned and compared; ablation.txt holds what was said."""
    folder = tmp_path_factory.mktemp("ablated") / "all"
    shutil.copytree(looked_at_once.parent, folder)
    cohort = folder / looked_at_once.name
    encoders = [str(folder / name) for name in ("one.pt", "two.pt")]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert drawn_run("ablation", cohort, "--genes", GENES, "--encoders", *encoders) == 0
    (cohort / "ablation.txt").write_text(said.getvalue())
    return cohort


ablated = copy_of("ablated_once")


def test_ablation_compares_encoders_and_poolings_on_the_same_folds(ablated):
    said, runs = (ablated / "ablation.txt").read_text(), ablated / "runs"
    report = (runs / "ablation" / "report.md").read_text()
    table = read_csv(runs / "ablation" / "table.csv")
    values, folds = {}, []
    for encoder, pooling in CELLS:
        run = runs / f"ablation-{encoder}-{pooling}"
        rows = sorted(
            (r["gene"], float(r["R"]), float(r["spearman"])) for r in read_csv(run / "genes.csv")
        )
        values[encoder, pooling] = np.array([row[1:] for row in rows])
        folds.append((run / "folds.csv").read_text())
    known = ~np.isnan(list(values.values())).any((0, 2))
    values = {cell: v[known] for cell, v in values.items()}
    assert len(set(folds)) == 1 and (runs / "ablation" / "ablation.png").is_file()
    assert [(r["encoder"], r["pooling"]) for r in table] == CELLS
    for cell, r in zip(CELLS, table, strict=True):
        v = values[cell]
        assert r["genes"] == str(known.sum())
        assert r["mean R ± SD"].lstrip("'") == f"{v[:, 0].mean():.3f} ± {v[:, 0].std():.3f}"
        assert r["median R"] == f"{np.median(v[:, 0]):.3f}"
        assert r["mean Spearman ± SD"].lstrip("'") == f"{v[:, 1].mean():.3f} ± {v[:, 1].std():.3f}"
    rows = [line.strip("| ").split(" | ") for line in report.splitlines() if line[:1] == "|"]
    lines = [row for row in rows if "," in row[0]]
    compared = 0
    for (i, j), (one, other, *got) in zip(DIFFER_IN_ONE_THING, lines, strict=True):
        assert (one, other) == (", ".join(CELLS[i]), ", ".join(CELLS[j]))
        for k, d in enumerate((values[CELLS[i]] - values[CELLS[j]]).T):
            assert got[2 * k] == f"{d.mean():+.3f}"
            if d.all() and len(set(np.abs(d))) == len(d):  # SciPy approximates ties
                compared += 1
                assert float(got[2 * k + 1]) == pytest.approx(scipy.stats.wilcoxon(d)[1], rel=0.06)
    assert compared > 3 and "takes genes for independent" in said
    mean = {", ".join(cell): v[:, 0].mean() for cell, v in values.items()}
    opening, best = opening_of(report), max(mean, key=mean.get)
    assert f"highest in {best} ({mean[best]:.3f})" in opening["Found"]
    assert "no two cells" in opening["Found"] and "**SIMULATED cohort.**" in report
    assert {row["provenance"] for row in table} == {"SIMULATED cohort"}
    assert {len(line) for line in lines} == {6}  # parts of two pairs have no R: nothing is said


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_ablation_refuses_two_encoders_of_a_name_and_folders_of_other_runs(ablated):
    one, two = (str(ablated.parent / name) for name in ("one.pt", "two.pt"))
    with pytest.raises(InputError, match=r"--encoders .* two have the name one"):
        drawn_run("ablation", ablated, "--encoders", one, one)
    folders = [ablated / "runs" / name for name in ("expression", "ablation")]
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*.*")}
    for name, encoders, words in (
        ("expression", (one, two), "a run with other settings .command expression -> ablation"),
        ("ablation", (one,), "a run with other settings .encoders .* -> .'one'."),
    ):
        given = ("--genes", GENES, "--name", name, "--encoders", *encoders)
        with pytest.raises(InputError, match=words):
            drawn_run("ablation", ablated, *given)
    assert all(path.read_bytes() == data for path, data in before.items())
