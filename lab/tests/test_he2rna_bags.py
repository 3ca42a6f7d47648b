"""lab.tests.test_he2rna_bags"""

import math

import numpy as np
import pytest
import torch

import he2rna
import stats
from lab.cohort.features import load_features
from lab.files import InputError
from lab.he2rna.bags import from_disk, in_memory, load_bags, read_ahead
from lab.tests.helpers import read_csv, same, train, write_cohort


def test_the_three_nulls_of_a_run(tmp_path, capsys):
    """Untrained models judge genes that follow nothing as chance does; --null only changes what decides, nothing is trained again."""
    write_cohort(tmp_path, np.random.default_rng(3), patients=40, genes=40)
    run = tmp_path / "runs" / "he2rna"
    for null in ("untrained", "t", "permutation"):
        assert train(tmp_path, "--epochs", "2", "--null", null, "--null-models", "2") == 0
        rows = read_csv(run / "genes.csv")
        for project in "XY":
            part = [r for r in rows if r["project"] == project]
            same(
                [float(r["p_holm_sidak"]) for r in part],
                stats.holm_sidak(np.array([float(r[f"p_{null}"]) for r in part])),
                1e-4,
            )
        assert f"under the {null} null" in (run / "report.md").read_text()
    z, saved = np.load(run / "predictions.npz"), np.load(run / "null.npz")
    assert saved["X"].shape == (2 * 25, 40) and (run / "null.png").stat().st_size > 5000
    noise = saved["X"][:, 3:]  # genes that follow nothing
    assert abs(noise.mean()) < 0.1 and noise.std() == pytest.approx(1 / math.sqrt(20 - 3), rel=0.35)
    torch.manual_seed(int(np.random.default_rng([0, 1, 1]).integers(2**62)))  # one of them, again
    model, at = he2rna.HE2RNA(8, 1000, (32, 16), (1, 5, 20)), (z["fold"] == 1) & (z["project"] == "X")
    x, mask = load_bags(tmp_path, "h5", z["slide"][at].tolist())
    p = he2rna.predict(model, in_memory(x, mask), np.arange(at.sum()))[:, :40]
    folds = [saved["X"][0] * 3]  # mean of the three folds: the other two are between -1 and 1
    one = stats.pearson(p, z["truth"][at])
    assert (np.abs(folds[0] - one) <= 2 + 1e-4).all() and np.corrcoef(saved["X"][0], one)[
        0, 1
    ] > 0.3
    before = (run / "null.npz").stat().st_mtime_ns
    assert (
        train(tmp_path, "--epochs", "2") == 0 and (run / "null.npz").stat().st_mtime_ns != before
    )  # three models again


def test_the_fast_head_trains_on_batches_read_ahead(tmp_path):
    """Ragged slides in any order, float16 from disk: what comes is what was written, padded."""
    write_cohort(tmp_path, np.random.default_rng(2), patients=7)
    slides = [f"s{p:02d}_0" for p in range(7)]
    bags, seen = from_disk(tmp_path, tmp_path / "h5", slides), []
    parts = torch.tensor([5, 0, 6, 3, 2]).split(2)
    for rows, (x, mask) in zip(parts, read_ahead("test")(bags, parts), strict=True):
        for r, bag, m in zip(rows.tolist(), x, mask):
            features = load_features(tmp_path, tmp_path / "h5", slides[r])[0]
            assert (
                (bag[m].numpy() == features).all()
                and (bag[~m] == 0).all()
                and m.sum() == len(features)
            )
            seen.append(r)
    assert seen == [5, 0, 6, 3, 2]
    (tmp_path / "h5" / "s03_0.h5").unlink()
    with pytest.raises(InputError, match="s03_0.h5"):
        list(read_ahead("test")(bags, torch.tensor([5, 3]).split(2)))
