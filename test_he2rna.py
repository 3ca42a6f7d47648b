"""he2rna.py, in its order. Each test names the authority it compares with."""

import copy
import math

import numpy as np
import pytest
import scipy.stats
import torch

import he2rna
import stats
from lab.tests.helpers_he2rna import bags


def test_genes_with_a_positive_median_stay():
    """Authority: numpy's median, of an even and an odd number of samples."""
    a = np.random.default_rng(0).uniform(1, 9, (9, 5))
    a[:5, 1] = 0  # the median is 0
    a[:4, 2] = 0  # it is not
    for n in (8, 9):
        assert he2rna.expressed(a[:n]).tolist() == (np.median(a[:n], axis=0) > 0).tolist()
    assert he2rna.expressed(a).tolist() == [True, False, True, True, True]
    assert np.allclose(he2rna.log_expression(np.array([0, 9, 999.0])), [0, 1, 3])


def test_bags_of_slides_of_different_sizes():
    slides = [np.full((n, 2), n, np.float16) for n in (3, 1, 4)]
    x, mask = he2rna.bags_of(slides)(torch.tensor([2, 1]))
    assert x.shape == (2, 4, 2)
    assert x.dtype == torch.float16
    assert mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert (x[0] == 4).all()
    assert x[1, :, 0].tolist() == [1, 0, 0, 0]


# ----- Model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_top_k_mean_equals_a_loop_over_sorted_tiles(shift):
    n_tiles = [1, 3, 9, 12]
    scores, mask = bags(np.random.default_rng(0), n_tiles, 5, pad=1e6)
    scores = scores + shift
    for k in (1, 2, 3, 7, 12, 50):
        got = he2rna.top_k_mean(scores, mask, k)
        for b, n in enumerate(n_tiles):
            for g in range(5):
                best = sorted(scores[b, :n, g].tolist(), reverse=True)[:k]
                assert got[b, g].item() == pytest.approx(np.mean(best), rel=1e-5, abs=1e-4)


def test_padding_never_counts_here_and_competes_in_the_authors_code():
    """Three tiles of -1, -2, -3: -1 for k = 1; with five rows of padding 0 for every k."""
    scores = torch.tensor([-1.0, -2, -3])[None, :, None]
    mask = torch.ones(1, 3, dtype=torch.bool)
    for k, want in ((1, -1), (2, -1.5), (3, -2), (8, -2)):
        padded = torch.cat([scores, torch.zeros(1, 5, 1)], 1)
        real = torch.arange(8)[None] < 3
        assert he2rna.top_k_mean(padded, real, k).item() == want
        assert he2rna.padded_top_k_mean(scores, mask, k, 8).item() == 0


def test_padded_top_k_mean_equals_a_loop_over_the_authors_rows():
    n_tiles = [1, 3, 9, 12]
    scores, mask = bags(np.random.default_rng(0), n_tiles, 5, pad=1e6)
    for k in (1, 2, 7, 12, 20, 50):
        got = he2rna.padded_top_k_mean(scores, mask, k, 20)
        for b, n in enumerate(n_tiles):
            for g in range(5):
                rows = [*scores[b, :n, g].tolist(), *[0.0] * (20 - n)]
                best = sorted(rows, reverse=True)[: min(k, n)]
                assert got[b, g].item() == pytest.approx(np.mean(best), abs=1e-5)


def test_gradient_reaches_the_kept_tiles_only():
    scores, mask = bags(np.random.default_rng(4), [2, 8], 3)
    scores.requires_grad_()
    he2rna.top_k_mean(scores, mask, 3).sum().backward()
    reached = (scores.grad != 0).sum(1)
    assert reached.tolist() == [[2, 2, 2], [3, 3, 3]]
    assert (scores.grad[0, 2:] == 0).all()
    assert torch.allclose(scores.grad.sum(1), torch.ones(2, 3))


def test_the_model_is_convolutions_of_kernel_one():
    """Authority: torch's Conv1d. [HE2RNA Methods, Model architecture]"""
    torch.manual_seed(0)
    model = he2rna.HE2RNA(6, 11, (16, 8)).eval()
    x, _ = bags(np.random.default_rng(2), [9, 9])
    steps = []
    for layer in model.layers:
        step = torch.nn.Conv1d(layer.in_features, layer.out_features, 1)
        step.weight.data = layer.weight.data[:, :, None]
        step.bias.data = layer.bias.data
        steps += [step, torch.nn.ReLU()]
    want = torch.nn.Sequential(*steps[:-1])(x.transpose(1, 2)).transpose(1, 2)
    assert want.shape == (2, 9, 11)
    assert torch.allclose(model.tile_scores(x), want, atol=1e-6)


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


