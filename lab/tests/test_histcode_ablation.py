"""histcode.py ablation."""

import re

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats

from lab.files import InputError
from lab.tests.helpers import (
    GENES,
    drawn_run,
    read_csv,
)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_ablation_compares_encoders_and_poolings_on_the_same_folds(looked_at, capsys):
    encoders = [str(looked_at.parent / name) for name in ("one.pt", "two.pt")]
    assert drawn_run("ablation", looked_at, "--genes", GENES, "--encoders", *encoders) == 0
    said, folder = capsys.readouterr().out, looked_at / "runs" / "ablation"
    cells = [(e, p) for e in ("one", "two") for p in ("attention", "mean")]
    table, genes = read_csv(folder / "table.csv"), read_csv(folder / "genes.csv")
    assert [(r["encoder"], r["pooling"]) for r in table] == cells and all(
        r["genes"] == str(len(genes)) for r in table
    )
    values, folds = {}, []
    for e, p in cells:
        run = looked_at / "runs" / f"ablation-{e}-{p}"
        own = {r["gene"]: r for r in read_csv(run / "genes.csv")}
        assert all(r[f"{k} {e} {p}"] == own[r["gene"]][k] for r in genes for k in ("R", "spearman"))
        values[f"{e}, {p}"] = np.array(
            [[float(own[r["gene"]][k]) for k in ("R", "spearman")] for r in genes]
        )
        folds.append((run / "folds.csv").read_text())
    assert len(set(folds)) == 1 and (folder / "ablation.png").is_file()
    tested = len(
        set(np.load(looked_at / "runs" / "ablation-one-mean" / "predictions.npz")["patient"])
    )
    assert re.search(
        rf"learned from, without labels: one (not known|\d+ of {tested}); two (not known|\d+ of {tested})\.",
        (folder / "report.md").read_text(),
    )
    for (e, p), r in zip(cells, table):
        v = values[f"{e}, {p}"]
        assert r["mean R ± SD"] == f"{v[:, 0].mean():.3f} ± {v[:, 0].std():.3f}"
        assert r["median R"] == f"{np.median(v[:, 0]):.3f}"
    lines = [
        line.strip("|")
        for line in (folder / "report.md").read_text().splitlines()
        if line[:1] == "|"
    ]
    lines = [[c.strip() for c in line.split("|")] for line in lines if line.count(",") == 2]
    assert [tuple(line[:2]) for line in lines] == [
        ("one, attention", "one, mean"),
        ("one, attention", "two, attention"),
        ("one, mean", "two, mean"),
        ("two, attention", "two, mean"),
    ]
    compared = 0
    for a, b, *rest in lines:
        d = values[a] - values[b]
        for k in (0, 1):
            p = (
                scipy.stats.wilcoxon(d[:, k])[1]
                if len(set(np.abs(d[:, k]))) == len(d) and d[:, k].all()
                else None
            )
            compared += p is not None
            assert rest[2 * k] == f"{d[:, k].mean():+.3f}"
            assert p is None or float(rest[2 * k + 1]) == pytest.approx(p, rel=0.06)
    assert compared > 3 and "Genes vary together" in said  # SciPy approximates the ties of others
    with pytest.raises(InputError, match="--encoders .* two have the name one"):
        drawn_run("ablation", looked_at, "--encoders", encoders[0], encoders[0])
    before = {
        p: p.read_bytes()
        for d in ("expression", "ablation")
        for p in (looked_at / "runs" / d).rglob("*.*")
    }
    for name, which, words in (
        ("expression", encoders, "a run with other settings .command expression -> ablation"),
        ("ablation", encoders[:1], "a run with other settings .encoders .* -> .'one'."),
    ):
        with pytest.raises(InputError, match=words):
            drawn_run("ablation", looked_at, "--genes", GENES, "--encoders", *which, "--name", name)
    assert all(p.read_bytes() == b for p, b in before.items())
