"""lab.tests.test_files"""

import errno
import re

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

from lab.commands.tiling import main
from lab.files import InputError, save_file, save_json
from lab.tests.helpers import (
    GENES,
    drawn_run,
    fill_disk,
    folds_in,
    learn,
    planted_bags,
    read_csv,
    swap,
    three_splits,
)


def test_a_full_disk_is_named_through_what_torch_makes_of_it(tmp_path, monkeypatch):
    fill_disk(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left on device") as e:
        save_file(tmp_path / "a.pt", lambda f: torch.save(torch.zeros(10**6), f))
    assert (
        e.value.filename == str(tmp_path / "a.pt")
        and e.value.errno == errno.ENOSPC
        and not list(tmp_path.iterdir())
    )
    with pytest.raises(RuntimeError, match="anything else"):
        save_file(tmp_path / "a.pt", lambda f: exec("raise RuntimeError('anything else')"))


@pytest.mark.parametrize(
    "key, value",
    [
        ("tile_um", "x"),
        ("tile_um", None),
        ("tile_um", float("nan")),
        ("max_tiles", 5.5),
        ("seed", [1]),
        ("tissue", 3),
        ("tissue", []),
        ("tissue_threshold", "x"),
        ("min_area", True),
        ("mpp", "0.5"),
    ],
)
def test_settings_that_cannot_be_name_file_and_key(two_slides, key, value):
    save_json(
        two_slides / "tiles" / "settings.json",
        dict(tile_um=112, mpp=0.5, max_tiles=9) | {key: value},
    )
    for verb in ("doctor", "tiles"):
        with pytest.raises(
            InputError, match=re.escape(f"tiles/settings.json: {key} is {value!r}, which can't be")
        ):
            main([verb, str(two_slides)])


@pytest.mark.parametrize(
    "argv, words",
    [
        ("pretrain --code lr --lr .1", "--code lr turns it to: .001; leave --lr 0.1 out"),
        ("pretrain --code in-batch --no-in-batch", "leave --no-in-batch out"),
        ("pretrain --code colour --colour none", "leave --colour none out"),
        ("pretrain --code tissue --tissue stain", "leave --tissue stain out"),
        ("pretrain --method simclr --code bank-lr", "--code bank-lr: not with"),
        (
            "diagnose --code folds --no-rotate",
            "each of the ten parts tests in turn; leave --no-rotate out",
        ),
        ("expression --code epochs --epochs 3", "leave --epochs 3 out"),
        ("expression --code model --model linear", "leave --model linear out"),
    ],
)
def test_a_choice_and_an_option_that_gainsay_say_so(settled, argv, words):
    with pytest.raises(InputError, match=words):
        settled(*argv.split())
    assert settled("pretrain", "--code", "lr", "--lr", ".001")["lr"] == 0.001  # they agree


def test_interrupted_classifier_ends_as_one_that_was_not(tmp_path, monkeypatch):
    (bags, y), split = planted_bags(), three_splits()[:1]
    (whole,) = learn("MIL-RNN", bags, y, split, [4], epochs=5)
    state, save, saves = tmp_path / "state.pt", save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path)
        if len(saves) == 2:
            raise KeyboardInterrupt

    swap(monkeypatch, "lab.files", "save_file", breaks)
    with pytest.raises(KeyboardInterrupt):
        learn("MIL-RNN", bags, y, split, [4], epochs=5, state_file=state)
    (again,) = learn("MIL-RNN", bags, y, split, [4], epochs=5, state_file=state)
    assert (
        len(saves) == 5
        and torch.equal(whole["losses"], again["losses"])
        and torch.equal(whole["tests"], again["tests"])
    )
    assert whole["epoch"] == again["epoch"] and all(
        torch.equal(v, again["model"][k]) for k, v in whole["model"].items()
    )


def test_a_bag_at_which_the_loss_is_lost_is_named_and_the_epoch_before_kept(tmp_path):
    (bags, y), splits = planted_bags(), three_splits()[:1]
    (whole,) = learn("HistCode", bags, y, splits, [4], epochs=3)
    odd, seen, original = int(splits[0][0][2]), [], list(bags)

    class Going(list):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i) * (
                np.float32("nan") if i == odd and seen.count(odd) == 2 else 1
            )

    with pytest.raises(
        InputError,
        match=rf"epoch 2: the loss is not finite any more, from {odd} on; .*s.pt keeps epoch 1",
    ):
        learn("HistCode", Going(bags), y, splits, [4], epochs=3, state_file=tmp_path / "s.pt")
    (again,) = learn("HistCode", original, y, splits, [4], epochs=3, state_file=tmp_path / "s.pt")
    assert all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())


def test_an_interruption_after_the_best_epoch_keeps_it(tmp_path, monkeypatch):
    (bags, y), (_, valid, _) = planted_bags(), three_splits()[0]
    y = y.copy()
    y[valid] = 1 - y[valid]  # the better it learns the worse: an early epoch is best
    (whole,) = learn("HistCode", bags, y, three_splits()[:1], [4], epochs=8)
    save, saves = save_file, []

    def breaks(path, write):
        save(path, write)
        saves.append(path)
        if len(saves) == 7:
            raise KeyboardInterrupt

    swap(monkeypatch, "lab.files", "save_file", breaks)
    with pytest.raises(KeyboardInterrupt):
        learn("HistCode", bags, y, three_splits()[:1], [4], epochs=8, state_file=tmp_path / "s.pt")
    (again,) = learn(
        "HistCode", bags, y, three_splits()[:1], [4], epochs=8, state_file=tmp_path / "s.pt"
    )
    assert whole["epoch"] == again["epoch"] < 7
    assert all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())


def test_per_gene_networks_are_each_its_own_and_joint_ones_share(changed):
    per, joint = (folds_in(changed / "runs" / name)[0] for name in ("per-gene", "joint"))
    w = per["model"]["head.pooling.w.weight"]
    assert (
        per["genes"] == ["UP0", "NO0", "HALF"]
        and w.shape == (3, 1, 4)
        and not torch.allclose(w[0], w[1])
    )
    assert len(per["epochs"]) == 3
    assert joint["model"]["head.pooling.w.weight"].shape == (1, 1, 4) and joint[
        "outputs"
    ] == 6 == len(joint["genes"])


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
