"""What tiles add to a prediction. Authority: SlideModel and NumPy, tile by tile."""

import itertools

import numpy as np
import pytest

from lab.histcode.heads import apply_heads
from lab.histcode.predictions import contributions
from lab.tests.helpers_histcode import folds_in, spoken_by_hand, tiles_in


@pytest.mark.parametrize("name", ["linear", "joint", "mean", "per-gene"])
def test_what_tiles_add_and_the_bias_are_the_prediction(changed, name):
    folds = folds_in(changed / "runs" / name)
    for slide, saved in itertools.product(("s2_1", "s3_1", "s4_0"), folds):
        h = tiles_in(changed, slide)
        a = apply_heads(saved, "cpu")(h)[1].double().numpy()
        want, by_hand = spoken_by_hand(saved, h)
        assert np.allclose(a, by_hand, atol=1e-6)
        for j in range(len(want)):
            got = contributions(saved, h, a, j)
            if name == "linear":
                assert np.isnan(got).sum() == len(h) % 2  # the one tile between both halves
                bias = saved["bias"][j].item()
            else:
                m, output = (j, 0) if name == "per-gene" else (0, j)
                net = {k: value[m].double().numpy() for k, value in saved["model"].items()}
                x = (h.astype(float) - net["mean"]) * net["scale"]
                w = net["head.classify.weight"][output]
                assert np.allclose(got, by_hand[m] * (x @ w), atol=1e-6)
                bias = net["head.classify.bias"][output]
            assert np.nansum(got) + bias == pytest.approx(want[j], abs=2e-5)
