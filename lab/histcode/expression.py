"""Models of fold change: the folds of a run trained, asked about their pairs, and judged.

P pairs (patients), G genes, D features of a tile; y (P, G) = log10(fc + 1). The labelled slides and
the pairs are bags in the form of lab.histcode.bags, with `part` (n,), the part that each is in.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

import he2rna
import histcode
import stats
from lab.audit.ledger import saw
from lab.files import few
from lab.histcode import decoys
from lab.histcode.ends import label_layer, linear_layer, shuffled_p
from lab.histcode.heads import apply_heads, train_heads
from lab.histcode.networks import SlideModel
from lab.histcode.pairs import Pairs
from lab.histcode.predictions import LAYERS, by_layers
from lab.histcode.splits import roles
from lab.histcode.training import draw_model, save_fold, seed_of
from lab.processes import of_all, say
from lab.progress import clock, counted
from lab.ridge import best_penalty
from lab.runs import load_checkpoint

# Networks of one gene each that train together: by their parameters, with Adam's numbers .1 GiB,
# and by what they make of the tiles of a pair, .1 GiB an array. [ours]
PARAMETERS_AT_ONCE, ACTIVATIONS_AT_ONCE = 2**23, 2**25
POOLED = {"attention": "HistCode", "mean": "mean", "max": "max"}  # [HistCode Fig. 6], and max


@dataclass
class Study:
    """What the folds of a run learn from, and are judged by."""

    pairs: Pairs
    slides: dict  # the labelled slides: they teach where to look
    bags: dict  # of each pair all tiles of its slides
    targets: np.ndarray  # (P, G + m): y, and the decoys that networks learn beside it


# ---- All folds -----------------------------------------------------------------------------------


def train_folds(study, folder, o, device):
    """Train the folds that are not there yet, each process its own: fold*.pt."""
    rank, world = o.share
    train = train_linear if o.model == "linear" else train_attention
    for f in range(rank, o.folds, world):
        path = folder / f"fold{f}.pt"
        if not path.is_file():
            start = time.monotonic()
            saved = train(study, f, path, o, device)
            save(study, f, path, o, saved)
            penalty = f", penalty {saved['penalty']:g}" if "penalty" in saved else ""
            epochs = few(saved["epochs"].tolist(), 3)
            say(f"fold {f}: epoch {epochs}{penalty}, {clock(time.monotonic() - start)}")
        for state in folder.glob(f"fold{f}.*.state.pt"):
            state.unlink()
    of_all(None)


def save(study, f, path, o, saved):
    """Write a fold's checkpoint. It learned from all whom its steps saw, but for two of them.

    The gene filter asks whether there is a fold change, not which; decoys give it to another one.
    """
    learned_from = set()
    for step, patients in saved["saw"].items():
        if step not in ("gene filter", "decoys"):
            learned_from.update(patients)
    save_fold(
        path,
        saved,
        study.slides,
        o,
        saved["pooling"],
        saved["outputs"],
        study.pairs.patients,
        roles(study.bags["part"], f, o.folds, o.code),
        np.array(sorted(learned_from)),
        kind=o.model,
        genes=study.pairs.genes,
    )


def folds_of_run(study, folder, o):
    """Checkpoints of all folds, and what they predict of the pairs that each tested.

    -> checkpoints, prediction of y (P, G), guess of the label (P, G)
    """
    folds = []
    prediction = np.empty(study.pairs.y.shape)
    guess = np.empty(prediction.shape, bool)
    for f in range(o.folds):
        saved = load_checkpoint(folder / f"fold{f}.pt", "cpu", keys=("prediction", "guess", "saw"))
        prediction[study.bags["part"] == f] = saved["prediction"]
        guess[study.bags["part"] == f] = saved["guess"]
        folds.append(saved)
    return folds, prediction, guess


# ---- One fold ------------------------------------------------------------------------------------


def train_linear(study, f, path, o, device):
    """A classifier says which tiles are most and least tumour; their means give all genes at once.

    Least squares takes the validation patients too: it has no epoch to choose. [ours]
    [HistCode Methods, Differential expression prediction, eq. 8]
    """
    pairs, bags = study.pairs, study.bags
    train, chooses, test = roles(bags["part"], f, o.folds, o.code)
    both = np.concatenate([train, roles(bags["part"], f, o.folds)[1]])
    saved = train_networks(
        study.slides,
        f,
        path.with_suffix(".0.state.pt"),
        o,
        device,
        pooling="HistCode",
        outputs=2,
        loss=histcode.cross_entropy,
        target=torch.from_numpy(study.slides["y"]).__getitem__,
    )
    ledger = pairs.ledger | {f"attention: {step}": whom for step, whom in saved["saw"].items()}
    x = ends_of_pairs(bags, saved, device)  # (P, 2D)
    penalty = o.ridge
    if penalty is None:
        penalty = best_penalty(x[both], pairs.y[both])
        saw(ledger, "penalty", pairs.patients[both])
    layers = linear_layer(x[both], pairs.y[both], penalty)
    saw(ledger, "least squares", pairs.patients[both])
    layers += label_layer(x, pairs.label, train, chooses, device)
    saw(ledger, "labels: weights of the layer", pairs.patients[train])
    saw(ledger, "labels: choice of the epoch", pairs.patients[chooses])
    for name, values in zip(LAYERS, layers, strict=True):
        saved[name] = torch.from_numpy(np.float32(values))
    prediction, odds = by_layers(saved, x[test])
    saved.update(prediction=torch.from_numpy(prediction), guess=torch.from_numpy(odds > 0))
    return saved | {"penalty": float(penalty), "ends": torch.from_numpy(x), "saw": ledger}


def ends_of_pairs(bags, saved, device):
    """Of every pair the means of the tiles of highest and of lowest attention, (P, 2D)."""
    apply = apply_heads(saved, device)
    x = []
    for i in counted("tiles of the pairs", range(len(bags["names"])), "pairs"):
        h = bags["bag"](i)
        x.append(histcode.end_features(h, apply(h)[1][0].numpy()))
    return np.array(x)


def train_attention(study, f, path, o, device):
    """Networks that pool all tiles of a pair and learn from its genes. [HistCode Fig. 6]

    One network gives all genes, or with --per-gene each gene has its own. [HistCode code]
    """
    y, bags, n_genes = study.targets, study.bags, study.pairs.y.shape[1]
    n_decoys = y.shape[1] - n_genes
    train, _, test = roles(bags["part"], f, o.folds, o.code)
    ledger = dict(study.pairs.ledger)
    saw(ledger, "start of the last bias", study.pairs.patients[train])
    if n_decoys:
        saw(ledger, "decoys", study.pairs.patients)
    blocks = []
    at_once = networks_at_once(bags, o) if o.per_gene else None
    for genes in gene_blocks(n_genes, n_decoys, at_once):
        start = mean_known(y[train][:, genes], unknown=0)
        networks = train_networks(
            bags,
            f,
            path.with_suffix(f".{genes[0]}.{len(genes)}.state.pt"),
            o,
            device,
            pooling=POOLED[o.pooling],
            outputs=1 if o.per_gene else n_genes,
            loss=decoys.loss_of_genes(n_genes),
            target=targets(y[:, genes], o.per_gene),
            starts=start[:, None] if o.per_gene else [start],
            learned=None if o.per_gene else decoys.loss_beside(n_genes, n_decoys),
        )
        blocks.append(networks)
    saved = as_one(blocks)
    apply = apply_heads(saved, device)
    asked = counted("tests", test, "pairs")
    both = torch.stack([apply(bags["bag"](i))[0].flatten().double() for i in asked])
    prediction = both[:, :n_genes].clone()
    guess = torch.from_numpy(histcode.label_of(prediction.numpy()))
    saved["saw"] = ledger | saved["saw"]
    saved = decoys.without(saved, n_genes, o.per_gene)
    return saved | {"prediction": prediction, "guess": guess, "decoys": both[:, n_genes:].clone()}


def networks_at_once(bags, o):
    """How many networks of one gene each memory allows: of small ones many share a step's cost."""
    scale = np.zeros((2, bags["n_features"]))
    with torch.device("meta"):  # which draws no weights
        frame = SlideModel(POOLED[o.pooling], *scale, 1, o.embed, o.hidden)
    parameters = sum(weight.numel() for weight in frame.parameters())
    tiles = o.batch * max(tiles for tiles, *_ in bags["sums"])
    width = max([2 * o.hidden, *o.embed])
    return max(1, min(PARAMETERS_AT_ONCE // parameters, ACTIVATIONS_AT_ONCE // (tiles * width)))


def gene_blocks(n_genes, n_decoys, at_once):
    """Genes, then decoys, in blocks of networks that train together; at_once None: all in one."""
    if at_once is None:
        return [np.arange(n_genes + n_decoys)]
    blocks = []
    for first, count in ((0, n_genes), (n_genes, n_decoys)):
        parts = np.array_split(np.arange(count), math.ceil(count / at_once) or 1)
        blocks += [first + part for part in parts if count]
    return blocks


def targets(y, per_gene):
    """What train_heads asks for: y of pairs (1, b), (1, b, G), or of a network a gene (G, b, 1)."""

    def of(rows):
        wanted = y[rows[0]].T[:, :, None] if per_gene else y[rows]
        return torch.from_numpy(np.float32(wanted))

    return of


def train_networks(
    bags,
    f,
    state,
    o,
    device,
    *,
    pooling,
    outputs,
    loss,
    target,
    starts=(None,),
    learned=None,
):
    """Train networks of one kind on the same bags -> their checkpoint; `saw` in it names patients.

    starts: of each network the biases that its last layer starts with, or None; where they are more
    than its outputs, those of decoys follow. learned: the loss that training and the choice
    of the epoch follow, if it is another.
    """
    train, chooses, _ = roles(bags["part"], f, o.folds, o.code)
    seed = seed_of(o, 0, f)
    models = []
    for start in starts:
        models.append(draw_model(pooling, bags["sums"], train, seed, o, outputs))
        if start is not None:
            decoys.add_outputs(models[-1].head, len(start) - outputs)
            models[-1].head.classify.bias.data.copy_(torch.from_numpy(start))
    saved = train_heads(
        models,
        bags["bag"],
        target,
        loss,
        [(train, chooses, [])],
        [seed],
        o,
        device,
        f"fold {f}",
        state,
        bags["names"],
        learned=learned,
    )
    ledger = {}
    for step, rows in {"standardisation of the features": train, **saved["saw"][0]}.items():
        saw(ledger, step, bags["patients"][rows])
    shape = {"embed": o.embed, "hidden": o.hidden, "n_features": bags["n_features"]}
    outputs = models[0].head.classify.out_features
    return saved | shape | {"pooling": pooling, "outputs": outputs, "saw": ledger}


def as_one(blocks):
    """The checkpoints of several blocks of networks as one."""
    names = blocks[0]["model"]
    return blocks[0] | {
        "model": {name: torch.cat([one["model"][name] for one in blocks]) for name in names},
        "epochs": torch.cat([one["epochs"] for one in blocks]),
        "losses": torch.cat([one["losses"] for one in blocks], 1),
    }


# ---- How good ------------------------------------------------------------------------------------


def judge(study, folds, prediction, guess, o):
    """Figures of each gene, a dict of (G,) arrays, of predictions and guessed labels (P, G).

    p decides: of the linear model by shuffled patients, of networks by their decoys' R, without
    decoys that of a t; p_t: that t. All are one-sided, as a prediction that is right has R > 0.
    """
    y, part = study.pairs.y, study.bags["part"]
    found = histcode.judge_genes(prediction, y, np.random.default_rng([o.seed, 1]))
    found.update(histcode.judge_labels(guess, study.pairs.label), p_t=found["p"])
    found.update(fc=mean_known(10.0**y - 1), r_folds=r_within_folds(prediction, y, part))
    if "ends" in folds[0]:
        ends = [saved["ends"].numpy() for saved in folds]
        penalties = [saved["penalty"] for saved in folds]
        rng = np.random.default_rng([o.seed, 2])
        r, baseline = found["r"], found["baseline"]
        found["p"], found["p_of_all"] = shuffled_p(r, baseline, ends, part, penalties, y, rng)
    elif study.targets.shape[1] > y.shape[1]:
        found["decoys"] = null = r_of_decoys(study, folds)
        bends = not o.per_gene and y.shape[1] < he2rna.FEW_GENES
        found["p"] = decoys.decoy_p(found["r"], found["n"], *null, bends)
    found["bh"] = stats.benjamini_hochberg(found["p"])
    return found


def r_of_decoys(study, folds):
    """R of each decoy over all pairs, and the number of pairs that it is known of: (m,) both."""
    truth = study.targets[:, study.pairs.y.shape[1] :]
    prediction = np.empty(truth.shape)
    for f, saved in enumerate(folds):
        prediction[study.bags["part"] == f] = saved["decoys"]
    return decoys.r_of_known(prediction, truth)


def mean_known(values, unknown=np.nan):
    """Mean of what is known of each column of values (n, G) with nan -> (G,)"""
    n = (~np.isnan(values)).sum(0)
    return np.where(n > 0, np.nansum(values, 0) / n.clip(1), unknown)


def r_within_folds(prediction, y, part):
    """R of each gene within a test part, mean over the parts that have one: (G,) [ours]"""
    return mean_known(r_of_parts(prediction, y, part))


def r_of_parts(prediction, y, part):
    """R of each gene within each test part of enough pairs: (parts, G)."""
    r = [np.empty((0, y.shape[1]))]
    for rows in stats.rows_of_folds(part):
        r.append(stats.pearson(prediction[rows], y[rows])[None])
    return np.concatenate(r)


def compared_over_parts(one, other):
    """`stats.corrected_t` of the mean R of two models within each part, (parts, G) both.

    Each of the k parts is tested by a model of the others: 1 / (k - 1) tested per trained. nan
    where no two parts have an R. [ours]
    """
    differences = mean_known((one - other).T)
    differences = differences[~np.isnan(differences)]
    if len(differences) < 2:
        return (np.nan,) * 4
    return stats.corrected_t(differences, 1 / (len(differences) - 1))
