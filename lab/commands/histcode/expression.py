"""lab.commands.histcode.expression"""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

import histcode
import stats
from lab.audit.choices import add_choices
from lab.audit.ledger import encoder_saw, ledger_lines, saw
from lab.cohort.features import features_of
from lab.commands.histcode.options import pair_options, penalty_of
from lab.commands.options import report_failures
from lab.devices import pick_device
from lab.files import InputError, few, save_csv, save_file, save_text
from lab.gene_sets import read_sets
from lab.histcode.bags import left_out_lines, refuse, slide_features
from lab.histcode.choices import CHOICES, settle_choices, turned_lines
from lab.histcode.heads import apply_heads, train_heads
from lab.histcode.options import DIAGNOSIS, check_ranges, settle_training
from lab.histcode.pairs import (
    chosen_genes,
    fit_labels,
    judge_genes,
    least_squares,
    pair_features,
    pairs_of,
    predict_pair,
    shuffled_p,
)
from lab.histcode.runs import claim_run
from lab.histcode.splits import MAY_SEE, check_folds, roles
from lab.histcode.training import draw_model, save_fold, seed_of
from lab.processes import log_path, of_all, say
from lab.progress import clock, counted, say_left_out
from lab.progress import table as progress_table
from lab.ridge import best_penalty
from lab.runs import load_checkpoint, read_log, write_log
from lab.show.plots import BLUE, ORANGE, figure, need_matplotlib
from lab.simulation.cohort import planted_programmes

GENES_AT_ONCE = 16  # networks of one gene each, trained together    [ours]


POOLED = {
    "attention": "HistCode",
    "mean": "mean",
    "max": "max",
}  # of Fig. 6, and max                 [HistCode Fig. 6]


BEST_GENES = 50  # whose gene sets are asked for                  [HistCode Fig. 9]


SHOWN = [
    "PIK3CA",
    "MYC",
    "PTEN",
    "GATA3",
    "CD3D",
    "CD3E",
    "CD3G",
    "CD247",
    "CD19",
]  # [HistCode Fig. 8]


ALPHA = 0.05  # after Benjamini-Hochberg                       [HistCode Results]


GENE_COLUMNS = dict(
    n="n",
    R="r",
    p="p",
    bh="bh",
    R_within_folds="r_folds",
    spearman="rho",
    R_random="baseline",
    p_location="location_p",
    bh_location="location_bh",
    p_errors="error_p",
    bh_errors="error_bh",
    better="better",
    mean_fc="fc",
    share_label_1="positive",
    accuracy="accuracy",
    majority="majority",
)


