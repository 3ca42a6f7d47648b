"""lab.tests.test_histcode_predict"""

import re
import shutil

import h5py
import numpy as np
import pytest

import histcode
from histcode import end_features
from lab.application import held_out
from lab.commands.histcode import main
from lab.commands.histcode.heatmap import Asked, map_scores
from lab.files import InputError
from lab.histcode.heads import apply_heads
from lab.histcode.predictions import contributions
from lab.histcode.runs import load_run
from lab.runs import load_checkpoint
from lab.tests.helpers import read_csv, swap, tile_cloud
from lab.tests.helpers_he2rna import mixed_up
from lab.tests.helpers_histcode import diagnose, folds_in, spoken_by_hand, tiles_in, write_slides


def labels_by_hand(saved, x):
    return 1 / (
        1
        + np.exp(
            -(x @ saved["label_weights"].double().numpy() + saved["label_bias"].double().numpy())
        )
    )


@pytest.mark.parametrize("name", ["linear", "joint", "per-gene"])
def test_predictions_of_a_run_are_the_means_of_its_models_by_hand(changed, tmp_path, name, capsys):
    run, new = changed / "runs" / name, tmp_path / "h5" / "new.h5"
    saved, z = folds_in(run), np.load(run / "predictions.npz")
    new.parent.mkdir()
    shutil.copy(changed / "h5" / "s4_1.h5", new)
    part = z["part"][z["patient"].tolist().index("TCGA-AA-0004")]
    header = f"{'p' if name == 'linear' else 'predicted'}_abs_log2_fc_above_{histcode.LOG2_FC}"
    h = tiles_in(changed, "s4_1")
    for argv, slide, use in (
        ([str(new)], "new", [0, 1, 2]),
        (["s4_1"], "s4_1", [part]),
        (["s4_1", "--all-models"], "s4_1", [0, 1, 2]),
    ):
        assert main(["predict", str(run), *argv, "--device", "cpu"]) == 0
        assert (
            f"{len(h)} tiles, {len(use)} of 3 models, {len(z['genes'])} genes"
            in capsys.readouterr().out
        )
        rows, each = (
            read_csv(run / "predict" / f"{slide}.csv"),
            [spoken_by_hand(saved[m], h) for m in use],
        )
        y = np.mean([out for out, _ in each], 0)
        assert [r["gene"] for r in rows] == z["genes"].tolist()
        assert np.allclose([float(r["log10_fc_plus_1"]) for r in rows], y, atol=2e-5)
        assert np.allclose(
            [float(r["fold_change"]) for r in rows], np.maximum(10**y - 1, 0), atol=2e-4, rtol=1e-4
        )
        p = np.abs(np.log2(np.maximum(10**y - 1, 1e-12))) > 1.5
        if name == "linear":  # it has a layer of its own for the label
            p = np.mean(
                [labels_by_hand(saved[m], end_features(h, a[0])) for m, (_, a) in zip(use, each)],
                0,
            )
        assert np.allclose([float(r[header]) for r in rows], p, atol=2e-5)
    with h5py.File(large := tmp_path / "h5" / "large.h5", "w") as f:
        f["features"], f["coords"] = h * np.float32(1e7), tile_cloud(len(h))
    capsys.readouterr()
    assert main(["predict", str(run), str(large), str(new), "--device", "cpu"]) == 1
    assert re.search(
        "failed: large: its prediction is not finite: features up to .*e.07 are of another scale",
        (said := capsys.readouterr()).err,
    )
    assert said.out.startswith("new: ") and not (run / "predict" / "large.csv").exists()
    with pytest.raises(InputError, match="of another scale"), np.errstate(all="ignore"):
        appliers = [apply_heads(one, "cpu") for one in saved]
        map_scores(
            Asked({"folds": saved}, appliers, 0, "attention", "x"), [0], h * np.float32(1e38)
        )


