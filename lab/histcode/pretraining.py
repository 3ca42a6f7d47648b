"""lab.histcode.pretraining"""

import copy
import json
import time

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

import histcode
import tiling
from lab.encoders import ENCODER_VERSION
from lab.files import InputError, few, save_file
from lab.histcode.epochs import read_batches
from lab.histcode.processes import all_rows, sum_gradients
from lab.progress import clock, progress, seldom
from lab.runs import load_checkpoint

WEIGHT_DECAY = (
    1e-4  # of the encoder and of the bank           [HistCode Methods; bank: HistCode code]
)


MOMENTUM = 0.9  # of the encoder and of the bank           [HistCode Methods; bank: HistCode code]


COLLAPSED = 0.05  # spread of the embeddings (1: all over the sphere, 0: all equal) below which it is said [ours]


SOURCE = (
    "HistCode (Huang et al. 2022, arXiv:2204.11994), contrastive pretraining of the tile encoder"
)


# Training  [HistCode eqs. 2-4; Methods: SGD, .03, weight decay .0001, momentum .9]
def first_bank(model, data, counts, o, device, rank, world):
    """Bank at the start (K, d): embeddings of a percentage of each slide's tiles by the untrained model, one view each, or
    random unit vectors. [HistCode Methods]"""
    if o.bank_percent == 0:
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng([o.seed, 0, 0, 2]).integers(2**62))
        )
        return F.normalize(
            torch.randn(o.bank_size, histcode.EMBEDDING, generator=generator), dim=1
        ).to(device)
    share = min(
        o.bank_percent / 100, o.bank_size / counts.sum()
    )  # no more than --bank-size negatives
    chosen = histcode.choose_tiles(counts, np.ceil(share * counts).astype(int), o.seed, 0)
    order = histcode.mix(len(chosen), o.pool, np.random.default_rng([o.seed, 0, 1]))[: o.bank_size]
    batch, rows, model = min(o.batch, len(order) // world * world), [], model.train()
    tick = progress("bank", len(order) // batch * batch, "tiles") if rank == 0 else lambda n: None
    for step, tiles in enumerate(read_batches(data, chosen, order, batch, rank, world, o.workers)):
        x = next(
            histcode.two_views(
                torch.from_numpy(tiles).to(device), o.view_px, batch, rank, world, o.seed, 0, step
            )
        )
        with torch.no_grad():
            rows.append(all_rows(model(x, o.precision)))
        tick(batch)
    return torch.cat(rows)


def train_step(model, keys, optimizer, bank, velocity, views, o):
    """One step down the loss for the encoder (eq. 3) and, on the same embeddings, one up for the bank (eq. 4).

    keys: the momentum encoder, or None: then the keys are the model's own and get their gradient too.
    bank None: SimCLR. Returns (loss, positive similarity, hardest negative similarity, spread).
    """
    x1, x2 = views
    q = all_rows(model(x1, o.precision))  # (B, d)
    if keys is None:
        k = all_rows(model(x2, o.precision))
        pairs = [(q, k), (k, q)][: 1 + o.symmetric]
    else:
        with torch.no_grad():
            for p, new in zip(keys.parameters(), model.parameters()):
                p.lerp_(new, 1 - o.momentum_encoder)
            k = all_rows(keys(x2, o.precision))
        pairs = [(q, k)]
        if o.symmetric:
            q2 = all_rows(model(x2, o.precision))
            with torch.no_grad():
                pairs.append((q2, all_rows(keys(x1, o.precision))))
    if bank is None:
        loss = histcode.nt_xent(q, k, o.tau)
    else:
        loss = sum(histcode.info_nce(*pair, bank, o.tau, o.in_batch) for pair in pairs) / len(pairs)
    optimizer.zero_grad()
    loss.backward()
    sum_gradients(model)
    optimizer.step()
    with torch.no_grad():
        if bank is None:
            hardest = (q @ k.T).fill_diagonal_(-1).amax(1).mean()
        else:
            gradient = sum(
                histcode.bank_gradient(*pair, bank, o.bank_tau, o.in_batch) for pair in pairs
            ) / len(pairs)
            if dist.is_initialized():  # equal but for rounding; kept equal
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
            hardest = (F.normalize(bank, dim=1) @ q.T).amax(0).mean()
            histcode.bank_step(bank, velocity, gradient, o.bank_lr, o.bank_momentum, o.bank_decay)
    return loss.item(), (q * k).sum(1).mean().item(), hardest.item(), histcode.spread(q.detach())


def save_encoder(path, model, o, epoch):
    """The file that `tiling.py features --encoder` takes; all of it plain values and tensors."""
    plain = lambda net: {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
    settings = {**o.settings, "epochs_done": epoch}
    save_file(
        path,
        lambda f: torch.save(
            dict(
                version=ENCODER_VERSION,
                source=SOURCE,
                method=o.method,
                encoder=plain(model.encoder),
                projection=plain(model.projection),
                stages=model.encoder.stages,
                n_features=model.encoder.n_features,
                mean=tiling.IMAGENET_MEAN,
                std=tiling.IMAGENET_STD,
                tile_px=o.tile_px,
                tile_um=o.tile_um,
                colour=o.colour,
                settings=settings,
                patients=o.patients,
            ),
            f,
        ),
    )


def train(model, data, counts, o, folder, device, rank, world):
    """All epochs. The state is saved after each, and every draw comes from (seed, epoch, step): a run that was interrupted
    ends as one that was not (on a GPU to rounding: cuDNN's sums have no fixed order)."""
    state_file, log = folder / "state.pt", folder / "log.jsonl"
    keys = copy.deepcopy(model).requires_grad_(False).train() if o.momentum_encoder else None
    optimizer = torch.optim.SGD(model.parameters(), o.lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
    if state_file.is_file():
        state = load_checkpoint(
            state_file, device, model, ["model", "optimizer", "keys", "bank", "velocity", "epoch"]
        )
        optimizer.load_state_dict(state["optimizer"])
        if keys is not None:
            keys.load_state_dict(state["keys"])
        bank, velocity, first = state["bank"], state["velocity"], state["epoch"]
    else:
        bank = (
            None
            if o.method == "simclr"
            else first_bank(model, data, counts, o, device, rank, world)
        )
        velocity, first = None if bank is None else torch.zeros_like(bank), 0
    if bank is not None:
        print(f"bank of {len(bank):,} negatives")
    if rank == 0:
        lines = (
            log.read_text().splitlines()[:first] if log.is_file() else []
        )  # what was not saved runs again
        save_file(log, lambda f: f.writelines((line + "\n").encode() for line in lines))
        if first:
            save_encoder(folder / f"{o.name}.pt", model, o, first)
    per_slide, start, figures = np.full(len(counts), o.tiles_per_slide), time.time(), []
    due, collapsed = seldom(), False
    for epoch in range(first + 1, o.epochs + 1):
        chosen, data["unchanged"] = histcode.choose_tiles(counts, per_slide, o.seed, epoch), 0
        order = histcode.mix(len(chosen), o.pool, np.random.default_rng([o.seed, epoch, 1]))
        optimizer.param_groups[0]["lr"], began, figures = (
            histcode.learning_rate(o, epoch - 1),
            time.time(),
            [],
        )
        model.train()
        total = len(order) // o.batch * o.batch
        tick = (
            progress(f"epoch {epoch}", total, "tiles", end=False) if rank == 0 else lambda n: None
        )
        for step, tiles in enumerate(
            read_batches(data, chosen, order, o.batch, rank, world, o.workers)
        ):
            views = histcode.two_views(
                torch.from_numpy(tiles).to(device),
                o.view_px,
                o.batch,
                rank,
                world,
                o.seed,
                epoch,
                step,
            )
            figures.append(train_step(model, keys, optimizer, bank, velocity, views, o))
            if not np.isfinite(figures[-1][0]):
                break
            tick(o.batch)
        if not np.isfinite(figures[-1][0]) or not all(
            v.isfinite().all() for v in model.parameters()
        ):
            slides = np.unique(chosen[order[step * o.batch : (step + 1) * o.batch], 0])
            raise InputError(
                f"epoch {epoch} step {step + 1}: loss or weights are not finite any more, at tiles of "
                f"{few([data['slides'][s] for s in slides])}"
                + f"; {state_file} keeps epoch {epoch - 1}" * (epoch > 1)
                + "; a lower --lr may help"
            )
        loss, positive, hardest, apart = np.mean(figures, 0)
        norm = None if bank is None else bank.norm(dim=1).mean().item()
        rate = total / (time.time() - began)
        if rank == 0:
            entry = dict(
                epoch=epoch,
                loss=loss,
                positive=positive,
                hardest=hardest,
                spread=apart,
                bank_norm=norm,
                lr=histcode.learning_rate(o, epoch - 1),
                tiles_per_s=round(rate, 1),
                collapsed=bool(apart < COLLAPSED),
            )
            with open(log, "a") as f:
                f.write(json.dumps(entry) + "\n")
            state = dict(
                epoch=epoch,
                model=model.state_dict(),
                keys=None if keys is None else keys.state_dict(),
                bank=bank,
                optimizer=optimizer.state_dict(),
                velocity=velocity,
            )
            save_encoder(
                folder / f"{o.name}.pt", model, o, epoch
            )  # before the state that says it is done
            save_file(state_file, lambda f: torch.save(state, f))
        shown = due(epoch == o.epochs)
        if shown:
            print(
                f"epoch {epoch:3d}/{o.epochs}  loss {loss:.4f}  positive {positive:.3f}  hardest negative {hardest:.3f}  "
                f"spread {apart:.3f}  "
                + (f"bank norm {norm:.3f}  " if norm is not None else "")
                + (f"colours kept {data['unchanged']:,} tiles  " if any(data["stains"]) else "")
                + f"{rate:6.1f} tiles/s  "
                f"{clock((time.time() - start) / (epoch - first) * (o.epochs - epoch))} left",
                flush=True,
            )
        if apart < COLLAPSED and (shown or not collapsed):
            print(
                f"COLLAPSE: all embeddings are nearly equal (spread {apart:.3f}, 1 is all over the sphere). A lower --lr"
                + (", --momentum-encoder or --in-batch" * (o.method == "adco"))
                + " may help",
                flush=True,
            )
        collapsed = apart < COLLAPSED
    return figures
