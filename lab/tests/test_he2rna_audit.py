"""The audit of HE2RNA: what it says is the difference of the runs that it made."""

import numpy as np
import pytest
import scipy.stats

from lab.commands.he2rna import audit, main
from lab.files import InputError
from lab.tests.helpers import read_csv
from lab.tests.helpers_he2rna import write_cohort

SMALL = ["--hidden", "16", "--ks", "1,5", "--device", "cpu", "--folds", "3", "--valid", ".25"]
SMALL += ["--seeds", "2", "--epochs", "2"]
NAMES = ("default", "again", "bias", "pooled")


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that the audit has trained; it is interrupted where "stop" is there."""
    names, train = [], audit.train

    def spied(o):
        if len(names) == 3 and "stop" not in names:
            names.append("stop")
            raise KeyboardInterrupt
        names.append(o.name)
        return train(o)

    monkeypatch.setattr(audit, "train", spied)
    return names


def mean_r(folder):
    """Mean over genes, then over cancers, of genes.csv."""
    rows = read_csv(folder / "genes.csv")
    each = [[float(r["R"]) for r in rows if r["project"] == p and r["R"]] for p in "XY"]
    return np.mean([np.mean(r) for r in each])


def test_audit_goes_on_where_it_stopped_and_is_the_runs_difference(tmp_path, trained, capsys):
    write_cohort(tmp_path, np.random.default_rng(1), patients=24)
    folder = tmp_path / "runs" / "audit"
    words = ["audit", str(tmp_path), "--features", str(tmp_path / "h5"), *SMALL]
    with pytest.raises(KeyboardInterrupt):
        main([*words, "--code", "colour,bias,pooled"])
    assert "without train's colour: features made elsewhere" in capsys.readouterr().out
    assert len(read_csv(folder / "audit.csv")) == 3 * 3
    assert main([*words, "--code", "colour,bias,pooled"]) == 0
    pairs = [f"{name}-seed{seed}" for name in NAMES for seed in (0, 1)]
    assert trained == [*pairs[:3], "stop", *pairs[3:]]
    first, text = (folder / "audit.csv").read_bytes(), (folder / "audit.md").read_text()
    assert main([*words, "--code", "bias,pooled"]) == 0
    assert len(trained) == 9
    assert (folder / "audit.csv").read_bytes() == first
    assert (folder / "audit.md").read_text() == text

    rows = [r for r in read_csv(folder / "audit.csv") if r["measure"] == "R"]
    assert [f"{r['choice']}-seed{r['seed']}" for r in rows] == pairs
    for r in rows:
        value = mean_r(folder / f"{r['choice']}-seed{r['seed']}")
        change = value - mean_r(folder / f"default-seed{r['seed']}")
        assert float(r["value"]) == pytest.approx(value, abs=2e-6)
        assert float(r["change"]) == pytest.approx(change, abs=4e-6)
    bias = np.array([float(r["change"]) for r in rows if r["choice"] == "bias"])
    low, high = scipy.stats.t.interval(0.95, 1, bias.mean(), bias.std(ddof=1) / 2**0.5)
    assert f" ({low:+.3f} to {high:+.3f})" in text
    assert "| again | the default, on another number of threads |" in text
    assert "| pooled | one R over the test slides of all folds |" in text
    of = [np.load(folder / f"{name}-seed1" / "predictions.npz") for name in ("default", "pooled")]
    assert (of[0]["prediction"] == of[1]["prediction"]).all()  # nothing was trained again

    assert main([*words, "--code", "merged", "--seeds", "1"]) == 0  # beside the others
    counts = [r["choice"] for r in read_csv(folder / "audit.csv") if r["measure"] == "HS"]
    assert counts == [name for name in NAMES[:3] for _ in "01"] + ["merged"] + ["pooled"] * 2
    with pytest.raises(InputError, match=r"other settings .epochs 2 -> 3"):
        main([*words, "--epochs", "3"])
    with pytest.raises(SystemExit):
        main([*words, "--seeds", "0"])
