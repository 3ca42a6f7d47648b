"""lab.tests.test_histcode_heatmap"""

import shutil

import numpy as np
import pytest
import torch

from lab.commands.histcode import main
from lab.commands.histcode.heatmap import Asked, map_scores
from lab.files import InputError
from lab.histcode.heads import apply_heads
from lab.histcode.runs import load_run
from lab.runs import load_checkpoint
from lab.tests.helpers import spoken_by_hand, tiles_in


def test_maps_are_means_over_models_and_keep_their_sum(changed):
    run, h = load_run(changed / "runs" / "linear"), tiles_in(changed, "s2_1")
    assert len(h) == 11  # odd: each model leaves one tile out
    appliers = [apply_heads(s, "cpu") for s in run["folds"]]
    attention = [spoken_by_hand(s, h)[1][0] for s in run["folds"]]
    got = map_scores(Asked(run, appliers, 0, "attention", "x"), [0, 2], h)
    assert np.allclose(
        got,
        sum((a - a.min()) / (a.max() - a.min()) for a in (attention[0], attention[2])) / 2,
        atol=1e-5,
    )
    for use in ([1], [0, 1, 2]):
        got = map_scores(Asked(run, appliers, 3, "contribution", "x"), use, h)
        want = np.mean([spoken_by_hand(run["folds"][m], h)[0][3] for m in use])
        assert np.nansum(got) + np.mean([run["folds"][m]["bias"][3] for m in use]) == pytest.approx(
            want, abs=2e-5
        )
        undefined = [
            {i for i in range(11) if sorted(a).index(a[i]) == 5}
            for a in (attention[m] for m in use)
        ]
        assert set(np.flatnonzero(np.isnan(got))) == set.intersection(*undefined)


def test_a_gene_whose_name_is_a_path_is_drawn_nowhere(changed, tmp_path):
    run = tmp_path / "c" / "runs" / "r"
    shutil.copytree(changed / "runs" / "joint", run)
    for path in run.glob("fold*.pt"):
        saved = load_checkpoint(path, "cpu")
        saved["genes"][1] = "../../x"
        torch.save(saved, path)
    with pytest.raises(InputError, match="gene '../../x' can't name a map's folder"):
        main(["heatmap", str(run), "s0_1", "--genes", "../../x", "--device", "cpu"])