def test_a_model_of_some_genes_predicts_them_as_before():
    x, mask = bags(np.random.default_rng(3), [9, 9])
    model = he2rna.HE2RNA(6, 40, (5,), ks=(1, 3)).eval()
    before = model(x, mask)[:, [7, 2]]
    assert torch.allclose(model.keep_genes([7, 2])(x, mask), before, atol=1e-6)
    assert model.state_dict()["layers.1.weight"].shape == (2, 5)


def test_a_prediction_is_a_weighted_mean_of_ranked_tiles():
    """The paper's sentence, and `provenance`, which lays the weights back on the tiles."""
    torch.manual_seed(0)
    model = he2rna.HE2RNA(6, 7, (5,)).eval()
    for n in (1, 4, 30, 120):
        x, mask = bags(np.random.default_rng(n), [n])
        prediction = model(x, mask)[0].detach().numpy()
        scores = he2rna.score_tiles([model], x[0])
        weights = he2rna.rank_weights(n, model.ks)
        assert weights.sum() == pytest.approx(1)
        assert (weights.diff() <= 1e-7).all()
        for g in range(7):
            ranked = np.sort(scores[:, g])[::-1]
            assert weights.numpy() @ ranked == pytest.approx(prediction[g], abs=1e-5)
            of_tile = he2rna.provenance(scores[:, g], model.ks)
            assert of_tile @ scores[:, g] == pytest.approx(prediction[g], abs=1e-5)


# ----- Training ----------------------------------------------------------------------------------


