"""Predictions of finished runs: the means of the models that did not know the patient, by hand."""

import shutil

import h5py
import numpy as np
import pytest

import histcode
from lab.application import held_out
from lab.cohort.identity import Slide
from lab.commands.histcode import main
from lab.commands.histcode.heatmap import Asked, map_scores
from lab.files import InputError
from lab.histcode.heads import apply_heads
from lab.histcode.predictions import contributions
from lab.histcode.runs import load_run
from lab.runs import load_checkpoint
from lab.tests.helpers import read_csv, swap, tile_cloud
from lab.tests.helpers_he2rna import mixed_up
from lab.tests.helpers_histcode import (
    diagnose,
    folds_in,
    spoken_by_hand,
    tiles_in,
    write_slides,
)


def predict(run, *slides):
    return main(["predict", str(run), *map(str, slides), "--device", "cpu"])


def by_hand(saved, h, linear):
    """Means over models: y (G,), and the share of label 1 or the label of y."""
    y, p = [], []
    for model in saved:
        out, a = spoken_by_hand(model, h)
        y.append(out)
        x = histcode.end_features(h, a[0])
        if linear:  # it has a layer of its own for the label
            weights, bias = (model[f"label_{k}"].double().numpy() for k in ("weights", "bias"))
            p.append(1 / (1 + np.exp(-(x @ weights + bias))))
    y = np.mean(y, 0)
    return y, np.mean(p, 0) if linear else histcode.label_of(y)


@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_predictions_of_a_run_are_the_means_of_its_models_by_hand(changed, tmp_path, name, capsys):
    run = changed / "runs" / name
    new = tmp_path / "h5" / "new.h5"  # features of a folder of the same name
    new.parent.mkdir()
    shutil.copy(changed / "h5" / "s4_1.h5", new)
    saved, z = folds_in(run), np.load(run / "predictions.npz")
    part = z["part"][z["patient"].tolist().index("TCGA-AA-0004")]
    label = f"{'p' if name == 'linear' else 'predicted'}_abs_log2_fc_above_{histcode.LOG2_FC}"
    h = tiles_in(changed, "s4_1")
    for argv, use in (
        ([new], [0, 1, 2]),
        (["s4_1"], [part]),
        (["s4_1", "--all-models"], [0, 1, 2]),
    ):
        assert predict(run, *argv) == 0
        words = f"{len(h)} tiles, {len(use)} of 3 models, {len(z['genes'])} genes"
        assert words in capsys.readouterr().out
        slide = "new" if argv == [new] else "s4_1"
        rows = read_csv(run / "predict" / f"{slide}.csv")
        assert [r["gene"] for r in rows] == z["genes"].tolist()
        columns = ("log10_fc_plus_1", "fold_change", label)
        got_y, got_fc, got_label = ([float(r[c]) for r in rows] for c in columns)
        y, p = by_hand([saved[m] for m in use], h, name == "linear")
        assert np.allclose(got_y, y, atol=2e-5) and np.allclose(got_label, p, atol=2e-5)
        assert np.allclose(got_fc, np.maximum(10**y - 1, 0), atol=2e-4, rtol=1e-4)


def test_features_of_another_scale_fail_and_are_told(changed, tmp_path, capsys):
    run, h = changed / "runs" / "joint", tiles_in(changed, "s4_1")
    large, new = tmp_path / "h5" / "large.h5", tmp_path / "h5" / "new.h5"
    new.parent.mkdir()
    shutil.copy(changed / "h5" / "s4_1.h5", new)
    with h5py.File(large, "w") as f:
        f["features"], f["coords"] = h * (65504 / np.abs(h).max()), tile_cloud(len(h))
    assert predict(run, large, new) == 1
    said = capsys.readouterr()
    why = "failed: large: its prediction is not finite: features up to"
    assert why in said.err and "e+04 are of another scale" in said.err
    assert said.out.startswith("new: ") and not (run / "predict" / "large.csv").exists()
    saved = folds_in(run)
    appliers = [apply_heads(one, "cpu") for one in saved]
    asked = Asked({"folds": saved}, appliers, 0, "attention", "x")
    with pytest.raises(InputError, match="of another scale"), np.errstate(all="ignore"):
        map_scores(asked, [0], h * np.float32(1e38))


