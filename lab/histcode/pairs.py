"""lab.histcode.pairs"""

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import histcode
import stats
from lab.application import pick_genes
from lab.audit.ledger import saw
from lab.cohort.expression import read_expression
from lab.cohort.samples import barcode, read_samples
from lab.files import InputError, few, number, read_rows
from lab.histcode.bags import tissue_of
from lab.progress import counted, progress, say_left_out
from lab.ridge import ridge, smoother

LABEL_RATE, LABEL_EPOCHS = (
    2e-5,
    100,
)  # of the layer that learns labels: thousands of weights step at once [ours]


SHUFFLES = 10**6  # R of shuffled patients behind a p, over all genes  [ours]


def pair_features(h, a):
    """The slide's vector (2D,): mean of the highest, mean of the lowest tiles by attention, float64. h (T, D), a (T,)."""
    return np.concatenate(
        [np.asarray(h[rows], np.float64).mean(0) for rows in map(np.sort, histcode.ends_of(a))]
    )


def least_squares(x, y, penalty=0.0):
    """One linear layer for all genes, least squares in closed form: x (n, D), y (n, G) with nan -> weights (D, G), bias
    (G,). [HistCode eq. 8: MSE]

    penalty: of the squared weights of standardised features, against the sum of squared errors; 0: of all least squares
    solutions the smallest, which gradient descent from 0 also finds. Genes known of the same samples are solved at once.
    """
    weights, bias = np.zeros((x.shape[1], y.shape[1])), np.full(y.shape[1], np.nan)
    for rows, genes in counted("least squares", histcode.known_alike(y), "sets of genes"):
        (weights[:, genes],), (bias[genes],) = ridge(x[rows], y[np.ix_(rows, genes)], (penalty,))
    return weights, bias


