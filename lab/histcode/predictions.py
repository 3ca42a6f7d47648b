"""What the models of a run say of a slide, and what each of its tiles adds to that.

saved: checkpoint of a fold; h (T, D) tiles; a (M, T) their attention in its M networks.
"""

import numpy as np
import torch

import histcode
from lab.files import InputError
from lab.histcode.heads import empty_model

LAYERS = ("weights", "bias", "label_weights", "label_bias")  # of the linear model
SUMS = ("HistCode", "ABMIL", "mean", "max")  # poolings whose output is a sum over the tiles


def by_layers(saved, x):
    """Predicted y and log odds of label 1 by the linear model, of end features x (..., 2D)."""
    weights, bias, label_weights, label_bias = (saved[name].double().numpy() for name in LAYERS)
    return x @ weights + bias, x @ label_weights + label_bias


def predicted(saved, apply, h):
    """Predicted y (G,), and log odds of label 1 (G,), or None of a model that learned no labels."""
    outputs, a = apply(h)
    if "weights" in saved:
        return by_layers(saved, histcode.end_features(h, a[0].double().numpy()))
    return outputs.flatten().double().numpy(), None


def mean_prediction(saved, appliers, use, h):
    """Of the models `use`, the mean: of a diagnosis the probabilities (2,) of its classes.

    Of fold changes y (G,) and the probability of label 1 (G,); where no labels were learned, the
    label of y.
    """
    if saved[0]["kind"] == "diagnosis":
        return np.mean([appliers[m](h)[0][0].double().softmax(0).numpy() for m in use], 0)
    each = [predicted(saved[m], appliers[m], h) for m in use]
    y = np.mean([y for y, _ in each], 0)
    if each[0][1] is None:
        return y, histcode.label_of(y).astype(float)
    return y, np.mean([1 / (1 + np.exp(-odds)) for _, odds in each], 0)


def contributions(saved, h, a, j):
    """What each tile adds to output j, (T,): with the bias they sum to it. [ours; HistCode Fig. 11]

    Of a diagnosis, to the log odds of class 1. nan: in neither end of the linear model.
    """
    if saved["kind"] == "linear":
        return histcode.end_contributions(h, a[0], saved["weights"][:, j].double().numpy())
    if saved["pooling"] not in SUMS:
        raise InputError(f"--score contribution: {saved['pooling']} is no sum over tiles")
    m, j = (j, 0) if len(a) > 1 else (0, j)  # a network for each gene, or one for all
    model = empty_model(saved)
    model.load_state_dict({name: value[m] for name, value in saved["model"].items()})
    with torch.no_grad():
        x = model.layers((torch.from_numpy(np.array(h)).float() - model.mean) * model.scale)
    w = model.head.classify.weight.detach()
    w = w[1] - w[0] if saved["kind"] == "diagnosis" else w[j]
    if saved["pooling"] == "max":  # each feature comes from one tile
        which = x.argmax(0)  # (D,)
        value = (x * w).double().gather(0, which[None])[0]
        return np.bincount(which.numpy(), value.numpy(), len(h))
    return a[m] * (x.double() @ w.double()).numpy()
