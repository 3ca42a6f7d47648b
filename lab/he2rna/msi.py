"""lab.he2rna.msi"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

import he2rna
import stats
from lab.audit.ledger import saw, what_saw_whom
from lab.fast.networks import train_networks
from lab.files import InputError
from lab.he2rna.report import MAY_SEE

MSI_HIDDEN = (
    1024,
    256,
)  # A: 2048-1024-256-G, the autoencoders 2048-1024-256-1024-2048   [HE2RNA Methods, MSI status]


MSI_CLASSIFIER = (
    256,
    128,
)  # B, direct; on a 256-d representation the 128 alone             [HE2RNA Methods, MSI status]


MSI_EPOCHS = 50  #                                          [HE2RNA Methods, MSI status]


MSI_EPOCHS_CODE = 100  # of the autoencoders                      [HE2RNA code]


MSI_BATCH = 10  # slides per iteration, classifiers        [HE2RNA code]


MSI_GENE_BATCH = 32  # genes [HE2RNA code]; autoencoders        [ours]


def hospital_a(high, share, rng):
    """Which of P patients are hospital A's: (P,) bool, share P of them, MSI-H in both hospitals alike.

    From the same rng a larger share holds the smaller one, so that shares are compared on one draw. [ours; the paper draws
    without regard to MSI, which in a small B can leave a fold without MSI-H]
    """
    place = np.empty(len(high))
    for kind in (True, False):
        members = rng.permutation(np.flatnonzero(high == kind))
        place[members] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
    in_a = np.zeros(len(high), bool)
    in_a[np.lexsort((~high, place))[: int(share * len(high))]] = (
        True  # of equals MSI-H first: always as many
    )
    return in_a


def compare_arms(d, in_a, arms, o, key, device):
    """One split: what the arms need is trained in hospital A, the classifiers in B -> ({arm: AUC (repeats, folds)}, note).

    d: of read_study; in_a (S,) the slides of hospital A; key: numbers that with --seed decide every draw. The note says
    whom each step learned from, as rows of tiling.what_saw_whom over the test folds of B.
    """
    x, every, folds, y, note = d["x"], np.arange(len(in_a)), range(o.folds), None, {}
    names, who = np.unique(d["patients"][~in_a], return_inverse=True)
    high = np.zeros(len(names), bool)
    high[who] = d["high"][~in_a]  # (P,) of hospital B
    fold = np.stack(
        [
            stats.patient_folds(names, high.astype(str), o.folds, [o.seed, *key, r])
            for r in range(o.repeats)
        ]
    )
    a, b = np.flatnonzero(in_a), np.flatnonzero(~in_a)
    fold_a = stats.patient_folds(d["patients"][a], d["projects"][a], o.folds, [o.seed, *key])
    trains_a, trains_b = (
        [a[fold_a != f] for f in folds],
        [b[fold[r, who] != f] for r in range(o.repeats) for f in folds],
    )
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    ledgers, tested = (
        [{} for _ in trains_b],
        [names[fold[r] == f] for r in range(o.repeats) for f in folds],
    )

    def learned(step, trains):  # trains_b: each its own fold; else all
        for m, ledger in enumerate(ledgers):
            for rows in [trains[m]] if trains is trains_b else trains:
                saw(ledger, step, d["patients"][rows])
                saw(
                    ledger,
                    f"scaling of {step}",
                    d["patients"][every if "scaling" in o.code else rows],
                )

    pool = ThreadPoolExecutor(
        cores, initializer=torch.set_num_threads, initargs=(1,)
    )  # of each thread alone

    def networks(
        kind,
        hidden,
        activations,
        trains,
        epochs,
        batch,
        take,
        source=lambda m: x,
        target=None,
        outputs=None,
    ):
        known = lambda m: (
            every if "scaling" in o.code else trains[m]
        )  # what the inputs' mean and SD learn from
        inputs = lambda m: (
            scaled := he2rna.standardise(source(m), known(m)),
            scaled if target is None else target(m),
        )
        seeds = (
            np.random.default_rng([o.seed, *key, kind]).integers(2**62, size=len(trains)).tolist()
        )
        D = source(0).shape[1]
        sizes = D, *hidden, D if target is None else outputs
        return train_networks(
            pool, sizes, activations, inputs, trains, seeds, epochs, batch, device, take
        )

    def autoencoders(trains):  # 2048-1024-256-1024-2048
        return networks(
            1,
            (*MSI_HIDDEN, MSI_HIDDEN[0]),
            ("relu", "relu", "relu", "linear"),
            trains,
            MSI_EPOCHS_CODE if "epochs" in o.code else MSI_EPOCHS,
            MSI_GENE_BATCH,
            lambda layers: layers[1],
        )

    def classifiers(source, hidden, members=1):  # 2048-256-128-1 or 256-128-1
        label = d["high"][:, None].astype(np.float32)
        return networks(
            2,
            hidden,
            ("sigmoid",) * (len(hidden) + 1),
            trains_b * members,
            MSI_EPOCHS,
            MSI_BATCH,
            lambda layers: layers[-1][b, 0],
            source,
            lambda m: label,
            1,
        )

    try:  # the long ones first; all at once
        if "transcriptome" in arms:  # 2048-1024-256-G
            y = d["y"][:, he2rna.above_floor(d["y"][d["has_y"] if "genes" in o.code else a])]
            learned("networks of A", trains_a)
            for ledger in ledgers:
                saw(ledger, "gene filter", d["patients"][d["has_y"] if "genes" in o.code else a])
            if not y.shape[1]:
                raise InputError(
                    f"no gene is expressed in half of the {len(a)} slides of hospital A"
                )
            of_a = networks(
                0,
                MSI_HIDDEN,
                ("sigmoid", "sigmoid", "linear"),
                trains_a,
                MSI_EPOCHS,
                MSI_GENE_BATCH,
                lambda layers: (layers[1], layers[2][a]),
                target=lambda f: he2rna.standardise(y, trains_a[f]),
                outputs=y.shape[1],
            )
        whole_b = "autoencoder" in o.code  # one of all of B, its test patients too
        coders = {"autoencoder-a": trains_a, "autoencoder-b": [b] if whole_b else trains_b}
        for arm in [arm for arm in coders if arm in arms]:
            learned(arm.replace("-a", " A").replace("-b", " B"), coders[arm])
        coder_a, coder_b = (
            autoencoders(trains) if arm in arms else () for arm, trains in coders.items()
        )
        scores = {}
        learned("classifiers", trains_b)
        if {"direct", "ensemble"} & set(arms):
            scores["direct"] = classifiers(
                lambda m: x, MSI_CLASSIFIER, o.folds if "ensemble" in arms else 1
            )
        if y is not None:
            r, code = np.full((o.folds, y.shape[1]), np.nan), 0
            for f, (own, predicted) in of_a:
                code, test = code + own / o.folds, fold_a == f
                if test.sum() >= stats.MIN_R:
                    r[f] = stats.pearson(predicted[test], y[a[test]])
            note = dict(
                genes=y.shape[1], r_in_a=float(np.nanmean(r)) if not np.isnan(r).all() else None
            )
            scores["transcriptome"] = classifiers(lambda m: code, MSI_CLASSIFIER[1:])
        if coder_a:
            code_a = sum(own for _, own in coder_a) / o.folds
            scores["autoencoder-a"] = classifiers(lambda m: code_a, MSI_CLASSIFIER[1:])
        if coder_b:
            code_b = dict(coder_b)
            scores["autoencoder-b"] = classifiers(
                lambda m: code_b[0 if whole_b else m], MSI_CLASSIFIER[1:]
            )
        scores = {
            arm: np.stack([s for _, s in sorted(of, key=lambda pair: pair[0])])
            for arm, of in scores.items()
        }
    finally:
        pool.shutdown(cancel_futures=True)
    n, aucs, (note["saw"], note["leaks"]) = (
        len(trains_b),
        {},
        what_saw_whom(ledgers, tested, MAY_SEE),
    )
    if "ensemble" in arms:
        scores["ensemble"] = scores["direct"].reshape(o.folds, n, -1).mean(0)
    for arm in arms:
        each = np.stack([np.bincount(who, s, len(names)) for s in scores[arm][:n]]) / np.bincount(
            who
        )  # (n, P)
        test = [fold[m // o.folds] == m % o.folds for m in range(n)]
        aucs[arm] = np.reshape(
            [stats.roc_auc(high[t], e[t]) for e, t in zip(each, test)], (o.repeats, o.folds)
        )
    return aucs, note