def test_a_diagnosis_is_predicted_by_models_that_did_not_know_the_patient(
    tmp_path, monkeypatch, capsys
):
    cohort = write_slides(tmp_path / "c", 12, labels=("normal", "tumor"))
    swap(monkeypatch, "lab.commands.histcode.diagnose", "draw_curves", lambda *_: None)
    assert diagnose(cohort) == 0  # parts 3 to 5 are never tested
    run = cohort / "runs" / "diagnosis"
    parts = {r["slide"]: int(r["part_0"]) for r in read_csv(run / "folds.csv")}
    learned = lambda part: [
        f for f in range(3) if part != f
    ]  # part f tests model f, all others teach it
    capsys.readouterr()
    assert main(["predict", str(run), "all", "--device", "cpu"]) == 1
    said, own = capsys.readouterr(), [s for s, p in parts.items() if len(learned(p)) == 2]
    assert {p.stem for p in (run / "predict").iterdir()} - {"failed"} == set(own) and 0 < len(
        own
    ) < len(parts)
    for slide in set(parts) - set(own):
        assert (
            f"failed: {slide}: every model of {run} learned from patient {slide[:3]}: a run with --rotate"
            in said.err
        )
    shutil.copyfile(
        run / "HistCode-r0-f1.pt", run / "HistCode-r0-f2.pt"
    )  # which learned from those that f2 tests
    with pytest.raises(
        InputError,
        match="HistCode-r0-f2.pt: not a whole checkpoint of this run .of another run or fold.",
    ):
        main(["predict", str(run), "all", "--device", "cpu"])
    (run / "HistCode-r0-f2.pt").unlink()
    assert diagnose(cohort) == 0
    slide = own[0]
    mixed_up(run, lambda: main(["predict", str(run), slide, "--device", "cpu"]), "part_0")
    saved = load_checkpoint(run / f"HistCode-r0-f{parts[slide]}.pt", "cpu")
    (row,) = read_csv(run / "predict" / f"{slide}.csv")
    logits, a = spoken_by_hand(saved, h := tiles_in(cohort, slide))
    p = np.exp(logits) / np.exp(logits).sum()
    assert np.allclose([float(row["p_normal"]), float(row["p_tumour"])], p, atol=2e-6)
    assert row["predicted"] == ("normal", "tumour")[p.argmax()]
    b = saved["model"]["head.classify.bias"][0]
    added = contributions(saved, h, a, 0).sum()
    assert added + (b[1] - b[0]).item() == pytest.approx(logits[1] - logits[0], abs=1e-5)
    lost = next(s for s in parts if s not in own)
    assert main(["predict", str(run), lost, "--all-models", "--device", "cpu"]) == 0
    models = dict(
        rows=[dict(slide=lost, patient="P")],
        fold_of=dict(P=[]),
        folds=[0, 1],
        folder=run,
        cohort=cohort,
    )
    with pytest.raises(
        InputError, match="every model of .* learned from patient P: .*--rotate.*--all-models"
    ):
        held_out(models, lost, cohort, False)
    assert (
        held_out(models, lost, cohort, True)
        == [0, 1]
        == held_out(models, "nobody's", cohort, False)
    )
    with pytest.raises(
        InputError, match="attention of this run of diagnose is one for all: leave out --genes"
    ):
        main(["heatmap", str(run), slide, "--genes", "UP0", "--device", "cpu"])
    for pooling in ("MIL-RNN", "DSMIL"):
        assert diagnose(cohort, "--pooling", pooling) == 0
        with pytest.raises(
            InputError, match=f"--score contribution: {pooling} is no sum over tiles"
        ):
            main(
                [
                    "heatmap",
                    str(run),
                    slide,
                    "--pooling",
                    pooling,
                    "--score",
                    "contribution",
                    "--device",
                    "cpu",
                ]
            )
    with pytest.raises(InputError, match="--pooling max: .* has MIL-RNN, DSMIL, HistCode"):
        load_run(run, "max")
