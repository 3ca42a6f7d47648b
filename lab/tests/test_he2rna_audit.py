"""lab.tests.test_he2rna_audit"""

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats

from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.training import train_fold as training_train_fold
from lab.tests.helpers import read_csv, swap, write_cohort


def test_audit_goes_on_where_it_stopped_and_is_the_runs_difference(tmp_path, monkeypatch, capsys):
    write_cohort(tmp_path, np.random.default_rng(1), patients=24)
    audit = lambda *more: main(
        [
            "audit",
            str(tmp_path),
            "--features",
            str(tmp_path / "h5"),
            "--hidden",
            "16",
            "--ks",
            "1,5",
            "--device",
            "cpu",
            "--folds",
            "3",
            "--valid",
            ".25",
            "--epochs",
            "2",
            "--seeds",
            "2",
            *(more or ("--code", "colour,bias,pooled")),
        ]
    )
    real_fold, trained = training_train_fold, []

    def train_fold(*args):
        if len(trained) == 8:
            trained.append("cut")
            raise KeyboardInterrupt
        trained.append(args[-2])
        return real_fold(*args)

    swap(monkeypatch, "lab.he2rna.training", "train_fold", train_fold)
    folder = tmp_path / "runs" / "audit"
    with pytest.raises(KeyboardInterrupt):
        audit()
    assert (
        "without train's colour: features made elsewhere" in capsys.readouterr().out
        and len(read_csv(folder / "audit.csv")) == 2 * 3
    )
    assert (
        audit() == 0 and len(trained) == 13 == 1 + 4 * 3
    )  # default and bias, 2 seeds, 3 folds; pooled has default's models
    stamps, first = (
        {p: p.stat().st_mtime_ns for p in folder.rglob("*.pt")},
        (folder / "audit.csv").read_bytes(),
    )
    text = (folder / "audit.md").read_text()
    assert (
        audit() == 0
        and len(trained) == 13
        and stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*.pt")}
    )
    assert (folder / "audit.csv").read_bytes() == first and (
        folder / "audit.md"
    ).read_text() == text
    value = lambda name, seed: np.mean(
        [
            np.mean(
                [
                    float(r["R"])
                    for r in read_csv(folder / f"{name}-seed{seed}" / "genes.csv")
                    if r["project"] == p and r["R"]
                ]
            )
            for p in "XY"
        ]
    )
    rows = {
        (r["choice"], int(r["seed"])): r
        for r in read_csv(folder / "audit.csv")
        if r["measure"] == "R"
    }
    assert list(rows) == [(name, s) for name in ("default", "bias", "pooled") for s in (0, 1)]
    for (name, s), r in rows.items():
        assert float(r["value"]) == pytest.approx(value(name, s), abs=2e-6)
        assert float(r["change"]) == pytest.approx(
            value(name, s) - value("default", s), abs=4e-6
        ) and (r["seconds"] == "") == (name == "pooled")
    low, high = scipy.stats.t.interval(
        0.95,
        1,
        *(lambda v: (v.mean(), v.std(ddof=1) / 2**0.5))(
            np.array([float(rows["bias", s]["change"]) for s in (0, 1)])
        ),
    )
    assert (
        f" ({low:+.3f} to {high:+.3f}) |" in text
        and "| pooled | one R over the test slides of all folds |" in text
    )
    same = [
        np.load(folder / f"{name}-seed1" / "predictions.npz")["prediction"]
        for name in ("default", "pooled")
    ]
    assert (same[0] == same[1]).all()
    assert audit("--code", "merged", "--seeds", "1") == 0  # one more choice beside the others
    assert [r["choice"] for r in read_csv(folder / "audit.csv") if r["measure"] == "HS"] == [
        "default"
    ] * 2 + ["bias"] * 2 + ["merged"] + ["pooled"] * 2
    with pytest.raises(InputError, match="other settings .epochs 2 -> 3"):
        audit("--epochs", "3")
    with pytest.raises(InputError, match="--seeds 0"):
        audit("--seeds", "0")
