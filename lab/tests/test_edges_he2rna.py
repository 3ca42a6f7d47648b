"""Edges of he2rna.py: other choices, padding, training that stops. The rest is in test_all.py."""

import copy

import numpy as np
import pytest
import torch

import he2rna
import stats
from lab.tests.helpers_he2rna import bags, planted_slides, small_model

# ----- Model -------------------------------------------------------------------------------------


def test_gradient_reaches_the_kept_tiles_only():
    scores, mask = bags(np.random.default_rng(4), [2, 8], 3)
    scores.requires_grad_()
    he2rna.top_k_mean(scores, mask, 3).sum().backward()
    reached = (scores.grad != 0).sum(1)
    assert reached.tolist() == [[2, 2, 2], [3, 3, 3]]
    assert (scores.grad[0, 2:] == 0).all()
    assert torch.allclose(scores.grad.sum(1), torch.ones(2, 3))


def test_the_order_of_tiles_and_padding_have_no_say():
    model = he2rna.HE2RNA(6, 11, (16, 8)).eval()
    x, mask = bags(np.random.default_rng(2), [3, 9], pad=5)
    prediction = model(x, mask)
    order = torch.randperm(9)
    assert torch.allclose(model(x[:, order], mask[:, order]), prediction, atol=1e-6)
    more_x = torch.cat([x, torch.full((2, 4, 6), -77.0)], 1)
    more_mask = torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], 1)
    assert torch.allclose(model(more_x, more_mask), prediction, atol=1e-6)
    assert torch.allclose(model(x[:1, :3], mask[:1, :3]), prediction[:1], atol=1e-6)


def variants():
    """The plain model and those of other choices, of the same weights; scores of both signs."""
    torch.manual_seed(0)
    sizes = {"ks": (1, 3, 9), "dropout": 0}

    def padded(scores, mask, k):
        return he2rna.padded_top_k_mean(scores, mask, k, 12)

    models = {
        "plain": he2rna.HE2RNA(6, 40, (5,), **sizes),
        "padding": he2rna.HE2RNA(6, 40, (5,), **sizes, pool=padded),
        "relu": he2rna.HE2RNA(6, 40, (5,), **sizes, relu=True),
        "k": he2rna.HE2RNA(6, 40, (5,), **sizes, one_k_per_gene=True),
    }
    models["plain"].start_at(np.full(40, -0.3))
    for model in models.values():
        model.load_state_dict(models["plain"].state_dict())
    return models, padded


def means(model, x, mask, pool=he2rna.top_k_mean):
    """(3, B, G): the prediction for each k."""
    scores = model.tile_scores(x)
    return torch.stack([pool(scores, mask, k) for k in model.ks])


def test_evaluation_is_the_mean_over_all_k():
    """Also with each choice. Authority: top_k_mean of the tile scores."""
    x, mask = bags(np.random.default_rng(3), [3, 9])
    models, padded = variants()
    each = means(models["plain"], x, mask).mean(0)
    want = {
        "plain": each,
        "padding": means(models["plain"], x, mask, padded).mean(0),
        "relu": each.relu(),
        "k": each,
    }
    assert (each < -0.01).any()
    assert not torch.allclose(want["padding"], each, atol=1e-2)
    for name, model in models.items():
        assert torch.allclose(model.eval()(x, mask), want[name], atol=1e-6)


def test_training_draws_one_k_an_iteration_or_one_for_each_gene():
    x, mask = bags(np.random.default_rng(3), [9, 9])
    models, padded = variants()
    for name, model in models.items():
        pool = padded if name == "padding" else he2rna.top_k_mean
        each = means(model, x, mask, pool)
        drawn = set()
        for seed in range(20):
            torch.manual_seed(seed)
            prediction = model.train()(x, mask)
            fits = torch.isclose(prediction, each, atol=1e-6).all(1)  # (3, G): in all slides
            assert fits.any(0).all()
            drawn |= {k for k, all_genes in zip(model.ks, fits.all(1), strict=True) if all_genes}
        assert drawn == (set() if name == "k" else {1, 3, 9})


# ----- Training ----------------------------------------------------------------------------------


