"""lab/histcode/watching.py: what is told of a pretraining, and when it is stopped."""

import argparse
import json

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

import histcode
from lab.files import InputError
from lab.histcode import pretraining, watching
from lab.histcode.pretraining_plots import components, draw
from lab.histcode.watching import (
    between_slides,
    chance_between,
    near_others,
    near_share,
    refuse_collapse,
)
from lab.tests.helpers import saved, swap
from lab.tests.helpers_histcode import drawn_pretrain, unit_rows


def terms(q, others, tau):
    """Terms of eq. 1 (B, n), of each query with each other."""
    return torch.exp(q @ others.T / tau)


@pytest.mark.parametrize("tau", [0.05, 0.12, 0.5])
def test_near_negatives_are_those_that_count_in_eq_1(monkeypatch, tau):
    q, w = unit_rows(6, 5, 0), 3 * unit_rows(50, 5, 1)
    k = torch.nn.functional.normalize(q + 0.3 * unit_rows(6, 5, 2), dim=1)
    own = terms(q, k, tau).diagonal()[:, None]
    monkeypatch.setattr(watching, "BLOCK", 7)
    count = (terms(q, w / 3, tau) >= 0.01 * own).any(0)
    assert near_share(q, k, w, tau) == pytest.approx(count.double().mean().item())
    count = terms(q, k, tau) >= 0.01 * own
    count = [count[:j, j].any() or count[j + 1 :, j].any() for j in range(6)]
    assert near_others(q, k, tau) == pytest.approx(np.mean(count))


def test_no_negative_is_near_embeddings_that_fled_the_bank():
    q = torch.tensor([[1.0, 0, 0]] * 4)
    assert near_share(q, q, -q, 0.12) == 0 and near_share(q, q, q, 0.12) == 1


def test_the_share_between_slides_is_that_of_an_analysis_of_variance():
    """SciPy's F of one feature; of features of equal variance that follow nothing, chance."""
    rng = np.random.default_rng(0)
    slide = np.repeat(["a", "b", "c"], (5, 9, 6))
    x = rng.normal(size=20) + (slide == "b")
    eta = between_slides(x[:, None], slide)
    f = scipy_stats.f_oneway(*[x[slide == s] for s in "abc"]).statistic
    assert f == pytest.approx((eta / 2) / ((1 - eta) / 17))
    noise = between_slides(rng.normal(size=(400, 2000)), np.repeat(np.arange(20), 20))
    assert noise == pytest.approx(chance_between(np.repeat(np.arange(20), 20)), rel=0.05)
    assert np.isnan(between_slides(np.full((4, 3), 0.7), np.arange(4)))
    assert np.isnan(between_slides(np.zeros((0, 1)), np.zeros(0)))
    assert between_slides(slide[:, None] == "b", slide) == pytest.approx(1)


def test_components_are_the_eigenvectors_of_the_covariance():
    x = np.random.default_rng(0).normal(size=(30, 6)) * np.arange(1, 7)
    places, shares = components(x)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    assert shares == pytest.approx(values[[-1, -2]] / values.sum())
    wanted = (x - x.mean(0)) @ vectors[:, [-1, -2]]
    assert np.abs(places) == pytest.approx(np.abs(wanted))
    assert components(-x)[0] == pytest.approx(-places)  # the sign is fixed by the weights


LOW = [0.02] * 4


@pytest.mark.parametrize(
    "spreads, steps, patience, stops",
    [
        (LOW, 100, 400, True),
        (LOW, 100, 401, False),  # not yet so many steps
        (LOW, 1000, 1, True),
        (LOW[:1], 1000, 1, False),  # two epochs at least
        ([0.01, 0.02, 0.03, 0.04], 100, 400, False),  # it rises, as from a random start
        ([0.02, 0.01, 0.03, 0.022], 100, 400, True),  # by noise alone
        ([0.9, *LOW], 100, 400, True),
        ([*LOW[:3], 0.06], 100, 400, False),
        (LOW, 100, 0, False),
        ([], 100, 400, False),
    ],
)
def test_a_lasting_collapse_and_no_other_ends_a_run(spreads, steps, patience, stops):
    entries = [{"epoch": i + 1, "spread": spread} for i, spread in enumerate(spreads)]
    o = argparse.Namespace(patience=patience, method="simclr", lr=0.03, batch=64, epochs=9)
    if stops:
        with pytest.raises(InputError, match=r"COLLAPSE.*--lr below 0.03 or --batch above 64"):
            refuse_collapse("runs/x", entries, steps, o)
    else:
        refuse_collapse("runs/x", entries, steps, o)