def planted(n=60, noise=0.1):
    """Slides whose first features carry the first 3 of 6 genes: slides, y, projects, patients."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(n, 3)).astype(np.float32)
    slides = []
    for one in level:
        tiles = rng.normal(size=(rng.integers(5, 9), 8)).astype(np.float32) * 0.3
        tiles[:, :3] += one
        slides.append(tiles)
    y = np.hstack([level, rng.normal(size=(n, 3))]) + noise * rng.normal(size=(n, 6)) + 2
    projects = np.array(["X", "Y"] * (n // 2))
    return slides, y.astype(np.float32), projects, np.array([f"p{i}" for i in range(n)])


def start(y):
    torch.manual_seed(1)
    return he2rna.HE2RNA(8, y.shape[1], (16, 8), ks=(1, 2, 5)).start_at(y.mean(0))


def test_the_headers_example_finds_what_was_planted_and_only_that():
    slides, y, projects, patients = planted()
    bags = he2rna.bags_of(slides)
    fold = stats.patient_folds(patients, projects, 3, seed=0)
    prediction = np.zeros_like(y)
    for f in range(3):
        train, valid, test = he2rna.split(fold, f, patients, projects, share=0.25)
        assert sorted([*train, *valid, *test]) == list(range(60))
        model = start(y[train])
        settings = {"epochs": 30, "lr": 1e-2, "seed": (0, f)}
        for state in he2rna.train_epochs(model, bags, y, projects, train, valid, **settings):
            assert state["loss"] > 0
        model.load_state_dict(state["best"])
        prediction[test] = he2rna.predict(model, bags, test)
    for e in he2rna.evaluate(prediction, y, fold, projects, 3).values():
        assert (e["r"][:3] > 0.6).all()
        assert (e["hs"] < 0.05).tolist() == [True] * 3 + [False] * 3


def test_training_that_was_interrupted_ends_as_if_it_was_not():
    """From a copy of the state, as a file is, and with a map that reads ahead."""
    slides, y, projects, _ = planted(24)
    rows = np.arange(24)
    arguments = (he2rna.bags_of(slides), y, projects, rows[:18], rows[18:])

    def in_one_go(bags, parts):
        return iter([bags(part) for part in parts])

    whole = start(y)
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
    other = start(y)
    for different in he2rna.train_epochs(other, *arguments, epochs=1, seed=4):
        assert different["loss"] != saved["loss"]


def test_training_stops_after_its_patience_and_without_validation_keeps_the_last_epoch():
    slides, y, projects, _ = planted(24)
    rows = np.arange(24)
    bags = he2rna.bags_of(slides)
    noise = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    patience = {"epochs": 50, "patience": 3}
    *_, state = he2rna.train_epochs(start(y), bags, noise, projects, rows, rows[:6], **patience)
    assert state["epoch"] == state["best_epoch"] + 3 < 50
    *_, state = he2rna.train_epochs(start(y), bags, noise, projects, rows, rows[:0], epochs=5)
    assert state["epoch"] == state["best_epoch"] == 5
    assert state["r"] is None


def test_a_loss_that_is_not_finite_names_the_rows():
    slides, y, projects, _ = planted(12)
    slides[7][0] = np.nan
    rows = np.arange(12)
    training = he2rna.train_epochs(start(y), he2rna.bags_of(slides), y, projects, rows, [], batch=1)
    with pytest.raises(he2rna.NotFinite, match=r"epoch 1: .* at the rows \[7\]") as caught:
        list(training)
    assert caught.value.rows == [7]
    assert isinstance(caught.value, ValueError)


def test_the_epoch_is_chosen_by_r_or_with_too_few_slides_by_the_loss():
    rng = np.random.default_rng(0)
    y, prediction = rng.normal(size=(2, 8, 4))
    r, loss, score = he2rna.validate(prediction, y, np.array(list("XXXXYYYZ")))
    own = []
    for rows in (slice(0, 4), slice(4, 7)):  # Z has too few
        own.append([scipy.stats.pearsonr(prediction[rows, g], y[rows, g])[0] for g in range(4)])
    assert score == r == pytest.approx(np.mean(own))
    assert loss == pytest.approx(np.mean((prediction - y) ** 2))
    r, loss, score = he2rna.validate(prediction, y, np.array(list("WWXXYYZZ")))
    assert r is None
    assert score == -loss
    constant = np.ones_like(y)
    assert he2rna.validate(constant, y, np.array(["X"] * 8))[2] == -1


def test_each_slide_is_predicted_by_the_model_of_its_fold():
    slides, _, _, _ = planted(9)
    bags = he2rna.bags_of(slides)
    models = [he2rna.HE2RNA(8, 6, (4,)) for _ in range(3)]
    fold = np.array([2, 0, 0, 2, 2, 0, 2, 2, 0])  # nobody in fold 1
    got = he2rna.cross_predict(models.__getitem__, bags, fold, batch=2)
    for row, f in enumerate(fold):
        assert got[row] == pytest.approx(he2rna.predict(models[f], bags, [row])[0], abs=1e-6)


# ----- Evaluation --------------------------------------------------------------------------------


def test_cancers_are_never_pooled_but_for_the_papers_merges():
    groups = he2rna.cancers(["TCGA-LUAD", "TCGA-LUSC", "TCGA-KIRC", "TCGA-UCEC", "COAD"])
    assert list(groups) == ["LUNG", "COAD", "KIRC", "LUAD", "LUSC", "UCEC"]
    assert groups["LUNG"].tolist() == [True, True, False, False, False]


def test_of_merged_cancers_and_their_projects_one_counts():
    names = ["LUNG", "LUAD", "LUSC", "LIHC"]
    assert he2rna.separate(names) == ["LUNG", "LIHC"]
    assert he2rna.separate(names, merged=False) == ["LUAD", "LUSC", "LIHC"]
    for merged in (True, False):
        assert he2rna.separate(["LUAD", "LIHC"], merged) == ["LUAD", "LIHC"]


def test_r_is_the_mean_of_the_folds_and_a_constant_gene_has_none():
    """Authority: SciPy, fold by fold."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 5))
    fold = np.arange(60) % 3
    projects = np.array(["X"] * 40 + ["Y"] * 18 + ["Z"] * 2)
    prediction = y * 0.5 + rng.normal(size=y.shape)
    prediction[:, 2] = 1.25  # no value anywhere,
    y[:40, 3] = 0  # in X,
    prediction[(fold == 1) & (projects == "X"), 4] = 7  # in one fold of X
    results = he2rna.evaluate(prediction, y, fold, projects, 3)
    assert results["X"]["n"].tolist() == [40, 40, 0, 0, 40 - 13]
    assert results["Y"]["n"].tolist() == [18, 18, 0, 18, 18]
    for name in "XY":
        e = results[name]
        for g in range(5):
            folds = []
            for f in range(3):
                rows = (fold == f) & (projects == name)
                if np.ptp(y[rows, g]) > 0 and np.ptp(prediction[rows, g]) > 0:
                    folds.append(scipy.stats.pearsonr(prediction[rows, g], y[rows, g])[0])
            want = np.mean(folds) if folds else math.nan
            assert e["r"][g] == pytest.approx(want, nan_ok=True)
        t = scipy.stats.t(e["slides"] - 2)
        r = e["r"][0]
        p = t.sf(r * math.sqrt((e["slides"] - 2) / (1 - r * r)))
        assert e["p"][0] == pytest.approx(p)
        assert np.isnan(e["hs"]).tolist() == np.isnan(e["r"]).tolist()
        assert e["hs"][0] == pytest.approx(stats.holm_sidak(e["p"])[0])
    assert np.isnan(results["Z"]["r"]).all()  # two slides


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