def test_training_that_was_interrupted_ends_as_if_it_was_not():
    """From a copy of the state, as a file is, and with a map that reads ahead."""
    slides, y, projects, _ = planted_slides(24)
    rows = np.arange(24)
    arguments = (he2rna.bags_of(slides), y, projects, rows[:18], rows[18:])

    def in_one_go(bags, parts):
        return iter([bags(part) for part in parts])

    whole = small_model(y)
    for state in he2rna.train_epochs(whole, *arguments, epochs=6, seed=3):
        if state["epoch"] == 2:
            saved = copy.deepcopy(state)
    again = he2rna.HE2RNA(8, 6, (16, 8), ks=(1, 2, 5))
    more = {"epochs": 6, "seed": 3, "state": saved, "ahead": in_one_go}
    for later in he2rna.train_epochs(again, *arguments, **more):
        assert later["epoch"] > 2
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert torch.equal(state["best"][name], later["best"][name])
    other = small_model(y)
    for different in he2rna.train_epochs(other, *arguments, epochs=1, seed=4):
        assert different["loss"] != saved["loss"]


def test_training_stops_after_its_patience_and_without_validation_keeps_the_last_epoch():
    slides, y, projects, _ = planted_slides(24)
    rows = np.arange(24)
    bags = he2rna.bags_of(slides)
    noise = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    patience = {"epochs": 50, "patience": 3}
    *_, state = he2rna.train_epochs(
        small_model(y), bags, noise, projects, rows, rows[:6], **patience
    )
    assert state["epoch"] == state["best_epoch"] + 3 < 50
    for epoch in range(1, state["epoch"]):  # interrupted anywhere
        begun = he2rna.train_epochs(
            small_model(y), bags, noise, projects, rows, rows[:6], **patience
        )
        cut = copy.deepcopy([next(begun) for _ in range(epoch)][-1])
        *_, later = he2rna.train_epochs(
            small_model(y), bags, noise, projects, rows, rows[:6], **patience, state=cut
        )
        assert (later["epoch"], later["best_epoch"]) == (state["epoch"], state["best_epoch"])
    *_, state = he2rna.train_epochs(small_model(y), bags, noise, projects, rows, rows[:0], epochs=5)
    assert state["epoch"] == state["best_epoch"] == 5
    assert state["r"] is None


def test_a_loss_that_is_not_finite_names_the_rows():
    slides, y, projects, _ = planted_slides(12)
    slides[7][0] = np.nan
    rows = np.arange(12)
    training = he2rna.train_epochs(
        small_model(y), he2rna.bags_of(slides), y, projects, rows, [], batch=1
    )
    with pytest.raises(he2rna.NotFinite, match=r"epoch 1: .* at the rows \[7\]") as caught:
        list(training)
    assert caught.value.rows == [7]
    assert isinstance(caught.value, ValueError)


# ----- Evaluation --------------------------------------------------------------------------------


def test_the_permutation_null_holds_for_noise_in_small_folds():
    """12 slides in 5 folds: the mean of the folds is not one R. Authority: drawn permutations."""
    rng = np.random.default_rng(0)
    found = 0
    for n in (12, 20, 45):
        y, prediction = rng.normal(size=(2, n, 3000))
        fold = np.arange(n) % 5
        same = np.array(["X"] * n)
        e = he2rna.evaluate(prediction, y, fold, same, null="permutation")["X"]
        found += (e["hs"] < 0.05).sum()
        assert 0.03 < (e["p"] < 0.05).mean() < 0.075
        mean, drawn = stats.null_fit(stats.permutation_null(prediction, y, fold, 50, rng))
        assert mean == pytest.approx(0, abs=0.01)
        assert e["fits"]["permutation"][1] == pytest.approx(drawn, rel=0.1)
    assert found <= 3


def test_targets_may_be_a_tensor_and_rows_a_list():
    """The same numbers as arrays give."""
    slides, y, projects, _ = planted_slides(12)
    bags = he2rna.bags_of(slides)
    seen = []
    for targets, rows in ((y, np.arange(12)), (torch.from_numpy(y), list(range(12)))):
        model = small_model(y)
        states = he2rna.train_epochs(
            model, bags, targets, projects, rows[:8], rows[8:], epochs=2, batch=4
        )
        seen.append([(state["loss"], state["valid_loss"]) for state in states])
    assert seen[0] == seen[1]
