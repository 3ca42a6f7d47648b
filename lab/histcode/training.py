"""Classifiers of every fold, trained and saved."""

import json
import math

import numpy as np
import torch

import histcode
from lab.audit.ledger import saw
from lab.files import save_file
from lab.histcode.figures import figures_of
from lab.histcode.heads import mean_and_sd, train_heads
from lab.histcode.runs import VERSION
from lab.processes import by_first, log_path, of_all, say
from lab.runs import load_checkpoint, mark_of

BAGS_AT_ONCE = 2**25  # numbers of a step of networks on a table, 128 MB  [ours]


def seed_of(o, *key):
    return int(np.random.default_rng([o.seed, *key]).integers(2**62))


def draw_model(pooling, sums, rows, seed, o, outputs=2):
    torch.manual_seed(seed)
    return histcode.SlideModel(pooling, *mean_and_sd(sums, rows), outputs, o.embed, o.hidden)


def save_fold(path, done, d, o, pooling, outputs, patients, rows, learned_from, **more):
    """One fold's checkpoint: networks, whom they learned from (or chose their epoch by), and whom they were tested on."""
    saved = dict(
        done,
        version=VERSION,
        run=mark_of(path),
        pooling=pooling,
        outputs=outputs,
        embed=list(o.embed),
        hidden=o.hidden,
        n_features=d["n_features"],
        features=d["features"],
        learned_from=sorted(set(learned_from.tolist())),
        **more,
        **{
            f"{part}_patients": sorted(set(patients[of].tolist()))
            for part, of in zip(("train", "valid", "test"), rows)
        },
    )
    save_file(path, lambda file: torch.save(saved, file))


def train_pooling(pooling, d, jobs, o, folder, device):
    """Train what is not there yet -> {(repeat, fold): its checkpoint}."""
    path_of = lambda r, f: folder / f"{pooling}-r{r}-f{f}.pt"
    todo, (rank, world) = (
        by_first(lambda: [job for job in jobs if not path_of(*job[:2]).is_file()]),
        o.share,
    )
    at_once = (
        1
        if d["what"] == "slides"
        else max(1, BAGS_AT_ONCE // (max(n for n, *_ in d["sums"]) * d["n_features"]))
    )
    alike = [[j for j in todo if len(j[2]) == n] for n in sorted({len(j[2]) for j in todo})]
    blocks = [
        jobs[i : i + at_once] for jobs in alike for i in range(0, len(jobs), at_once)
    ]  # of slides one fills the cores
    target = lambda rows: torch.from_numpy(d["y"][rows])
    for block in blocks[rank::world]:
        seeds = [seed_of(o, r, f) for r, f, *_ in block]
        models = [
            draw_model(pooling, d["sums"], job[2], seed, o) for seed, job in zip(seeds, block)
        ]
        state = path_of(*block[0][:2]).with_suffix(f".{len(block)}.state.pt")
        names = f"fold {block[0][1]}" if len(block) == 1 else f"{len(block)} networks"
        done = train_heads(
            models,
            d["bag"],
            target,
            histcode.cross_entropy,
            [job[2:] for job in block],
            seeds,
            o,
            device,
            f"{pooling} {names}",
            state,
            d["names"],
        )
        for m, (r, f, *rows) in enumerate(block):
            own = dict(
                model={k: v[m : m + 1].clone() for k, v in done["model"].items()},
                epoch=int(done["epochs"][m]),
                losses=done["losses"][:, m].clone(),
                tests=done["tests"][m].clone(),
            )
            ledger = {}
            for step, seen in done["saw"][m].items():
                saw(ledger, step, d["patients"][seen])
            saw(ledger, "standardisation of the features", d["patients"][rows[0]])  # of draw_model
            save_fold(
                path_of(r, f),
                own,
                d,
                o,
                pooling,
                2,
                d["patients"],
                rows,
                d["patients"][np.concatenate(rows[:2])],
                kind="diagnosis",
                classes=list(d["classes"]),
                saw=ledger,
            )
            p = figures_of(d["y"][rows[2]], own)
            entry = dict(
                pooling=pooling,
                repeat=r,
                fold=f,
                epoch=own["epoch"],
                **{k: None if math.isnan(v) else float(v) for k, v in p.items()},
                valid_losses=[round(v, 5) for v in own["losses"].tolist()],
            )
            with open(log_path(folder, o.share), "a") as log:
                log.write(json.dumps(entry) + "\n")
            say(
                f"{pooling:8s} repeat {r} fold {f}: {'/'.join(str(len(v)) for v in rows)} {d['what']}, epoch "
                f"{own['epoch']:3d}, test accuracy {p['accuracy']:.3f}, AUC {p['auc']:.3f}"
            )
        state.unlink(missing_ok=True)
    of_all(None)
    for left in (
        () if rank else folder.glob(f"{pooling}-*.state.pt")
    ):  # of a kill between a fold and its state
        left.unlink()
    return {job[:2]: load_checkpoint(path_of(*job[:2]), "cpu") for job in jobs}
