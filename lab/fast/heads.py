"""Many slide networks trained as one: the exact twin of histcode.train_slide_epochs.

M networks of one kind (folds, repeats, genes) get a leading model dimension by torch.vmap. Each
learns from its own slides in its own order; or all from the same ones, which are read once. [ours]
"""

import copy

import numpy as np
import torch

from lab.fast.products import layers_of


class Together:
    """M networks of one kind as one: together(h (m, b, T, D), mask) -> outputs (M, b, streams, C).

    m is M, or 1 where all share the same slides.
    """

    def __init__(self, models, shared, device):
        self.shared = shared
        self.device = device
        self.frame = layers_of(copy.deepcopy(models[0]).to("meta"))
        self.weights, self.buffers = {}, {}
        for name, _ in self.frame.named_parameters():
            each = [model.get_parameter(name).detach() for model in models]
            self.weights[name] = torch.stack(each).to(device).requires_grad_()
        for name, _ in self.frame.named_buffers():
            each = [model.get_buffer(name) for model in models]
            self.buffers[name] = torch.stack(each).to(device)

    def one(self, weights, buffers, h, mask):
        return torch.func.functional_call(self.frame, (weights, buffers), (h, mask))[0]

    def __call__(self, h, mask):
        h, mask = h.to(self.device), mask.to(self.device)
        if not self.shared:
            return torch.vmap(self.one)(self.weights, self.buffers, h, mask)
        buffers = {name: value[0] for name, value in self.buffers.items()}
        many = torch.vmap(self.one, in_dims=(0, None, None, None))
        return many(self.weights, buffers, h[0], mask[0])


def slides_to_judge(parts):
    """(m, n) validation slides, then test slides, of each network, and which of them validate.

    Where a network has fewer, its last one is repeated.
    """
    each = [np.concatenate([valid, test]).astype(int) for _, valid, test in parts]
    longest = max(map(len, each))
    slides = np.stack([np.pad(rows, (0, longest - len(rows)), mode="edge") for rows in each])
    n_valid = np.array([[len(valid)] for _, valid, _ in parts])
    return slides, torch.from_numpy(np.arange(longest) < n_valid)


def check_finite(steps):
    """FloatingPointError with the first slide whose loss is not finite; steps: (slides, losses)."""
    for slides, errors in steps:
        bad = ~errors.isfinite().cpu().numpy()  # (M, b)
        if bad.any():
            raise FloatingPointError(np.broadcast_to(slides, bad.shape)[bad][0])


def train_together(
    networks, batches, target, parts, seeds, loss, judge, epochs, learned=None, state=None, **adam
):
    """Train all networks: a generator of their state after every epoch, all of it on the CPU.

    batches(slides (m, n)) yields slides (m, b), h (m, b, T, D), mask (m, b, T); target(slides) is
    their y; parts: (train, valid, test) slides of each network, as many train for each; or one for
    all; learned: the loss that training follows, where it is another; adam: lr, weight_decay.
    Yields a dict: epoch, losses [(M,) of the validation slides after each epoch], tests [(M, n, C)
    of all judged slides, which choose nothing], epochs (M,) kept, fewest, best, weights, optimizer.
    Handed back as `state`, training goes on from there.
    """
    values = networks.weights.values()
    optimizer = torch.optim.Adam(values, fused=True, **adam)
    count = len(next(iter(values)))
    judged, validates = slides_to_judge(parts)
    tested = any(len(test) for _, _, test in parts)
    if state is None:
        state = {"epoch": 0, "losses": [], "tests": [], "epochs": torch.zeros(count, dtype=int)}
        state["fewest"] = torch.full((count,), torch.inf)
        state["best"] = {name: w.detach().cpu().clone() for name, w in networks.weights.items()}
    else:
        optimizer.load_state_dict(state["optimizer"])
        for name, w in networks.weights.items():
            w.data.copy_(state["weights"][name])
    while state["epoch"] < epochs:
        epoch = state["epoch"] + 1
        orders = []
        for seed, (train, _, _) in zip(seeds, parts, strict=True):
            orders.append(np.random.default_rng([seed, epoch]).permutation(train))
        steps = []
        for slides, h, mask in batches(np.stack(orders)):
            optimizer.zero_grad()
            y = target(slides).to(networks.device)
            errors = (learned or loss)(networks(h, mask), y)  # (M, b)
            errors.mean(1).sum().backward()  # of a sum each network has its own gradient
            optimizer.step()
            steps.append((slides, errors.detach()))
        with torch.no_grad():
            answers = [networks(h, mask)[:, :, -1:].cpu() for _, h, mask in batches(judged)]
        answers = torch.cat(answers, 1)  # (M, n, 1, C) of the stream that answers
        y = target(judged)
        errors = loss(answers, y)
        check_finite([*steps, (judged, errors)])
        errors = (errors * validates).sum(1) / validates.sum(1)  # (M,)
        wrong = (judge(answers, y) * validates).sum(1) / validates.sum(1)
        better = wrong <= state["fewest"]
        for name, w in networks.weights.items():
            state["best"][name][better] = w.detach().cpu()[better]
        state["fewest"] = torch.minimum(wrong, state["fewest"])
        state["epochs"][better] = epoch
        state["losses"].append(errors)
        state["tests"].append(answers[:, :, 0] if tested else answers[:, :0, 0])
        weights = {name: w.detach() for name, w in networks.weights.items()}
        state.update(epoch=epoch, weights=weights, optimizer=optimizer.state_dict())
        yield state