def train_expression(p, d, y, label, jobs, o, folder, device):
    """One checkpoint for each fold: fold*.pt. [HistCode Methods, Differential expression prediction]

    --model linear: a classifier of tumour and normal slides says which tiles are most and least tumour, their means give
    all genes at once. --model attention: the pooled features of all tiles, trained on the genes themselves.
    """
    rows_of = {name: i for i, name in enumerate(d["names"])}
    bag_of = lambda i: np.concatenate([d["bag"](rows_of[s]) for s in p["slides"][i]])
    sums = [tuple(map(sum, zip(*(d["sums"][rows_of[s]] for s in names)))) for names in p["slides"]]
    xs = [
        np.full((len(y), 2 * d["n_features"]), np.nan)
        for _ in range(o.folds * (o.model == "linear"))
    ]  # (P, 2D) each
    for _, f, *parts in jobs:
        path = folder / f"fold{f}.pt"
        if path.is_file() or f % o.share[1] != o.share[0]:
            continue
        start, seed, ledger = time.time(), seed_of(o, 0, f), dict(p["saw"])
        train, valid, test = roles(p["part"], f, o.folds)
        both, chooses = np.concatenate([train, valid]), roles(p["part"], f, o.folds, o.code)[1]
        if o.model == "linear":
            model = draw_model("HistCode", d["sums"], parts[0], seed, o)
            done = train_heads(
                [model],
                d["bag"],
                lambda r: torch.from_numpy(d["y"][r]),
                histcode.cross_entropy,
                [(*parts[:2], [])],
                [seed],
                o,
                device,
                f"fold {f} attention",
                path.with_suffix(".0.state.pt"),
                d["names"],
            )
            apply = apply_heads(
                dict(
                    model=done["model"],
                    pooling="HistCode",
                    outputs=2,
                    embed=o.embed,
                    hidden=o.hidden,
                    n_features=d["n_features"],
                ),
                device,
            )
            saw(ledger, "standardisation of the features", d["patients"][parts[0]])  # of draw_model
            for step, seen in done["saw"][0].items():
                saw(ledger, f"attention: {step}", d["patients"][seen])
            x = xs[f]  # nan: the test patients
            for i in counted(f"fold {f} tiles", {*both, *chooses}, "pairs"):
                x[i] = pair_features(h := bag_of(i), apply(h)[1][0].numpy())
            if o.ridge is None:
                saw(ledger, "penalty", p["patients"][both])
            penalty = best_penalty(x[both], y[both]) if o.ridge is None else o.ridge
            saw(ledger, "least squares", p["patients"][both])  # it has no epoch to choose
            weights, bias = least_squares(x[both], y[both], penalty)
            saw(ledger, "labels: weights of the layer", p["patients"][train])
            saw(ledger, "labels: choice of the epoch", p["patients"][chooses])
            label_weights, label_bias = fit_labels(x, label, train, chooses, device)
            more = {
                k: torch.from_numpy(np.float32(v))
                for k, v in dict(
                    weights=weights, bias=bias, label_weights=label_weights, label_bias=label_bias
                ).items()
            }
            pooling, outputs, more["penalty"] = "HistCode", 2, float(penalty)
        else:
            pooling, outputs, more = POOLED[o.pooling], 1 if o.per_gene else y.shape[1], {}
            saw(ledger, "standardisation of the features", p["patients"][train])  # of draw_model
            saw(ledger, "start of the last bias", p["patients"][train])
            known = ~np.isnan(y[train])  # of a gene no training patient may know
            done, mean = (
                [],
                np.where(known, y[train], 0).sum(0) / np.maximum(known.sum(0), 1),
            )  # the bias starts there
            for genes in np.array_split(
                np.arange(y.shape[1]), -(-y.shape[1] // GENES_AT_ONCE) if o.per_gene else 1
            ):
                models = []
                for j in genes if o.per_gene else [genes]:
                    models.append(draw_model(pooling, sums, train, seed, o, outputs))
                    models[-1].head.classify.bias.data.copy_(torch.as_tensor(mean[j]))
                turned = lambda r: torch.from_numpy(
                    np.float32(
                        y[r][..., genes] if not o.per_gene else y[r[0]][:, genes].T[:, :, None]
                    )
                )
                done.append(
                    train_heads(
                        models,
                        bag_of,
                        turned,
                        histcode.squared_error,
                        [(train, chooses, [])],
                        [seed],
                        o,
                        device,
                        f"fold {f}" + f" genes {genes[0] + 1}-{genes[-1] + 1}" * o.per_gene,
                        path.with_suffix(f".{genes[0]}.state.pt"),
                        p["patients"],
                    )
                )
            for step, seen in (item for one in done for own in one["saw"] for item in own.items()):
                saw(ledger, step, p["patients"][seen])
            done = dict(
                model={k: torch.cat([one["model"][k] for one in done]) for k in done[0]["model"]},
                epochs=torch.cat([one["epochs"] for one in done]),
                losses=torch.cat([one["losses"] for one in done], 1),
            )
        done.pop("tests", None)
        done.update(more, saw=ledger)
        save_fold(
            path,
            done,
            d,
            o,
            pooling,
            outputs,
            p["patients"],
            (train, chooses, test),
            np.concatenate([d["patients"][np.concatenate(parts[:2])], p["patients"][both]]),
            kind=o.model,
            genes=p["chosen"],
        )
        for state in folder.glob(f"fold{f}.*.state.pt"):
            state.unlink()
        with open(log_path(folder, o.share), "a") as log:
            log.write(
                json.dumps(
                    dict(
                        fold=f, epochs=done["epochs"].tolist(), valid_losses=done["losses"].tolist()
                    )
                )
                + "\n"
            )
        say(
            f"fold {f}: {len(train)}/{len(chooses)}/{len(test)} pairs, epoch {few(done['epochs'].tolist(), 3)}"
            + (f", penalty {more['penalty']:g}" if more else "")
            + f", {clock(time.time() - start)}"
        )
    of_all(None)
    if o.share[0]:  # the first process judges
        return None
    for left in folder.glob("fold*.state.pt"):  # of a kill between a fold and its state
        left.unlink()
    write_log(folder, read_log(folder))
    saved, prediction, odds = [], np.full(y.shape, np.nan), np.full(y.shape, np.nan)
    for f in range(o.folds):
        saved.append(load_checkpoint(folder / f"fold{f}.pt", "cpu"))
        apply, tested = apply_heads(saved[-1], device), p["part"] == f
        todo = (
            tested | np.isnan(xs[f][:, 0]) if xs else tested
        )  # and what a process before this one has read
        for i in counted(f"judging fold {f}", np.flatnonzero(todo), "pairs"):
            h = bag_of(i)
            if tested[i]:
                prediction[i], own, a = predict_pair(saved[-1], apply, h)
                odds[i] = np.where(histcode.label_of(prediction[i]), 1, -1) if own is None else own
            if xs:
                xs[f][i] = pair_features(h, (a if tested[i] else apply(h)[1].double().numpy())[0])
    shuffled = lambda r: shuffled_p(
        r, xs, p["part"], [s["penalty"] for s in saved], y, np.random.default_rng([o.seed, 2])
    )
    return saved, prediction, odds > 0, shuffled if xs else None


def run(o):
    """Predict which genes change between tumour and normal tissue of a patient, from the slide; every patient tested once."""
    start = time.time()
    settle_choices(o)
    if "epochs" in o.code and o.model != "attention":
        raise InputError(
            "--code epochs: those of a gene's regressor: --code model,epochs, or --model attention"
        )
    o.model, o.slides, o.per_gene = o.model or "linear", o.slides or "tumour", bool(o.per_gene)
    settle_training(o, DIAGNOSIS)
    check_ranges(o, ("top", 1, 1e6), ("ridge", 0, 1e12))
    if o.model == "linear" and (o.per_gene or o.pooling != "attention"):
        raise InputError(
            ("--per-gene" if o.per_gene else f"--pooling {o.pooling}")
            + ": with --model attention; the linear "
            "model is one layer over the tiles of highest and lowest attention"
        )
    if o.model != "linear" and o.ridge != 0:
        raise InputError("--ridge: with --model linear; the other stops on its validation patients")
    if o.drivers and o.genes != "all":
        raise InputError("--drivers and --genes both name genes: give one")
    need_matplotlib()
    device, cohort, sets = pick_device(o.device), Path(o.cohort), read_sets(o.gmt) if o.gmt else {}
    p = pairs_of(cohort, o)
    chosen = chosen_genes(p, o)
    wanted = {s for names in p["slides"] for s in names}
    needed = [s["slide"] for s in p["known"] if o.model == "linear" or s["slide"] in wanted]
    d = slide_features(cohort, o, needed, least=2)
    gone = [i for i, names in enumerate(p["slides"]) if not set(names) <= set(d["names"])]
    p["left_out"]["pairs of which a slide failed"] = p["patients"][gone].tolist()
    keep = np.setdiff1d(np.arange(len(p["patients"])), gone)
    p.update(
        patients=p["patients"][keep],
        slides=[p["slides"][i] for i in keep],
        tumour=p["tumour"][keep],
        normal=p["normal"][keep],
        chosen=[p["genes"][j] for j in chosen],
    )
    say_left_out(p["left_out"])
    y, label = histcode.fold_change(p["tumour"][:, chosen], p["normal"][:, chosen])  # (P, G)
    at = {s["slide"]: (s["patient"], k) for s, k in zip(p["known"], p["tissue"].tolist())}
    paired = set(p["patients"].tolist())
    d.update(
        patients=np.array([at[s][0] for s in d["names"]]),
        y=np.array([at[s][1] for s in d["names"]], np.int64),
        classes=("normal", "tumour"),
        what="slides",
        left_out=p["left_out"],
    )
    # dealt from the table alone, so that every model and encoder has the same folds
    check_folds(len({s["patient"] for s in p["known"]}), d, o)
    of = histcode.split_patients(
        [s["patient"] for s in p["known"]],
        [f"{k}{s['patient'] in paired}" for s, k in zip(p["known"], p["tissue"])],
        o.folds,
        [o.seed, 0],
    )
    part_of = {s["patient"]: g for s, g in zip(p["known"], of.tolist())}
    p["part"], part = (
        np.array([part_of[who] for who in names]) for names in (p["patients"], d["patients"])
    )
    jobs = [(0, f, *roles(part, f, o.folds, o.code)) for f in range(o.folds)]
    for _, f, rows, chooses, _ in jobs:  # all folds before anything is written
        train, valid, _ = roles(p["part"], f, o.folds, o.code)
        if len(train) < 2 or (o.model != "linear" and not len(valid)):
            refuse(
                d,
                f"fold {f} has {len(train)} pairs to train on and {len(valid)} to choose its epoch, of "
                f"{len(p['patients'])}: " + ("too few" if o.folds == 3 else "lower --folds"),
            )
        if o.model == "linear" and (len(set(d["y"][rows])) < 2 or not len(chooses)):
            refuse(
                d,
                f"fold {f} trains on slides of "
                + (
                    f"one class only ({d['classes'][d['y'][rows[0]]]})"
                    if len(chooses)
                    else "some patients, and none is left to choose the epoch"
                )
                + "; the attention needs tumour and normal slides; --model attention does without",
            )
    name = o.name or "-".join(
        ["expression", *([o.pooling] if o.model != "linear" else []), *["per-gene"] * o.per_gene]
    )
    folder = cohort / "runs" / o.within / name
    config = claim_run(
        folder,
        o,
        d,
        dict(
            model=o.model,
            pooling=o.pooling,
            per_gene=o.per_gene,
            slides=o.slides,
            ridge="auto" if o.ridge is None else o.ridge,
            genes=len(chosen),
            ends=histcode.ENDS,
        ),
        d["names"].tolist(),
        d["patients"].tolist(),
        p["patients"].tolist(),
        p["chosen"],
        y,
        label,
        part,
        p["part"],
    )
    if not o.share[0]:
        save_csv(
            folder / "folds.csv",
            ("slide", "patient", "tissue", "part", "pair"),
            zip(
                d["names"],
                d["patients"],
                (d["classes"][v] for v in d["y"]),
                part,
                (int(w in paired) for w in d["patients"]),
            ),
        )
    print(
        f"{len(p['patients'])} pairs, {len(chosen):,} genes, {len(d['names'])} slides, {d['n_features']} features a tile; "
        f"model {o.model}"
        + f", {o.pooling} pooling" * (o.model != "linear")
        + f"; {o.folds} folds, on {device}",
        flush=True,
    )
    trained = train_expression(p, d, y, label, jobs, o, folder, device)
    if trained is None:
        return 0
    saved, prediction, guess, shuffled = trained
    found = judge_genes(prediction, y, guess, label, np.random.default_rng([o.seed, 1]), shuffled)
    fc = np.where(np.isnan(y), np.nan, 10.0**y - 1)
    with np.errstate(divide="ignore"):
        found.update(fc=np.nanmean(fc, 0), r_folds=fold_r(prediction, y, p["part"]))
    save_file(
        folder / "predictions.npz",
        lambda f: np.savez_compressed(
            f,
            prediction=prediction,
            truth=y,
            label=label,
            predicted_label=guess,
            genes=np.array(p["chosen"]),
            patient=p["patients"],
            part=p["part"],
        ),
    )
    p["encoder"], p["ledgers"] = (
        encoder_saw(cohort, features_of(o)),
        [dict(s.get("saw", {})) for s in saved],
    )
    for ledger, s in zip(p["ledgers"], saved):
        for step in ("random baseline", *["shuffled patients"] * bool(shuffled)):
            saw(ledger, step, s["test_patients"])
    write_expression(folder, config, p, d, y, prediction, found, saved, sets, o)
    print(f"report: {folder / 'report.md'}   ({clock(time.time() - start)})")
    return report_failures(d["failed"], len(needed), folder)


def fold_r(prediction, y, part):
    """R of each gene within each test part, mean over the parts that have one: (n, G), (n, G), (n,) -> (G,)."""
    r = np.array(
        [
            stats.pearson(prediction[part == f], y[part == f])
            for f in np.unique(part)
            if (part == f).sum() >= stats.MIN_R
        ]
        or [np.full(y.shape[1], np.nan)]
    )
    there = ~np.isnan(r)
    return np.where(
        there.any(0), np.where(there, r, 0).sum(0) / np.maximum(there.sum(0), 1), np.nan
    )


def draw_expression(folder, title, genes, y, prediction, f, order):
    """Pictures of Figs. 4, 5, 7 and 8; -> [(lower end of a bin of R, mean fold changes of its genes)], Fig. 7's numbers."""
    r, base = (v[~np.isnan(v)] for v in (f["r"], f["baseline"]))
    with figure(folder / "r.png", figsize=(7, 4)) as ax:
        bins = np.linspace(min(-0.5, *r, *base), max(0.5, *r, *base), 41) if len(r) else 10
        ax.hist([r, base], bins, label=["predicted", "random"], color=[BLUE, ORANGE])
        ax.set(xlabel="Pearson R with the true log$_{10}$(fc + 1)", ylabel="genes", title=title)
        ax.legend(fontsize=8)
    with figure(folder / "accuracy.png", figsize=(7, 4)) as ax:
        pair = [v[~np.isnan(v)] for v in (f["accuracy"], f["majority"])]
        ax.hist(
            pair,
            np.linspace(0, 1, 21),
            label=["predicted", "always the commoner label"],
            color=[BLUE, ORANGE],
        )
        ax.set(xlabel=f"accuracy of |log$_2$ fc| > {histcode.LOG2_FC}", ylabel="genes", title=title)
        ax.legend(fontsize=8)
    tenth = np.floor(10 * np.where(np.isnan(f["r"] + f["fc"]), np.nan, f["r"]))  # (G,) its bin of R
    binned = [(t / 10, f["fc"][tenth == t]) for t in np.unique(tenth[~np.isnan(tenth)])]
    with figure(folder / "fold_change.png", figsize=(7, 4)) as ax:
        if binned:
            ax.boxplot(
                [v for _, v in binned],
                positions=[low + 0.05 for low, _ in binned],
                widths=0.07,
                manage_ticks=False,
            )
        ax.set(xlabel="Pearson R, bins of .1", ylabel="mean fold change of the gene", title=title)
    nine = [genes.index(g) for g in SHOWN if g in genes]
    nine = (nine + [j for j in order if j not in nine])[:9]
    with figure(folder / "scatter.png", 3, 3, figsize=(9, 9)) as axes:
        for ax, j in zip(axes.flat, nine):
            ax.scatter(y[:, j], prediction[:, j], s=10, color=BLUE)
            ax.set_title(f"{genes[j]}: R = {f['r'][j]:.2f}", fontsize=9)
            ax.set(xlabel="true log$_{10}$(fc + 1)", ylabel="predicted")
        for ax in axes.flat[len(nine) :]:
            ax.axis("off")
    return binned


def write_expression(folder, config, p, d, y, prediction, f, saved, sets, o):
    """genes.csv, pictures of Figs. 4, 5, 7, 8, 9 and report.md; the main figures also to the terminal."""
    genes, G, table, text = p["chosen"], len(p["chosen"]), progress_table, []
    show = lambda v: "" if np.isnan(v) else f"{v:.5g}"
    order = np.argsort(np.where(np.isnan(f["r"]), np.inf, -f["r"]), kind="stable")
    save_csv(
        folder / "genes.csv",
        ("gene", *GENE_COLUMNS),
        ((genes[j], *(show(float(f[k][j])) for k in GENE_COLUMNS.values())) for j in order),
    )
    r, rho, base = (v[~np.isnan(v)] for v in (f["r"], f["rho"], f["baseline"]))
    u_p = stats.r_against_baseline(f["r"], f["baseline"])[1]
    mean = lambda v: float(np.mean(v)) if len(v) else math.nan
    lines = [
        f"Pearson R over {len(p['patients'])} held-out pairs: mean {mean(r):.3f}, Spearman {mean(rho):.3f}; R > .2 in "
        f"{(r > 0.2).sum()}, > .4 in {(r > 0.4).sum()} of {len(r)} genes; p below {ALPHA} by Benjamini-Hochberg in "
        f"{(f['bh'] < ALPHA).sum()} (p: "
        + (
            "patients shuffled, all folds fitted anew)."
            if config["model"] == "linear"
            else "twice the t's, as if R were of one sample; it scatters more)."
        ),
        f"Random predictions between the 5 % and the 95 % of the truth: mean R {mean(base):.3f}, SD {base.std():.3f}; rank-sum "
        f"of both distributions p {u_p:.2g}.",
        f"Against them gene by gene, two-sided signed-rank, BH: predictions differ in {(f['location_bh'] < ALPHA).sum()} genes, "
        f"as the paper words it (location, not skill); errors are smaller in "
        f"{((f['error_bh'] < ALPHA) & (f['better'] == 1)).sum()}, larger in "
        f"{((f['error_bh'] < ALPHA) & (f['better'] == 0)).sum()}.",
        f"Label |log2 fc| > {histcode.LOG2_FC}: accuracy above .9 in {(f['accuracy'] > 0.9).sum()}, above .8 in "
        f"{(f['accuracy'] > 0.8).sum()} of {G} genes; always the commoner label would have it in {(f['majority'] > 0.9).sum()} "
        f"and {(f['majority'] > 0.8).sum()}. Accuracy beats the commoner label in {(f['accuracy'] > f['majority']).sum()} genes, "
        f"falls short in {(f['accuracy'] < f['majority']).sum()}; mean {mean(f['accuracy']):.3f} against "
        f"{mean(f['majority']):.3f}.",
    ]
    groups = [("R > .5", f["r"] > 0.5), ("R > .2", f["r"] > 0.2), ("R < .2", f["r"] < 0.2)]
    both = ~np.isnan(f["r"]) & ~np.isnan(f["fc"])
    tie = stats.spearman(f["r"][both], f["fc"][both]) if both.sum() > 2 else math.nan
    quartile = (
        np.digitize(f["fc"][both], np.quantile(f["fc"][both], (0.25, 0.5, 0.75)))
        if both.any()
        else np.zeros(0)
    )
    lines.append(
        "Mean R by quartile of the genes' mean fold change, lowest first: "
        + ", ".join(f"{mean(f['r'][both][quartile == q]):.3f}" for q in range(4))
        + "."
    )
    lines.append(
        "Mean fold change of genes with "
        + ", ".join(f"{what}: {mean(f['fc'][of & both]):.3f} ({of.sum()})" for what, of in groups)
        + f"; Spearman of R and mean fold change over genes {tie:.3f}."
    )
    print("\n".join(lines))
    title = ", ".join(
        [
            f"model {config['model']}",
            *[f"{config['pooling']} pooling"] * (config["model"] != "linear"),
        ]
    )
    binned = draw_expression(folder, title, genes, y, prediction, f, order)
    if sets:
        text += enrich_best(folder, [genes[j] for j in order if not np.isnan(f["r"][j])], sets)
    truth = planted_programmes(o.cohort, genes)
    if truth is not None:
        rows = [
            (
                name,
                of.sum(),
                f"{mean(f['r'][of][~np.isnan(f['r'][of])]):.3f}",
                (f["bh"][of] < ALPHA).sum(),
            )
            for name, of in truth.items()
        ]
        header = ("programme", "genes", "mean R", f"BH < {ALPHA}")
        print(
            "SIMULATED: "
            + "; ".join(f"{name} {hit} of {n} (mean R {m})" for name, n, m, hit in rows)
        )
        text += [
            "## Against what was planted",
            "",
            "SIMULATED cohort. Housekeeping and noise genes follow nothing on the slide.",
            "",
            table(header, rows),
            "",
        ]
    leaks, seen = ledger_lines(
        p["ledgers"], [s["test_patients"] for s in saved], MAY_SEE, p["encoder"]
    )
    top = [
        (
            genes[j],
            f["n"][j],
            *(
                show(float(f[k][j]))
                for k in ("r", "bh", "rho", "r_folds", "fc", "accuracy", "majority")
            ),
        )
        for j in order[:20]
    ]
    save_text(
        folder / "report.md",
        [
            f"# Differential expression: {folder.name}",
            "",
            *leaks,
            *turned_lines(o),
            f"{len(p['patients'])} pairs of tumour and matched normal tissue, {G:,} genes, y = log10(fc + 1) [HistCode]; "
            f"{title}. {config['folds']} parts by patient; each pair is predicted by the model that "
            + (
                "chose its epoch by it"
                if "stop" in o.code
                else "did not know its patient, neither in its attention nor in its regression"
            )
            + ". R is over all pairs; R within folds: mean over the test parts.",
            "",
            *(line + "\n" for line in lines),
            "![R](r.png) ![Accuracy](accuracy.png)",
            "",
            "## Best genes",
            "",
            table(
                (
                    "gene",
                    "pairs",
                    "R",
                    "p (BH)",
                    "Spearman",
                    "R within folds",
                    "mean fc",
                    "accuracy",
                    "majority",
                ),
                top,
            ),
            "",
            "![Predicted against true](scatter.png)",
            "",
            "## R and fold change",
            "",
            table(
                ("R from", "genes", "mean fold change"),
                [(f"{low:.1f}", len(v), f"{v.mean():.3f}") for low, v in binned],
            ),
            "",
            "![Fold change](fold_change.png)",
            "",
            *text,
            "## Folds",
            "",
            table(
                ("fold", "train", "validation", "test", "epoch", "penalty"),
                [
                    (
                        i,
                        *(len(s[f"{part}_patients"]) for part in ("train", "valid", "test")),
                        few(s["epochs"].tolist(), 3),
                        s.get("penalty", ""),
                    )
                    for i, s in enumerate(saved)
                ],
            ),
            "",
            *seen,
            *left_out_lines(d),
            "## Settings",
            "",
            *(f"- {k}: {v}" for k, v in config.items()),
            "",
        ],
    )


def enrich_best(folder, ranked, sets):
    """Gene sets of the best genes among those tested: enrichment.csv, its picture and lines of the report. [HistCode Fig. 9]"""
    best = ranked[:BEST_GENES]
    e, names = stats.enrichment(best, sets, ranked), list(sets)
    order = [
        i
        for i in np.lexsort((-np.nan_to_num(e["fold"]), np.nan_to_num(e["p"], nan=2)))
        if e["size"][i]
    ]
    save_csv(
        folder / "enrichment.csv",
        ("set", "genes tested", "hits", "expected", "fold", "p", "p_bh", "hit genes"),
        (
            (
                names[i],
                e["size"][i],
                e["overlap"][i],
                *(f"{e[k][i]:.4g}" for k in ("expected", "fold", "p", "bh")),
                " ".join(g for g in sets[names[i]] if g in best),
            )
            for i in order
        ),
    )
    line = (
        f"{len(best)} best of {len(ranked):,} tested genes: {(e['bh'] < ALPHA).sum()} of {len(order)} sets with a tested "
        f"gene at BH < {ALPHA}"
    )
    print(
        line
        + "".join(
            f"; first: {names[i]} ({e['overlap'][i]} of {e['size'][i]}, p (BH) {e['bh'][i]:.2g})"
            for i in order[:1]
        )
    )
    shown = [i for i in order[:10] if e["overlap"][i]]
    if shown:
        with figure(folder / "enrichment.png", figsize=(8, 0.7 + 0.28 * len(shown))) as ax:
            ax.barh(
                [f"{names[i][:60]} ({e['overlap'][i]}/{e['size'][i]})" for i in shown],
                -np.log10(np.maximum(e["p"][shown], 1e-300)),
                color=BLUE,
            )
            ax.invert_yaxis()
            ax.set_xlabel("−log$_{10}$ p, one-sided Fisher, uncorrected")
    return [
        f"## Gene sets of the {len(best)} best genes",
        "",
        line + ".",
        "",
        progress_table(
            ("set", "hits", "tested", "expected", "p", "p (BH)"),
            [
                (
                    names[i],
                    e["overlap"][i],
                    e["size"][i],
                    f"{e['expected'][i]:.1f}",
                    f"{e['p'][i]:.2g}",
                    f"{e['bh'][i]:.2g}",
                )
                for i in shown
            ],
        ),
        "",
        *["![Sets](enrichment.png)", ""] * bool(shown),
    ]


def options(parser):
    parser.set_defaults(within="")
    parser.add_argument("cohort", help="a cohort folder: slides/ and samples.csv")
    p, a = parser, parser.add_argument
    a(
        "--model",
        choices=("linear", "attention"),
        help="linear: one layer over the mean of the tiles of highest and of "
        "lowest attention of a tumour classifier (default, the paper's eq. 8); attention: all tiles pooled by attention that "
        "learns from the genes (Fig. 6)",
    )
    a(
        "--pooling",
        choices=tuple(POOLED),
        default="attention",
        help="with --model attention (default attention)",
    )
    a(
        "--ridge",
        type=penalty_of,
        default=0.0,
        metavar="X|auto",
        help="with --model linear: penalty of the squared weights "
        "of standardised features (default 0: least squares, the paper's); auto: by leave-one-out over the training pairs, "
        "for many features and few patients",
    )
    add_choices(a, CHOICES, "expression")
    a(
        "--gmt",
        nargs="+",
        metavar="FILE",
        help=f"gene sets to look for the {BEST_GENES} best genes in (Fig. 9)",
    )
    pair_options(p, "resnet50-stage3")