def test_the_untrained_null_is_of_models_that_learned_nothing():
    """Each model's outputs are judged against each gene; the null's p is that of its fit."""
    slides, y, projects, _ = planted(30)
    fold = np.arange(30) // 2 % 3
    bags = he2rna.bags_of(slides)

    def draw(f):
        torch.manual_seed(f)
        return he2rna.HE2RNA(8, 6 * 50, (16, 8), ks=(1, 2, 5))

    null = he2rna.untrained_r(draw, bags, y, fold, projects, 3)
    assert {name: r.shape for name, r in null.items()} == {"X": (50, 6), "Y": (50, 6)}
    one = he2rna.cross_predict(draw, bags, fold)[:, 6 * 7 : 6 * 8]  # the eighth block
    group = he2rna.cancers(projects)["X"]
    r = he2rna.mean_of_values(he2rna.fold_r(one, y, fold, group, 3))
    assert null["X"][7] == pytest.approx(r)
    e = he2rna.evaluate(one, y, fold, projects, 3, null, "untrained")["X"]
    assert e["fits"]["untrained"] == pytest.approx(stats.null_fit(null["X"]))
    assert e["p"] == pytest.approx(stats.null_p(e["r"], *stats.null_fit(null["X"])))
    pooled = he2rna.untrained_r(draw, bags, y, fold, projects, 1, judged=np.zeros(30, int))
    all_of_x = one[group], y[group]
    assert pooled["X"][7] == pytest.approx(stats.pearson(*all_of_x))


def test_r_sign_is_the_papers():
    """.64 at n = 44; .20 at n = 1,046 is not the t's (.143) but of one subtype's 520 slides."""
    for n, want in ((44, 0.637), (1046, 0.143), (520, 0.202)):
        assert he2rna.r_sign(30839, n) == pytest.approx(want, abs=1e-3)


def test_genes_are_counted_over_the_cancers_that_count():
    hs = {"LUNG": [0.01, 0.2], "LUAD": [0.01, 0.01], "LUSC": [0.2, 0.01], "LIHC": [0.01, 0.3]}
    results = {name: {"hs": np.array(p)} for name, p in hs.items()}
    cancers, at_least = stats.recurrent(he2rna.significant_genes(results))
    assert cancers.tolist() == [2, 0]
    assert at_least.tolist() == [1, 1]
    assert he2rna.significant_genes(results, merged=False).sum(0).tolist() == [2, 2]


def test_hits_are_significant_in_several_cancers_or_of_high_r():
    nan = math.nan
    r = np.array([[0.5, 0.3, nan, nan], [0.2, 0.3, 0.45, nan]])
    significant = np.array([[True, True, False, False], [False, True, True, False]])
    hits, universe = he2rna.well_predicted(r, significant)
    assert hits.tolist() == [True, True, True, False]
    assert universe.tolist() == [True, True, True, False]
    assert (
        he2rna.well_predicted(r, significant, at_least=2)[0].tolist() == [False, True] + [False] * 2
    )
    assert he2rna.well_predicted(r, significant, min_r=0.4)[0].tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_a_signature_is_compared_with_lists_of_any_or_of_like_genes():
    """The 40 strongest genes are the best: they stand out of any lists, not of lists like them."""
    rng = np.random.default_rng(0)
    level = np.arange(400.0)
    r = (level / 400 + 0.01 * rng.normal(size=400))[None]
    members = (level >= 320) & (level % 2 == 0)
    arguments = (r, r > 0.5, members[None], rng)
    any_genes = he2rna.signature_test(*arguments, n_lists=500)
    alike = he2rna.signature_test(*arguments, level, n_lists=500)
    assert any_genes["r"][0, 0] == pytest.approx(r[0, members].mean())
    assert any_genes["p_r"][0, 0] == pytest.approx(1 / 501)
    assert alike["p_r"][0, 0] > 0.01


