"""lab.he2rna.training"""

import json
import time

import numpy as np
import torch

import he2rna
import stats
from lab.audit.ledger import saw
from lab.files import InputError, few, save_file
from lab.processes import log_path, say
from lab.progress import clock, progress, seldom
from lab.runs import load_checkpoint, mark_of

BATCH_SLIDES = 16  # slides per iteration, super-tiles        [HE2RNA code]


# Training  [HE2RNA Methods, Training and evaluation]
@torch.inference_mode()
def predict_slides(model, bags, rows, batch=BATCH_SLIDES, tick=lambda n: None):
    """Predictions (len(rows), G) float32 numpy of the slides `rows`, in evaluation mode; bags: in_memory or from_disk."""
    model.eval()
    device, parts = next(model.parameters()).device, []
    for part, x, mask in bags(torch.as_tensor(rows).split(batch)):
        parts.append(model(x.to(device).float(), mask.to(device)).cpu().numpy())
        tick(len(part))
    return np.concatenate(parts)


def train_fold(model, bags, y, projects, names, train, valid, o, fold, folder):
    """Train one fold and leave `model` with the weights of its best epoch. Returns a dict on how it went.

    bags: in_memory or from_disk; y (S, G) float32 targets; names (S,); train, valid: rows. The state is saved after each
    epoch, and every draw of an epoch comes from (seed, fold, epoch): a run that was interrupted ends as one that was not.
    """
    device, state_file = next(model.parameters()).device, folder / f"fold{fold}.state.pt"
    mark, part_of_log = mark_of(state_file), log_path(folder, o.share)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=o.lr, fused=True
    )  # one pass over memory, not seven
    state = dict(epoch=0, best_score=-np.inf, best_epoch=0, best=None, seconds=0.0, saw={})
    if state_file.is_file():
        state = load_checkpoint(state_file, device, model, [*state, "model", "optimizer"])
        optimizer.load_state_dict(state["optimizer"])
    by_r = (
        max(np.unique(projects[valid], return_counts=True)[1], default=0) >= stats.MIN_R
    )  # else too few slides for an R
    start, first, before, due = time.time(), state["epoch"], state["seconds"], seldom()
    later = len(range(fold, o.folds, o.share[1])) - 1  # folds after this one, of this process
    for epoch in range(first + 1, o.epochs + 1):
        if epoch - 1 - state["best_epoch"] >= o.patience and state["best"] is not None:
            break
        draw = int(np.random.default_rng([o.seed, fold, epoch]).integers(2**62))
        torch.manual_seed(draw)  # dropout, k
        order, loss_sum, began = (
            torch.from_numpy(np.random.default_rng(draw).permutation(train)),
            0.0,
            time.time(),
        )
        tick = progress(f"fold{fold} epoch {epoch}", len(train) + len(valid), "slides", end=False)
        saw(state["saw"], "weights of the network", order)
        model.train()
        for rows, x, mask in bags(order.split(o.batch)):
            prediction = model(x.to(device).float(), mask.to(device))  # (B, G)
            loss = (prediction - torch.from_numpy(y[rows]).to(device)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(rows)
            tick(len(rows))
            if not np.isfinite(loss_sum):
                break
        if not np.isfinite(loss_sum) or not all(v.isfinite().all() for v in model.parameters()):
            raise InputError(
                f"fold {fold} epoch {epoch}: loss or weights are not finite any more, at the slides "
                f"{few(names[rows.numpy()].tolist())}; {state_file} keeps epoch {epoch - 1}; a lower --lr "
                "may help"
            )
        rate = len(train) / (time.time() - began)
        r, valid_loss, score = None, None, epoch  # nobody to choose by: the last epoch is the best
        if len(valid):
            saw(state["saw"], "choice of the epoch", valid)
            p = predict_slides(model, bags, valid, o.batch, tick)
            r, valid_loss = (
                he2rna.mean_r(p, y[valid], projects[valid]),
                float(np.square(p - y[valid]).mean()),
            )
            score = -valid_loss if not by_r else -1.0 if r is None else r
        if score > state["best_score"]:
            state.update(
                best_score=score,
                best_epoch=epoch,
                best={k: v.clone() for k, v in model.state_dict().items()},
            )
        state.update(
            run=mark,
            epoch=epoch,
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            seconds=before + time.time() - start,
        )
        entry = dict(
            fold=fold,
            epoch=epoch,
            loss=loss_sum / len(train),
            valid_loss=valid_loss,
            valid_r=r,
            best_epoch=state["best_epoch"],
            slides_per_s=round(rate, 1),
        )
        with open(part_of_log, "a") as f:
            f.write(json.dumps(entry) + "\n")
        save_file(state_file, lambda f: torch.save(state, f))
        if not due(epoch == o.epochs or epoch - state["best_epoch"] >= o.patience):
            continue
        left = (time.time() - start) / (epoch - first) * (o.epochs - epoch + o.epochs * later)
        show = lambda v, f: "  -  " if v is None else f"{v:{f}}"
        say(
            f"fold{fold} epoch {epoch:3d}/{o.epochs}  loss {entry['loss']:.4f}  "
            f"valid loss {show(valid_loss, '.4f')}  valid R {show(r, '.3f')}  best epoch {state['best_epoch']:3d}  {rate:6.1f} slides/s  "
            f"at most {clock(left)} left"
        )
    model.load_state_dict(state["best"])
    by = (
        "R"
        if by_r
        else f"loss ({len(valid)} validation slides are too few for R)"
        if len(valid)
        else "none: the last"
    )
    return dict(
        best_epoch=state["best_epoch"],
        epochs=state["epoch"],
        seconds=state["seconds"],
        by=by,
        saw=state["saw"],
    )