def test_a_run_that_collapses_stops_is_drawn_and_goes_on_when_told(unlabelled, monkeypatch):
    shown, interrupted = [], []

    def look(folder, log, watch, reader, o):
        draw(folder, log, watch, reader, o)
        shown.append((len(log), watch.features.shape, {*watch.slides}))
        if len(shown) == 2 and not interrupted:
            interrupted.append(shown.pop())
            raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "draw", look)
    monkeypatch.setattr(histcode, "spread", lambda z: 0.01)
    argv = "--epochs", "3", "--no-in-batch", "--name", "gone", "--patience", "1"
    words = r"after epoch 2 of 3.* --in-batch, --lr below 0.03, a lower.*--patience 0 goes on"
    run = unlabelled / "runs" / "gone"
    with pytest.raises(KeyboardInterrupt):
        drawn_pretrain(unlabelled, *argv)
    assert saved(run / "state.pt")["epoch"] == 1  # from which patience counts on
    for _ in range(2):  # again: at once
        with pytest.raises(InputError, match=words):
            drawn_pretrain(unlabelled, *argv)
        assert saved(run / "state.pt")["epoch"] == 2 and (run / "pretrain.png").is_file()
    assert drawn_pretrain(unlabelled, *argv[:-1], "0") == 0
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [number for number, *_ in shown] == [1, 2, 3]
    bank = saved(run / "state.pt")["negatives"]["w"]
    assert lines[-1]["bank_norm"] == pytest.approx(bank.norm(dim=1).mean().item())
    for line in lines:
        assert line["collapsed"] and line["bank_spread"] == 0.01
        assert 0 <= line["near"] <= 1 and 0 < line["between_slides"] < 1
    (n, d), slides = shown[0][1:]
    assert d == 1024 and len(slides) == n / 2 > 1  # of each two, as an epoch has


def test_the_picture_says_what_it_shows(tmp_path, monkeypatch):
    """Of SimCLR on one slide, whose features are equal in the second epoch."""
    import matplotlib.pyplot as plt

    seen = {}

    def look(path, fig):
        for ax in fig.axes:
            texts = [text.get_text() for text in ax.texts]
            legend = ax.get_legend()
            texts += [text.get_text() for text in legend.get_texts()] if legend else []
            seen[ax.get_ylabel()] = texts
        seen["title"], seen["words"] = fig.get_suptitle(), fig.get_supxlabel()
        plt.close(fig)

    swap(monkeypatch, "lab.show.plots", "save_picture", look)
    o = argparse.Namespace(method="simclr", epochs=9, name="x", words=["SIMULATED cohort"])
    log = []
    for epoch in (1, 2):
        line = dict.fromkeys(("loss", "positive", "hardest", "spread", "near", "lr"), 0.5)
        log.append({"epoch": epoch, **line, "between_slides": None})
    watch = argparse.Namespace(features=np.ones((4, 3)), slides=np.array(["a$b"] * 4))
    reader = argparse.Namespace(sizes=[8] * 1500)
    draw(tmp_path, log, watch, reader, o)
    assert seen["title"] == "Pretraining x: SimCLR, epoch 2 of 9"
    assert seen["words"].startswith("SIMULATED")
    assert len(seen["0: all are one, 1: all over the sphere"]) == 3  # a bank's spread is not there
    assert seen["share of variance between slides (η²)"] == ["by chance, of 4 tiles: 0.00"]
    assert seen[""] == ["all features are equal"]
    watch.features = np.random.default_rng(0).normal(size=(30, 3))
    watch.slides = np.array([f"slide{i} of a very long name" for i in range(15)] * 2)
    log[-1]["between_slides"] = 0.4
    draw(tmp_path, log, watch, reader, o)
    (names,) = [texts for label, texts in seen.items() if label.startswith("component 2: ")]
    assert len(set(names)) == 15 and names[0] == "slide0 of a ver…ong name"