# ----- Where on the slide, and what is transferred -----------------------------------------------


def test_tile_scores_are_the_mean_of_the_models():
    models = [he2rna.HE2RNA(8, 6, (4,)) for _ in range(3)]
    features = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float16)
    got = he2rna.score_tiles(models, features, block=4)
    x = torch.from_numpy(features).float()
    want = torch.stack([model.eval().tile_scores(x) for model in models]).mean(0)
    assert torch.allclose(torch.from_numpy(got), want, atol=1e-6)


def test_the_best_tiles_hold_the_cells():
    scores = np.arange(1000.0)
    cells = np.where(scores >= 900, 42, 4)
    r, best, every = he2rna.against_cells(scores, cells)
    assert r == pytest.approx(scipy.stats.pearsonr(scores, cells)[0])
    assert (best, every) == (42, 4)
    assert he2rna.best_tiles(scores, 3).tolist() == [999, 998, 997]
    assert he2rna.best_tiles(-scores, 3).tolist() == [0, 1, 2]
    assert len(he2rna.best_tiles(scores[:9])) == 4  # at most half


def test_a_group_of_genes_is_judged_as_one():
    y, prediction = np.random.default_rng(0).normal(size=(2, 20, 5))
    one, truth = he2rna.mean_of_genes(prediction, y, [1, 3])
    assert one[:, 0] == pytest.approx((prediction[:, 1] + prediction[:, 3]) / 2)
    assert truth.shape == (20, 1)


def test_a_slides_representation_is_the_last_layer_of_its_mean_tile():
    models = [he2rna.HE2RNA(8, 6, (5, 4)) for _ in range(2)]
    features = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    got = he2rna.representations(models, features)
    assert got.shape == (2, 4)
    x = torch.from_numpy(features.mean(0))
    for h, model in zip(got, models, strict=True):
        genes = model.layers[-1](torch.from_numpy(h))
        assert torch.allclose(genes, model.tile_scores(x), atol=1e-6)


# ----- Hospital A, hospital B ---------------------------------------------------------------------


def test_hospital_a_is_nested_stratified_and_of_the_papers_size():
    """Authority: the paper's "73 - 368 patients" of 441, with an MSI-H/MSI-NH ratio of 0.18."""
    high = np.arange(441) < 67
    before = np.zeros(441, bool)
    for share in (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6):
        in_a = he2rna.hospital_a(high, share, np.random.default_rng(1))
        assert in_a.sum() == int(441 * share)
        assert abs((high & in_a).sum() - 67 * share) <= 1
        assert (before <= in_a).all()
        before = in_a
    tied = np.arange(20) % 4 == 0  # 5 of 20: the classes tie at the cut
    draws = [he2rna.hospital_a(tied, 0.5, np.random.default_rng(s)) for s in range(50)]
    assert {(tied & in_a).sum() for in_a in draws} == {3}
    draws = [he2rna.hospital_a(high, 0.5, np.random.default_rng(s)) for s in range(200)]
    assert len({in_a.tobytes() for in_a in draws}) == 200
    assert 0.35 < np.mean(draws, 0).min() < np.mean(draws, 0).max() < 0.65


def test_inputs_are_standardised_by_the_rows_that_train():
    x = np.random.default_rng(0).normal(3, 2, (20, 4)).astype(np.float32)
    x[:, 3] = 0.1
    rows = np.arange(5, 15)
    z = he2rna.standardise(x, rows)
    assert np.allclose(z[:, :3], ((x - x[rows].mean(0)) / x[rows].std(0))[:, :3], atol=1e-5)
    assert np.allclose(z[:, 3], 0, atol=1e-6)


def test_genes_above_the_floor_of_a_log_table():
    log2 = np.log2(np.array([[0, 0, 3], [0, 4, 1], [0, 2, 0.0]]) + 0.001)
    assert he2rna.above_floor(log2).tolist() == [False, True, True]
    assert he2rna.above_floor(np.array([[0, 1], [0, 0], [1, 2.0]])).tolist() == [False, True]


@pytest.fixture
def hospitals():
    """30 slides: 12 in A, and 18 in B in three folds; each arm's networks can be small."""
    rng = np.random.default_rng(0)
    a, b = np.arange(12), np.arange(12, 30)
    return he2rna.Hospitals(
        x=rng.normal(size=(30, 8)).astype(np.float32),
        y=rng.normal(size=(30, 6)).astype(np.float32),
        high=np.arange(30) % 3 == 0,
        rows_a=[a[a % 3 != f] for f in range(3)],
        rows_b=[b[b % 3 != f] for f in (0, 1, 2, 0, 1, 2)],
        seed=[7],
    )


