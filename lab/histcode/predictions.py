"""What the models of a run say of a slide, and what each of its tiles adds to that.

saved: checkpoint of a fold; h (T, D) tiles; a (M, T) their attention in its M networks.
"""

import numpy as np
import torch

import histcode
from lab.files import InputError
from lab.histcode.heads import empty_model

LAYERS = ("weights", "bias", "label_weights", "label_bias")  # of the linear model
SUMS = ("HistCode", "ABMIL", "mean")  # poolings whose output is a sum over the tiles


def by_layers(saved, x):
    """Predicted y and log odds of label 1 by the linear model, of end features x (..., 2D)."""
    weights, bias, label_weights, label_bias = (saved[name].double().numpy() for name in LAYERS)
    return x @ weights + bias, x @ label_weights + label_bias


def mean_prediction(saved, appliers, use, h):
    """What the models `use` say in the mean: of a diagnosis, the probabilities (2,) of its classes.

    Of fold changes y (G,), and the probability of label 1 (G,): of models that learned no labels,
    whether y stands for label 1.
    """
    each = []
    for m in use:
        outputs, a = appliers[m](h)
        if saved[m]["kind"] == "diagnosis":
            each.append(outputs[0].double().softmax(0).numpy())
        elif saved[m]["kind"] == "linear":
            y, odds = by_layers(saved[m], histcode.end_features(h, a[0].double().numpy()))
            each.append((y, 1 / (1 + np.exp(-odds))))
        else:
            each.append(outputs.flatten().double().numpy())
    mean = np.mean(each, 0)
    if saved[0]["kind"] == "attention":
        return mean, histcode.label_of(mean).astype(float)
    return mean


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
    return a[m] * (x.double() @ w.double()).numpy()
