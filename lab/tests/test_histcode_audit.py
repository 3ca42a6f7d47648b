"""lab.tests.test_histcode_audit"""

import json
import re
import shutil

import numpy as np
import pytest

from lab.commands.histcode import main
from lab.commands.histcode.expression import run as expression_expression
from lab.files import InputError
from lab.tests.helpers import TINY, read_csv, swap, write_pairs


def test_histcodes_audit_goes_on_where_it_stopped_and_is_the_runs_difference(
    tmp_path, monkeypatch, capsys
):
    cohort, runs, real = write_pairs(tmp_path / "c", 12), [], expression_expression
    folder, own = (
        cohort / "runs" / "histcode-audit",
        f"--features {cohort / 'h5'} --epochs 2 --folds 3 --device cpu --hidden 4",
    )
    swap(monkeypatch, "lab.histcode.ends", "SHUFFLES", 2000)

    def expression(o):
        runs.append(o.name)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return real(o)

    swap(monkeypatch, "lab.commands.histcode.expression", "run", expression)
    audit = lambda *more: main(
        [
            "audit",
            str(cohort),
            "--seeds",
            "2",
            "--code",
            "lr,folds,slides",
            f"--diagnose={own} --lr .01",
            f"--expression={own}",
            *more,
        ]
    )
    with pytest.raises(KeyboardInterrupt):
        audit()
    assert (
        "without pretrain's lr: " in (said := capsys.readouterr().out)
        and len(read_csv(folder / "audit.csv")) == 2 * 4 + 2 * 3
    )
    left = re.findall(r"(\d+) runs left, 0:00:0\d at the mean of the (\d+) done", said)
    assert left == [(str(7 - i), str(i + 1)) for i in range(7)]
    assert audit() == 0 and runs == [
        "expression-default-seed0",
        "expression-default-seed1",
        "expression-slides-seed0",
        *["expression-slides-seed1"] * 2,
    ]
    first, text = (folder / "audit.csv").read_bytes(), (folder / "audit.md").read_text()
    assert (
        audit() == 0
        and len(runs) == 5
        and (folder / "audit.csv").read_bytes() == first
        and (folder / "audit.md").read_text() == text
    )
    rows = {
        (r["command"], r["choice"], int(r["seed"]), r["measure"]): r
        for r in read_csv(folder / "audit.csv")
    }
    value = {}
    for c, name, s in {k[:3] for k in rows}:
        if c == "expression":
            r = [float(g["R"]) for g in read_csv(folder / f"{c}-{name}-seed{s}" / "genes.csv")]
            value[c, name, s, "R"] = np.mean(r)
        else:
            p = read_csv(folder / f"{c}-{name}-seed{s}" / "predictions.csv")
            value[c, name, s, "accuracy"] = np.mean([r["label"] == r["predicted"] for r in p])
            hit = [
                (float(a["p_tumour"]) > float(b["p_tumour"]))
                + 0.5 * (a["p_tumour"] == b["p_tumour"])
                for a in p
                for b in p
                if a["label"] == "tumour" != b["label"]
            ]
            value[c, name, s, "AUC"] = np.mean(hit)
    for k, want in value.items():
        assert float(rows[k]["value"]) == pytest.approx(want, abs=1e-4)
        assert (
            float(rows[k]["change"])
            == pytest.approx(want - value[(k[0], "default", *k[2:])], abs=2e-4)
            and float(rows[k]["seconds"]) > 0
        )
    assert len(value) == 2 * 2 * 2 + 2 * 2 and "| slides | tiles of the normal slides too |" in text
    with pytest.raises(InputError, match="--code lr: nothing is left to turn: .*spots/ to probe"):
        main(["audit", str(write_pairs(tmp_path / "d")), "--code", "lr"])
    with pytest.raises(InputError, match="--seeds 0"):
        audit("--seeds", "0")
    with pytest.raises(InputError, match="--diagnose --lr '1: no closing quotation"):
        audit("--diagnose=--lr '1")


def test_audit_of_pretraining_probes_the_same_tiles(unlabelled, tmp_path, monkeypatch, capsys):
    cohort = tmp_path / "c"
    shutil.copytree(unlabelled, cohort, ignore=shutil.ignore_patterns("runs", "features", "tiles"))
    own = " ".join(TINY) + f" --epochs 1 --weights {cohort / 'start.pth'} --tile-um 100"
    again = lambda code="lr": main(
        [
            "audit",
            str(cohort),
            "--seeds",
            "1",
            "--code",
            code,
            f"--pretrain={own}",
            "--probe=--tiles-per-slide 3",
        ]
    )
    assert again("lr,tissue") == 0
    folder = cohort / "runs" / "histcode-audit"
    rows = read_csv(folder / "audit.csv")
    assert [(r["choice"], r["measure"]) for r in rows] == [
        (c, m) for c in ("default", "tissue", "lr") for m in ("R2 of the cells", "spread")
    ]
    other = folder / "tissue"
    for name, home in (("default", cohort), ("tissue", other), ("lr", cohort)):
        run = home / "runs" / "histcode-audit" / f"pretrain-{name}-seed0"
        (probed,) = read_csv(run / "probe.csv")
        got = {r["measure"]: float(r["value"]) for r in rows if r["choice"] == name}
        assert (
            got["R2 of the cells"] == pytest.approx(float(probed["mean"]), rel=1e-5)
            and probed["tiles"]
            == read_csv(folder / "pretrain-default-seed0" / "probe.csv")[0]["tiles"]
        )
        assert got["spread"] == pytest.approx(
            json.loads((run / "log.jsonl").read_text())["spread"], rel=1e-5
        )
        config = json.loads((run / "config.json").read_text())
        assert (
            config["lr"] == (0.001 if name == "lr" else 0.03)
            and config["tile_um"] == 100
            and config["code"] == [name] * (name != "default")
        )
    log, was = (run / "log.jsonl").read_bytes(), (run / "audit.json").read_bytes()
    for half in (
        b"{}",
        was.replace(b'"status": 0', b'"status": "y"'),
        b'{"measures": {}, "seconds": ',
    ):
        (run / "audit.json").write_bytes(half)  # is measured again
        assert (
            again() == 0
            and json.loads((run / "audit.json").read_bytes())["measures"]
            == json.loads(was)["measures"]
        )
    (run / "audit.json").unlink(), (run / "log.jsonl").write_bytes(b"")
    assert (
        again() == 1
        and f"log.jsonl has no epoch: delete {run} to train it again" in capsys.readouterr().out
    )
    (run / "log.jsonl").write_bytes(log)
    a, b = (json.loads((home / "tiles" / "settings.json").read_text()) for home in (cohort, other))
    assert b == {**a, "tissue_threshold": 8.0} and (other / "slides").is_symlink()