def test_the_arms_networks_are_the_papers(hospitals):
    """Authority: the paper's Methods, MSI status: layers, activations, epochs."""
    taught = []

    def train(recipe, lessons):
        taught.append((recipe, lessons))
        return [(np.zeros((30, 256)), np.zeros((30, recipe.sizes[-1]))) for _ in lessons]

    h = hospitals._replace(x=np.zeros((30, 2048), np.float32), train=train)
    names = {
        "transcriptome": ["2048-1024-256-6 x3", "256-128-1 x6"],
        "direct": ["2048-256-128-1 x6"],
        "ensemble": ["2048-256-128-1 x18"],
        "autoencoder-a": ["2048-1024-256-1024-2048 x3", "256-128-1 x6"],
        "autoencoder-b": ["2048-1024-256-1024-2048 x6", "256-128-1 x6"],
    }
    for arm, wanted in names.items():
        taught.clear()
        scores = he2rna.MSI_ARMS[arm](h)
        assert scores.shape == (3 if arm == "ensemble" else 1, 6, 30)
        assert [f"{'-'.join(map(str, r.sizes))} x{len(of)}" for r, of in taught] == wanted
        for recipe, lessons in taught:
            assert recipe.epochs == 50
            ends = {1: "Sigmoid", recipe.sizes[0]: "Identity", 6: "Identity"}
            assert recipe.activations[-1].__name__ == ends[recipe.sizes[-1]]
            for lesson in lessons:
                assert lesson.known is lesson.rows  # nothing else is learned from


def test_a_network_learns_from_its_own_rows_alone(hospitals, monkeypatch):
    """Slides of other rows, changed beyond recognition, change no weight; the arms can learn."""
    monkeypatch.setattr(he2rna, "MSI_HIDDEN", (5, 4))
    rows = hospitals.rows_a[0]
    others = np.setdiff1d(np.arange(30), rows)
    h = hospitals._replace(rows_a=[rows])
    ((code, predicted),) = he2rna.learn_expression(h)
    x, y = h.x.copy(), h.y.copy()
    x[others], y[others] = 9, 9
    ((again, predicted_again),) = he2rna.learn_expression(h._replace(x=x, y=y))
    assert (code[rows] == again[rows]).all()
    assert (predicted[rows] == predicted_again[rows]).all()
    z = he2rna.standardise(h.y, rows)
    monkeypatch.setattr(he2rna, "MSI_EPOCHS", 500)
    ((_, learned),) = he2rna.learn_expression(h)
    assert np.square(learned - z)[rows].mean() < 0.9 * np.square(predicted - z)[rows].mean()


def test_folds_in_b_test_each_patient_once_a_repeat():
    names, high = np.array([f"P{i}" for i in range(20)]), np.arange(20) < 6
    tests = he2rna.folds_in_b(names, high, [0], folds=3, repeats=4)
    assert tests.shape == (12, 20)
    for repeat in range(4):
        of = tests[3 * repeat : 3 * repeat + 3]
        assert (of.sum(0) == 1).all()
        assert (of[:, high].sum(1) == 2).all()


def test_auc_is_of_patients_and_of_their_own_test_fold():
    """Authority: counting pairs; a patient's score is the mean of three slides'."""
    rng = np.random.default_rng(4)
    patient = np.arange(12).repeat(3)
    high = np.arange(12) % 3 == 0
    tests = np.array([np.arange(12) < 6, np.arange(12) >= 6])
    scores = rng.random((2, 2, 36))  # two members
    got = he2rna.fold_aucs(scores, patient, high, tests)
    for auc, own, test in zip(got, scores.mean(0), tests, strict=True):
        of = own.reshape(12, 3).mean(1)
        wins = [p > q for p in of[test & high] for q in of[test & ~high]]
        assert auc == pytest.approx(np.mean(wins))


def test_arms_are_compared_by_paired_splits():
    """Authority: scipy's exact Wilcoxon test."""
    level, noise = np.random.default_rng(0).normal(0, (0.2, 0.01), (12, 2)).T
    p = he2rna.arms_p(level, level + 0.01 + noise)
    assert p == pytest.approx(scipy.stats.wilcoxon(0.01 + noise, method="exact").pvalue)
