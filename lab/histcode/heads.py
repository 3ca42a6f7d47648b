"""lab.histcode.heads"""

import copy

import numpy as np
import torch

import histcode
from lab.audit.ledger import saw
from lab.files import InputError, save_file
from lab.progress import ordered_map, progress
from lab.runs import load_checkpoint


def sums_of(h):
    """Of a bag (T, D): its tiles, sums and sums of squares of each feature (D,), float64."""
    return len(h), h.sum(0, dtype=np.float64), np.square(h, dtype=np.float64).sum(0)


def mean_and_sd(sums, rows):
    """Mean and SD (D,) over all tiles of some bags, of which `sums_of` each is known."""
    tiles, total, squares = (sum(sums[i][part] for i in rows) for part in range(3))
    return total / tiles, np.sqrt(np.maximum(squares / tiles - (total / tiles) ** 2, 0))


def read_bags(bag, orders, batch):
    """orders (M, n) of bags -> rows (M, b), x (M, b, T, D), mask (M, b, T), T of the longest; a thread reads ahead."""

    def read(rows):
        h = [np.asarray(bag(i)) for i in rows.flat]
        x = np.zeros((len(h), max(map(len, h)), h[0].shape[1]), h[0].dtype)
        mask = np.zeros(x.shape[:2], bool)
        for i, one in enumerate(h):
            x[i, : len(one)], mask[i, : len(one)] = one, True
        return [torch.from_numpy(v).unflatten(0, rows.shape) for v in (x, mask)]

    for rows, got in ordered_map(
        read, [orders[:, i : i + batch] for i in range(0, orders.shape[1], batch)], 1
    ):
        if isinstance(got, Exception):
            raise got
        yield rows, *got


