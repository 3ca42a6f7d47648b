"""Sections and donors that stand apart. Authority: sums of squares by hand; planted donors."""

import json

import numpy as np
import pytest

from lab.he2rna.effects import apart_said, losses_said, who_stands_apart


def sections(apart, seed=0, n=10, sizes=4):
    """Expression of `sizes` sections of n slides; the first lies `apart` from the others."""
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"P{i}" for i in range(sizes)], n)
    y = rng.normal(size=(len(patients), 300))
    y[patients == "P0"] += apart
    return y, patients, np.full(len(patients), "A")


def test_a_donor_apart_from_the_others_is_named():
    y, patients, projects = sections(2.0)
    ((cancer, patient, n, n_all, share, others),) = who_stands_apart(y, patients, projects)
    assert (cancer, patient, n, n_all) == ("A", "P0", 10, 40)
    mine = patients == "P0"
    between = 10 * (y[mine].mean(0) - y.mean(0)) ** 2 + 30 * (y[~mine].mean(0) - y.mean(0)) ** 2
    assert share == pytest.approx(between.sum() / np.square(y - y.mean(0)).sum())
    assert others < share / 5
    (said,) = apart_said([(cancer, patient, n, n_all, share, others)])
    assert said.startswith("A: the expression of P0 (10 of 40 slides) is apart")
    assert f"{share:.0%} of the variance" in said
    assert who_stands_apart(y[:, :4], patients, projects) == []  # a few genes can't tell


@pytest.mark.parametrize("apart, n, sizes", [(0, 10, 4), (0, 1, 12), (0, 2, 20), (9, 10, 2)])
def test_nothing_is_said_of_patients_who_are_alike_or_two(apart, n, sizes):
    for seed in range(20):
        assert who_stands_apart(*sections(apart, seed, n, sizes)) == []


def test_a_cancer_is_no_donor():
    y, patients, _ = sections(0, n=5, sizes=8)
    projects = np.where(patients < "P4", "A", "B")
    assert who_stands_apart(y + 9 * (projects == "A")[:, None], patients, projects) == []


def test_losses_that_differ_are_told_with_who_was_not_learned_from(tmp_path):
    def log(*losses):
        lines = [{"fold": 0, "epoch": 3, "loss": 1e-9}]  # the others stopped before
        for epoch in (1, 2):
            lines += [{"fold": f, "epoch": epoch, "loss": v / epoch} for f, v in enumerate(losses)]
        (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))

    ledgers = [{"weights of the network": learned} for learned in (["Q"], ["P", "Q"], ["P"])]
    log(0.054, 0.9, 0.8)
    first, second = losses_said(tmp_path, ledgers, [("A", "P", 3, 9, 0.5, 0.01)])
    assert "differ 17-fold at epoch 2: 0.027 (fold 0), 0.45 (fold 1), 0.4 (fold 2)" in first
    assert second == "The networks of folds 0 did not learn from P."
    log(0.8, 0.9, 0.7)
    assert list(losses_said(tmp_path, ledgers, [])) == []