def shuffled_p(r, xs, part, penalties, y, rng):
    """p (G,) of R: how often as high an R comes out when the fold changes of the patients change places, all folds fitted
    anew; over all genes together. xs: features (P, 2D) of all patients by each fold's attention; part (P,); y (P, G). [ours]

    A prediction is linear in y, so the fit to unit vectors gives it for any order. The t would take R of pooled held-out
    predictions for one R of P patients, but it scatters more: it calls 3 % of chance genes p < .01 on 160 pairs.
    """
    null, draws, alike = [], -(-SHUFFLES // y.shape[1]), histcode.known_alike(y)
    tick = progress(
        "shuffled patients", draws * sum(len(genes) for _, genes in alike), "R", end=False
    )
    for rows, genes in alike:
        S = np.zeros((len(rows), len(rows)))  # prediction = S y
        for f, (x, penalty) in enumerate(zip(xs, penalties)):
            test = part[rows] == f
            if test.any() and not test.all():
                S[np.ix_(test, ~test)] = smoother(x[rows[~test]], x[rows[test]], penalty)
        step = max(1, 2048 // len(genes))  # orders at a time: a product of 2,048 columns
        for start in range(0, draws, step):
            orders = rng.permuted(
                np.tile(rows, (min(step, draws - start), 1)), axis=1
            )  # (orders, n)
            moved = y[:, genes][orders].swapaxes(0, 1).reshape(len(rows), -1)  # (n, orders x genes)
            null.append(stats.pearson(S @ moved, moved))
            tick(moved.shape[1])
    null = np.sort(np.concatenate(null))
    null = null[~np.isnan(null)]
    reached = len(null) - np.searchsorted(null, np.nan_to_num(r, nan=2) - stats.TIED)
    return np.where(np.isnan(r), np.nan, (1 + reached) / (1 + len(null)))


def fit_labels(x, label, train, valid, device):
    """The same layer with two outputs a gene and a softmax: x (n, D), label (n, G) 0, 1 or nan -> weights (D, G), bias (G,)
    of the difference of the two, which is the log odds of label 1. [HistCode Results: "replaced the output layer by two
    nodes"]

    All genes at once by Adam on all training rows, from the log odds of their labels; the epoch is that of the lowest mean
    cross-entropy on the validation rows, 0 among them; the last where there are none. [ours]
    """
    center = x[train].mean(0)
    scale = histcode.divisor(center, x[train].std(0))
    z = torch.from_numpy(np.float32((x - center) / scale)).to(device)
    known = torch.from_numpy(~np.isnan(label)).to(device)
    target = torch.from_numpy(np.float32(np.nan_to_num(label))).to(device)
    n = known[train].sum(0).clamp(min=1)  # (G,)
    share = (target * known)[train].sum(0) / n
    weights = torch.zeros(x.shape[1], label.shape[1], device=device, requires_grad=True)
    bias = torch.logit(share.clamp(1 / (2 * n), 1 - 1 / (2 * n))).requires_grad_()
    optimizer, best, kept = torch.optim.Adam([weights, bias], LABEL_RATE), math.inf, None

    def error(rows):  # of two softmax outputs, by their difference
        each = F.binary_cross_entropy_with_logits(
            z[rows] @ weights + bias, target[rows], reduction="none"
        )
        return (each * known[rows]).sum() / known[rows].sum().clamp(min=1)

    for epoch in counted("labels", range(LABEL_EPOCHS + 1), "epochs"):
        if epoch:
            optimizer.zero_grad()
            error(train).backward()
            optimizer.step()
        with torch.no_grad():
            now = error(valid).item() if len(valid) else -math.inf
        if now < best or not len(valid):
            best, kept = now, [v.detach().cpu().double().numpy().copy() for v in (weights, bias)]
    weights, bias = kept[0] / scale[:, None], kept[1]
    return weights, bias - center @ weights


def judge_genes(prediction, y, guess, label, rng, shuffled=None):
    """Figures of every gene, dict of (G,) arrays: prediction, y (n, G) and guess (predicted), label (n, G), nan where
    unknown. [HistCode Results, Differential gene expression prediction]

    n, r, rho; p of R > 0: shuffled(r), or twice that of a t; bh over the genes; baseline: R of random predictions between
    the 5 % and the 95 % of the truth; location_p, error_p, better: stats.against_baseline; accuracy of the label, majority:
    that of the commoner one.
    """
    out = {
        k: np.full(y.shape[1], np.nan)
        for k in ("r", "rho", "baseline", "location_p", "error_p", "better")
    }
    out["n"] = (~np.isnan(y)).sum(0)
    for rows, genes in counted("figures", histcode.known_alike(y), "sets of genes"):
        if len(rows) < stats.MIN_R:
            continue
        p, truth = prediction[np.ix_(rows, genes)], y[np.ix_(rows, genes)]
        random = stats.random_baseline(truth, rng)
        against = stats.against_baseline(p, truth, random)
        for k, v in dict(
            r=stats.pearson(p, truth),
            rho=stats.spearman(p, truth),
            baseline=stats.pearson(random, truth),
            location_p=against["p"],
            error_p=against["error_p"],
            better=against["better"],
        ).items():
            out[k][genes] = v
    out["p"] = (
        shuffled(out["r"]) if shuffled else np.minimum(1, 2 * stats.pearson_p(out["r"], out["n"]))
    )
    for k, corrected in (("p", "bh"), ("location_p", "location_bh"), ("error_p", "error_bh")):
        out[corrected] = stats.benjamini_hochberg(out[k])
    there = ~np.isnan(label)
    with np.errstate(invalid="ignore"):
        share = np.where(there, label, 0).sum(0) / there.sum(0)  # (G,)
        out["accuracy"] = ((guess == label) & there).sum(0) / there.sum(0)
    return dict(out, positive=share, majority=np.maximum(share, 1 - share))


def driver_genes(path, top):
    """The `top` genes of a compendium by mutations, summed over its cohorts; a table with columns symbol (or gene) and
    mutations. [HistCode Methods, Cancer driver genes]"""
    header, rows = read_rows(path)
    lower = [c.lower() for c in header]
    name, count = (
        next((lower.index(c) for c in names if c in lower), None)
        for names in (
            ("symbol", "gene", "hugo_symbol", "gene_name"),
            ("mutations", "n_mutations", "mutation_count"),
        )
    )
    if name is None or count is None:
        raise InputError(
            f"--drivers {path}: wanted columns symbol and mutations; it has {few(header)}"
        )
    total = {}
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(
                f"--drivers {path} row {line}: {len(row)} fields, the header has {len(header)}"
            )
        n = number(row[count])
        total[row[name].strip()] = total.get(row[name].strip(), 0) + (0 if math.isnan(n) else n)
    return sorted(filter(None, total), key=lambda g: (-total[g], g))[:top]


def pairs_of(cohort, o):
    """Patients with tumour and matched normal expression, and slides: dict of patients (P,), slides [names of each], genes,
    tumour and normal (P, G) linear expression, the mean of a patient's samples, and what was left out. Also known, tissue:
    all slides that are tumour or normal, which teach where to look."""
    cohort = Path(cohort)
    if not cohort.is_dir():
        raise InputError(f"{cohort}: no such folder")
    samples = read_samples(cohort)
    tissue = tissue_of(samples, cohort)
    key, ids, genes, a = read_expression(cohort)
    key = key or ("sample" if "sample" in samples[0] else "slide")
    if key not in samples[0]:
        raise InputError(
            f"{cohort}/expression: its rows are samples, but samples.csv has no column sample"
        )
    owner, rows, slides = {}, ({}, {}), {}
    for s, kind in zip(samples, tissue):
        if s[key] and owner.setdefault(s[key], (s["patient"], kind)) != (s["patient"], kind):
            raise InputError(
                f"{cohort}/samples.csv: {key} {s[key]} is {owner[s[key]]} and {(s['patient'], kind)} (patient, "
                "tumour 1 or normal 0): its expression can't be both's"
            )
        if kind == 1 or (kind == 0 and o.slides == "both"):
            slides.setdefault(s["patient"], []).append(s["slide"])
    for i, name in enumerate(ids):  # a normal sample may have no slide
        patient, kind = owner.get(name) or barcode(name)
        if kind is not None:
            rows[kind].setdefault(patient, []).append(i)
    normal, tumour = rows
    patients = sorted(set(normal) & set(tumour) & set(slides))
    left_out = {
        "patients with tumour but no normal expression": sorted(set(tumour) - set(normal)),
        "patients with normal but no tumour expression": sorted(set(normal) - set(tumour)),
        "patients with both but no slide": sorted(set(normal) & set(tumour) - set(slides)),
        "expression rows of no known patient or tissue": [
            n for n in ids if (owner.get(n) or barcode(n))[1] is None
        ],
        "slides that are neither tumour nor normal": [
            s["slide"] for s, k in zip(samples, tissue) if k is None
        ],
    }
    if len(patients) < 3:
        say_left_out(left_out)
        raise InputError(
            f"{cohort}: {len(patients)} patients have tumour and normal expression and a slide; at least 3 are "
            f"needed, to train, validate and test ({len(tumour)} have tumour, {len(normal)} normal expression)"
        )
    of = lambda rows: np.stack([a[rows[p]].mean(0, dtype=np.float64) for p in patients])  # (P, G)
    known = [(s, k) for s, k in zip(samples, tissue) if k is not None]
    return dict(
        patients=np.array(patients),
        slides=[slides[p] for p in patients],
        genes=genes,
        tumour=of(tumour),
        normal=of(normal),
        left_out=left_out,
        known=[s for s, _ in known],
        tissue=np.array([k for _, k in known]),
    )


def chosen_genes(d, o):
    """Columns of the genes asked for whose fold change is known in half of the pairs and varies; the rest is left out."""
    at = {g: j for j, g in enumerate(d["genes"])}
    if o.drivers:
        wanted = driver_genes(o.drivers, o.top)
        d["left_out"][f"of the {len(wanted)} driver genes, without expression"] = [
            g for g in wanted if g not in at
        ]
        chosen = [at[g] for g in wanted if g in at]
        if not chosen:
            raise InputError(
                f"--drivers {o.drivers}: none of its genes ({few(wanted, 3)}) is in the expression table, which "
                f"has {few(d['genes'], 3)}"
            )
    else:
        chosen = pick_genes(o.genes, d["genes"], "the expression table")
    y, _ = histcode.fold_change(d["tumour"][:, chosen], d["normal"][:, chosen])
    known, d["saw"] = ~np.isnan(y), {}
    saw(d["saw"], "gene filter", d["patients"])
    usable = (
        (2 * known.sum(0) >= len(y))
        & (known.sum(0) >= 3)
        & (np.nanmax(np.where(known, y, -np.inf), 0) > np.nanmin(np.where(known, y, np.inf), 0))
    )
    d["left_out"][
        "genes whose fold change is unknown in more than half of the pairs (no expression in normal tissue), or "
        "does not vary"
    ] = [d["genes"][j] for j, u in zip(chosen, usable) if not u]
    if not usable.any():
        raise InputError(
            f"{o.cohort}: no gene of {len(chosen)} has a fold change in half of the {len(y)} pairs"
        )
    return [j for j, u in zip(chosen, usable) if u]


def predict_pair(saved, apply, h):
    """Of one bag (T, D) by one fold's checkpoint: (predicted y (G,), log odds of the label (G,) or None, a (M, T))."""
    out, a = apply(h)
    a = a.double().numpy()
    if saved["kind"] == "linear":
        x = pair_features(h, a[0])
        return (
            *(
                x @ saved[w].double().numpy() + saved[b].double().numpy()
                for w, b in (("weights", "bias"), ("label_weights", "label_bias"))
            ),
            a,
        )
    return out.flatten().double().numpy(), None, a


def mean_prediction(saved, appliers, use, h):
    """Means over the chosen models of one bag (T, D): probabilities (2,) of a diagnosis, else (y (G,), P(label 1) (G,))."""
    if saved[0]["kind"] == "diagnosis":
        return np.mean([appliers[m](h)[0][0].double().softmax(0).numpy() for m in use], 0)
    each = [predict_pair(saved[m], appliers[m], h)[:2] for m in use]
    y = np.mean([y for y, _ in each], 0)
    odds = [o for _, o in each if o is not None]
    return y, np.mean([1 / (1 + np.exp(-o)) for o in odds], 0) if odds else histcode.label_of(
        y
    ).astype(float)


def contributions(saved, h, a, j):
    """What each tile adds to output j of one fold's model, (T,) float64: their sum and the bias are the output; nan for
    tiles that are in neither end of the linear model. h (T, D), a (M, T) its attention."""
    if saved["kind"] == "linear":
        out, D = np.full(len(h), np.nan), h.shape[1]
        for part, rows in enumerate(histcode.ends_of(a[0])):
            w = (
                saved["weights"][part * D : (part + 1) * D, j].double().numpy()
            )  # (D,) of the highest, then of the lowest
            out[rows] = np.asarray(h[rows], np.float64) @ w / len(rows)
        return out
    if saved["pooling"] not in ("HistCode", "ABMIL", "mean", "max"):
        raise InputError(f"--score contribution: {saved['pooling']} is no sum over tiles")
    m, j = (j, 0) if len(a) > 1 else (0, j)  # a network for each gene, or one for all
    model = histcode.SlideModel(
        saved["pooling"],
        np.zeros(D := saved["n_features"]),
        np.ones(D),
        saved["outputs"],
        saved["embed"],
        saved["hidden"],
    )
    model.load_state_dict({k: v[m] for k, v in saved["model"].items()})
    with torch.no_grad():
        x = model.layers(
            (torch.from_numpy(np.array(h)).float() - model.mean) * model.scale
        )  # (T, D)
    w = model.head.classify.weight.detach()
    w = w[1] - w[0] if saved["kind"] == "diagnosis" else w[j]  # the log odds of the positive class
    if saved["pooling"] == "max":
        value, which = (x * w).double(), x.argmax(0)  # each feature comes from one tile
        return np.bincount(which.numpy(), value.gather(0, which[None])[0].numpy(), len(h))
    return a[m] * (x.double() @ w.double()).numpy()
