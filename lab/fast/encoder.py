"""lab.fast.encoder"""

import numpy as np
import torch
from torch import nn

import tiling
from lab.encoders import BATCH, Script
from lab.files import InputError


def fold_batchnorm(net):
    """Put each BatchNorm's fixed scale and shift into the convolution before it; same function, fewer passes. In place.

    BN(Wx) = g (Wx - mean) / sqrt(var + eps) + b = (g / sqrt(var + eps)) W x + (b - g mean / sqrt(var + eps))
    """

    def fold(conv, bn):
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
        conv.bias = nn.Parameter(bn.bias - bn.running_mean * scale)

    with torch.no_grad():
        for m in net.modules():
            for i in (1, 2, 3):
                if isinstance(getattr(m, f"bn{i}", None), nn.BatchNorm2d):
                    fold(getattr(m, f"conv{i}"), getattr(m, f"bn{i}"))
                    setattr(m, f"bn{i}", nn.Identity())
            if getattr(m, "downsample", None) is not None:
                fold(m.downsample[0], m.downsample[1])
                m.downsample[1] = nn.Identity()
    return net


def prepare_encoder(net, device, precision):
    """The network as it runs fastest: BatchNorm folded, channels last, in bfloat16 where asked. In place.

    The first convolution stays float32: it costs little, and rounded pixels were a third of bfloat16's error.
    """
    if isinstance(net, Script):  # another's: its weights stay as they are
        net.precision = precision
        return net.to(device)
    net = (
        fold_batchnorm(net.eval())
        .requires_grad_(False)
        .to(device, memory_format=torch.channels_last)
    )
    for part in list(net.children())[1:]:  # all after conv1
        part.to(getattr(torch, precision))
    return net


def rebatch(chunks, size):
    """Arrays laid end to end and cut into pieces of `size` rows, the last one smaller."""
    kept = []
    for chunk in chunks:
        kept.append(chunk)
        if sum(map(len, kept)) >= size:
            rows = np.concatenate(kept)
            whole = len(rows) // size * size
            yield from (rows[i : i + size] for i in range(0, whole, size))
            kept = [rows[whole:]]
    if sum(map(len, kept)):
        yield np.concatenate(kept)


@torch.inference_mode()
def encode(net, chunks, mean=tiling.IMAGENET_MEAN, std=tiling.IMAGENET_STD):
    """Features of a slide's tiles by a prepared encoder: iterable of (m, px, px, 3) uint8 -> (n, D) float16 numpy.

    mean, std: of RGB in 0..1, as the encoder learned. InputError where a feature is no number. The result
    depends on the tiles alone, not on how they were cut into chunks.
    """
    weight, out = next(net.parameters()), [np.zeros((0, net.n_features), np.float16)]
    for tiles in rebatch(chunks, BATCH[weight.device.type]):
        y = net(
            tiling.normalise(torch.from_numpy(tiles).to(weight.device), mean, std)
        ).float()  # (b, D)
        if not y.isfinite().all():
            raise InputError("the encoder gives NaN or infinite features")
        out.append(y.clamp(-65504, 65504).half().cpu().numpy())
    return np.concatenate(out)