@pytest.fixture
def diagnosed(tmp_path, monkeypatch, capsys):
    """A diagnosis of 12 patients in 6 parts, of which 3 to 5 are never tested."""
    cohort = write_slides(tmp_path / "c", 12, labels=("normal", "tumor"))
    swap(monkeypatch, "lab.histcode.diagnose_report", "draw_curves", lambda *_: None)
    assert diagnose(cohort) == 0
    capsys.readouterr()
    run = cohort / "runs" / "diagnosis"
    return cohort, run, {r["slide"]: int(r["part_0"]) for r in read_csv(run / "folds.csv")}


def test_a_diagnosis_is_predicted_by_models_that_did_not_know_the_patient(diagnosed, capsys):
    cohort, run, parts = diagnosed
    tested = [slide for slide, part in parts.items() if part < 3]  # part f tests model f
    assert predict(run, "all") == 1
    said = capsys.readouterr()
    made = {path.stem for path in (run / "predict").iterdir()}
    assert made - {"failed"} == set(tested) and 0 < len(tested) < len(parts)
    for slide in set(parts) - set(tested):
        why = f"every model of {run} learned from patient {slide[:3]}: a run with --rotate"
        assert f"failed: {slide}: {why}" in said.err
    slide = tested[0]
    saved = load_checkpoint(run / f"HistCode-r0-f{parts[slide]}.pt", "cpu")
    (row,) = read_csv(run / "predict" / f"{slide}.csv")
    h = tiles_in(cohort, slide)
    logits, a = spoken_by_hand(saved, h)
    p = np.exp(logits) / np.exp(logits).sum()
    assert np.allclose([float(row["p_normal"]), float(row["p_tumour"])], p, atol=2e-6)
    assert row["predicted"] == ("normal", "tumour")[p.argmax()]
    bias = saved["model"]["head.classify.bias"][0].numpy()
    added = contributions(saved, h, a, 0).sum() + bias[1] - bias[0]
    assert added == pytest.approx(logits[1] - logits[0], abs=1e-5)
    lost = next(slide for slide in parts if slide not in tested)
    assert predict(run, lost, "--all-models") == 0


def test_a_fold_in_anothers_place_and_mixed_up_patients_are_refused(diagnosed):
    _, run, parts = diagnosed
    slide = next(slide for slide, part in parts.items() if part < 3)
    mixed_up(run, lambda: predict(run, slide), "part_0")
    shutil.copyfile(run / "HistCode-r0-f1.pt", run / "HistCode-r0-f2.pt")  # learned from f2's
    with pytest.raises(InputError, match=r"f2.pt: not a whole checkpoint .* another run or fold"):
        predict(run, "all")


def test_who_may_speak_of_a_patient(tmp_path):
    run = {"rows": [{"slide": "s", "patient": "P"}], "fold_of": {"P": []}, "folds": [0, 1]}
    run |= {"folder": tmp_path, "cohort": tmp_path}
    slide = Slide("s", None, tmp_path, True, ["P"], "s")
    with pytest.raises(InputError, match=r"every model of .* patient P: .*--rotate.*--all-models"):
        held_out(run, slide, False)
    assert held_out(run, slide, True) == [0, 1]
    assert held_out(run, Slide("nobody's", None, tmp_path, False, [], "x"), False) == [0, 1]


def test_a_diagnosis_has_no_genes_and_some_poolings_no_sums(diagnosed):
    cohort, run, parts = diagnosed
    heatmap = ["heatmap", str(run), next(iter(parts)), "--device", "cpu"]
    with pytest.raises(InputError, match="of no gene alone: leave --genes out"):
        main([*heatmap, "--genes", "UP0"])
    for pooling in ("MIL-RNN", "DSMIL"):
        assert diagnose(cohort, "--pooling", pooling) == 0
        with pytest.raises(InputError, match=f"contribution: {pooling} is no sum over tiles"):
            main([*heatmap, "--pooling", pooling, "--score", "contribution"])
    with pytest.raises(InputError, match=r"--pooling max: .* has MIL-RNN, DSMIL, HistCode"):
        load_run(run, "max")