def train_heads(
    models, bag, target, loss, parts, seeds, o, device, what="", state_file=None, names=None
):
    """Train M networks of one kind; each learns from its own bags, and its own validation bags choose its epoch.

    bag(i) -> (T_i, D), names[i] its name; target(rows (m, b)) -> what `loss` takes beside the outputs; parts: (train,
    valid, test) rows of each network, as many train for all; one for many networks: all see the same bags. After each
    epoch: the loss on the validation bags, and the test bags' outputs, which choose nothing. Kept is the epoch with the
    lowest loss; of few bags the loss tells how sure a network is rather than how right:
    of classifiers the last epoch with the fewest mistakes is kept. [ours]
    Returns dict: model (state with a leading M, each of its epoch), epochs (M,), losses (epochs, M), tests [(epochs,
    n_test, C) of each network], saw [leak ledger of each of parts, in rows].
    """
    M, shared, ledgers = len(models), len(parts) < len(models), [{} for _ in parts]
    for ledger, (train, valid, _) in zip(ledgers, parts):  # all that the steps below take
        saw(ledger, "weights of the network", train)
        saw(ledger, "choice of the epoch", valid)
    params = {
        k: torch.stack([m.get_parameter(k).detach() for m in models]).to(device).requires_grad_()
        for k, _ in models[0].named_parameters()
    }
    buffers = {
        k: torch.stack([m.get_buffer(k) for m in models]).to(device)
        for k, _ in models[0].named_buffers()
    }
    own = {k: v[0] for k, v in buffers.items()} if shared else buffers
    frame, one = copy.deepcopy(models[0]).to("meta"), 1 if shared else M
    call = torch.vmap(
        lambda p, b, x, mask: torch.func.functional_call(frame, (p, b), (x, mask))[0],
        in_dims=(0, None, None, None) if shared else 0,
    )
    net = lambda x, mask: call(
        params, own, *(v[0] if shared else v for v in (x.to(device), mask.to(device)))
    )
    optimizer = torch.optim.Adam(params.values(), o.lr, weight_decay=o.weight_decay, fused=True)
    judged = [np.concatenate([valid, test]).astype(int) for _, valid, test in parts]
    judged = np.stack(
        [np.pad(rows, (0, max(map(len, judged)) - len(rows)), mode="edge") for rows in judged]
    )
    valid_n, tested = (
        torch.tensor([len(valid) for _, valid, _ in parts]).expand(M),
        any(len(test) for *_, test in parts),
    )
    best = {k: v.detach().clone() for k, v in params.items()}
    epochs, lowest, losses, tests, first = (
        torch.zeros(M, dtype=torch.int64),
        torch.full((M,), torch.inf),
        [],
        [],
        0,
    )
    if state_file and state_file.is_file():
        state = load_checkpoint(
            state_file,
            device,
            keys=["optimizer", "params", "best", "epochs", "lowest", "losses", "tests"],
        )
        optimizer.load_state_dict(state["optimizer"])
        for k, v in state["params"].items():
            params[k].data.copy_(v)
        best, epochs, lowest = state["best"], state["epochs"].cpu(), state["lowest"].cpu()
        losses, tests, first = [list(state[k].cpu()) for k in ("losses", "tests")] + [
            len(state["losses"])
        ]
    tick = progress(what, (o.epochs - first) * one * (len(parts[0][0]) + judged.shape[1]), "bags")
    for epoch in range(first + 1, o.epochs + 1):
        orders = np.stack(
            [np.random.default_rng([s, epoch]).permutation(t) for s, (t, _, _) in zip(seeds, parts)]
        )
        each = []
        for rows, x, mask in read_bags(bag, orders, o.batch):
            optimizer.zero_grad()
            each.append(loss(net(x, mask), target(rows).to(device)))  # (M, b)
            each[-1].mean(1).sum().backward()  # a sum: each has its own gradient
            each[-1] = each[-1].detach()
            optimizer.step()
            tick(rows.size)
        outputs, errors, wrong = [], [], []
        with torch.no_grad():
            for rows, x, mask in read_bags(bag, judged, o.batch):
                outputs.append(net(x, mask)[:, :, -1:])  # (M, b, 1, C) of the stream that answers
                errors.append(loss(outputs[-1], y := target(rows).to(device)).cpu())
                wrong.append(
                    (outputs[-1][:, :, 0].argmax(2) != y).cpu()
                    if loss is histcode.cross_entropy
                    else errors[-1]
                )
                tick(rows.size)
        outputs = torch.cat(outputs, 1)[:, :, 0].cpu()  # (M, n, C)
        errors, wrong = torch.cat(errors, 1), torch.cat(wrong, 1)  # (M, n)
        chooses = torch.arange(errors.shape[1]) < valid_n[:, None]  # (M, n)
        now = torch.where(chooses, errors, 0).sum(1) / valid_n  # (M,)
        if not (now.isfinite().all() and outputs.isfinite().all()):
            bad = ~torch.cat([*(e.cpu() for e in each), errors], 1).isfinite().numpy()  # (M, steps)
            began = np.broadcast_to(np.concatenate([orders, judged], 1), bad.shape).T[bad.T][
                0
            ]  # at this bag
            raise InputError(
                f"{what} epoch {epoch}: the loss is not finite any more, from "
                f"{began if names is None else names[began]} on"
                + f"; {state_file} keeps epoch {epoch - 1}" * (epoch > 1)
                + "; a lower --lr may help"
            )
        rank = (wrong * chooses).sum(1) if loss is histcode.cross_entropy else now
        better, lowest = rank <= lowest, torch.minimum(rank, lowest)
        for k, v in params.items():
            best[k][better.to(device)] = v.detach()[better.to(device)]
        epochs[better] = epoch
        losses.append(now)
        tests.append(outputs if tested else outputs[:, :0])
        if state_file:
            state = dict(
                params={k: v.detach() for k, v in params.items()},
                best=best,
                optimizer=optimizer.state_dict(),
                lowest=lowest,
                epochs=epochs,
                losses=torch.stack(losses),
                tests=torch.stack(tests),
            )
            save_file(state_file, lambda f: torch.save(state, f))
    tests = torch.stack(tests, 1)  # (M, epochs, n, C)
    return dict(
        model={k: v.cpu() for k, v in {**best, **buffers}.items()},
        saw=ledgers,
        epochs=epochs,
        losses=torch.stack(losses),
        tests=[
            tests[m, :, len(v) : len(v) + len(t)]
            for m, (_, v, t) in enumerate(parts * (M if shared else 1))
        ],
    )


def apply_heads(saved, device, block=16):
    """The trained networks of a checkpoint: a function (T, D) -> outputs (M, C) and a (M, T), on the CPU."""
    D = saved["n_features"]
    frame = histcode.SlideModel(
        saved["pooling"], np.zeros(D), np.ones(D), saved["outputs"], saved["embed"], saved["hidden"]
    )
    frame = frame.to("meta")
    own = {
        k: v.to(device) for k, v in saved["model"].items() if k not in dict(frame.named_buffers())
    }
    shared = {
        k: saved["model"][k][0].to(device) for k, _ in frame.named_buffers()
    }  # mean, scale: the same

    @torch.no_grad()
    def apply(h):
        x, done = torch.from_numpy(np.array(h))[None].to(device), []
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
        call = torch.vmap(lambda s: torch.func.functional_call(frame, (s, shared), (x, mask)))
        for i in range(0, len(next(iter(own.values()))), block):
            out, a = call({k: v[i : i + block] for k, v in own.items()})
            done.append((out[:, 0, -1].cpu(), a[:, 0].cpu()))
        return tuple(torch.cat(part) for part in zip(*done))

    return apply
