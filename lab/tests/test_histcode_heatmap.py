"""Maps: means over the models that did not know the patient, of attention or contributions."""

import shutil

import numpy as np
import pytest
import torch

import histcode
from lab.commands.histcode import main
from lab.commands.histcode.heatmap import Asked, map_scores, span_of_map
from lab.files import InputError
from lab.histcode.heads import apply_heads
from lab.histcode.runs import load_run
from lab.runs import load_checkpoint
from lab.show.maps import SCORE_COLORS
from lab.tests.helpers import read_csv, swap
from lab.tests.helpers_histcode import maps_of, spoken_by_hand, tiles_in


def test_maps_are_means_over_models_and_keep_their_sum(changed):
    run, h = load_run(changed / "runs" / "linear"), tiles_in(changed, "s2_1")
    assert len(h) == 11  # odd: each model leaves one tile out
    appliers = [apply_heads(s, "cpu") for s in run["folds"]]
    attention = [spoken_by_hand(s, h)[1][0] for s in run["folds"]]
    got, shares = map_scores(Asked(run, appliers, 0, "attention", "x"), [0, 2], h)
    assert np.allclose(shares, 11 * (attention[0] + attention[2]) / 2, atol=1e-5)
    assert np.allclose(
        got,
        sum((a - a.min()) / (a.max() - a.min()) for a in (attention[0], attention[2])) / 2,
        atol=1e-5,
    )
    for use in ([1], [0, 1, 2]):
        got, _ = map_scores(Asked(run, appliers, 3, "contribution", "x"), use, h)
        want = np.mean([spoken_by_hand(run["folds"][m], h)[0][3] for m in use])
        assert np.nansum(got) + np.mean([run["folds"][m]["bias"][3] for m in use]) == pytest.approx(
            want, abs=2e-5
        )
        undefined = [
            {i for i in range(11) if sorted(a).index(a[i]) == 5}
            for a in (attention[m] for m in use)
        ]
        assert set(np.flatnonzero(np.isnan(got))) == set.intersection(*undefined)


def test_colours_say_how_uneven_attention_is_and_where_nothing_is_added():
    span = span_of_map("attention", np.array([0.0, 0.5, 1]), np.array([0.97, 1, 1.03]))
    assert (span.low, span.high) == (0, 1)
    assert "tiles weigh 0.97 to 1 times an even share" in span.said
    span = span_of_map("contribution", np.array([0.06, np.nan, 0.1]), np.ones(3))
    assert (span.low, span.high) == (-0.1, 0.1) and span.colors != SCORE_COLORS
    assert "from −0.1 to 0.1, white in their middle" in span.said


def test_a_gene_whose_name_is_a_path_is_drawn_nowhere(changed, tmp_path):
    run = tmp_path / "c" / "runs" / "r"
    shutil.copytree(changed / "runs" / "joint", run)
    for path in run.glob("fold*.pt"):
        saved = load_checkpoint(path, "cpu")
        saved["genes"][1] = "../../x"
        torch.save(saved, path)
    with pytest.raises(InputError, match=r"gene '../../x' can't name a map's folder"):
        main(["heatmap", str(run), "s0_1", "--genes", "../../x", "--device", "cpu"])


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_gene_maps_of_a_linear_and_of_per_gene_networks(looked_at, monkeypatch, capsys):
    slide, h = "S002-01A-DX1", np.load(looked_at / "features" / "one" / "S002-01A-DX1.npy")
    monkeypatch.setattr(histcode.ends_of, "__defaults__", (4,))  # so that most tiles are at no end
    assert maps_of(looked_at, "expression", slide, "--genes", "CD3E") == 0
    run = load_run(looked_at / "runs" / "expression")
    (m,) = run["fold_of"]["S002"]
    rows = read_csv(run["folder"] / "heatmaps" / "CD3E" / slide / "tiles.csv")
    score = [float(r["contribution"]) for r in rows if r["contribution"]]
    assert len(score) == 8 < len(rows) == len(h)
    assert (
        "8 tiles have one"
        in (run["folder"] / "heatmaps" / "CD3E" / slide / "report.md").read_text()
    )
    picture = (run["folder"] / "heatmaps" / "CD3E" / slide / "map.svg").read_text()
    assert f"log₂ fold change of CD3E: contribution on {slide}" in picture
    assert "lymphocyte (" in picture and "without a score" in picture
    swap(monkeypatch, "histcode", "ENDS", 4)
    want = spoken_by_hand(run["folds"][m], h)[0][1]
    assert sum(score) + run["folds"][m]["bias"][1].item() == pytest.approx(want, abs=1e-3)
    assert maps_of(looked_at, "per-gene", slide, "--genes", "CD3D,ZG16") == 0
    assert maps_of(looked_at, "per-gene", slide, "--genes", "ZG16", "--score", "contribution") == 0
    per = load_run(looked_at / "runs" / "per-gene")
    a, maps = spoken_by_hand(per["folds"][m], h)[1], per["folder"] / "heatmaps"
    for gene, j in (("CD3D", 0), ("ZG16", 4)):  # attention of the gene's own network
        got = [float(r["attention"]) for r in read_csv(maps / gene / slide / "tiles.csv")]
        assert np.allclose(got, (a[j] - a[j].min()) / np.ptp(a[j]), atol=2e-4)
    assert {p.name for p in maps.iterdir()} == {"CD3D", "ZG16", "ZG16-contribution"}
    for argv, words in (
        (
            ["per-gene", slide],
            "the attention is of each gene: name some with --genes",
        ),
        (["expression", slide, "--genes", "CD3F"], "no gene 'CD3F'; nearest: CD3"),
        (
            ["expression", slide, "--score", "contribution"],
            "the contribution is of each gene: name some with --genes",
        ),
        (["expression", "nobody"], "neither a slide file nor a slide of the run"),
    ):
        with pytest.raises(InputError, match=words):
            maps_of(looked_at, *argv)
