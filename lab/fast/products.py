"""Matrix products of float32 numbers on a CPU, by oneDNN, which comes with torch. [ours]

torch's own are MKL's, which leaves half of an AMD core's width idle: (5,242 x 1,024) times
(1,024 x 1,600) takes a core of Zen 5 .155 s by MKL, .135 by numpy's OpenBLAS, .075 by oneDNN.
Both sum in float32, in orders of their own. torch reaches oneDNN by no public name but for tensors
copied into its layout, which costs half of the gain; so the operator of its compiler is called.
"""

import torch
from torch import nn

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.mkl.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # private: another torch may lack it
)


def product(a, b, bias=None):
    """a (n, m) @ b (m, p), plus bias (p,). It has no gradient: see `Layer`."""
    if ONEDNN and a.device.type == "cpu" and a.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
    return a @ b if bias is None else torch.addmm(bias, a, b)


class Layer(nn.Linear):
    """A linear layer whose products are `product`'s, forward and backward."""

    @classmethod
    def of(cls, linear):
        """With the very parameters of another layer."""
        layer = cls(1, 1, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.out_features, layer.in_features = linear.weight.shape
        return layer

    def forward(self, x):
        rows = x.reshape(-1, self.in_features)
        out = Affine.apply(rows, self.weight, self.bias)
        return out.view(*x.shape[:-1], self.out_features)


def layers_of(network):
    """A network, its linear layers now `Layer`s."""
    for name, child in network.named_children():
        setattr(network, name, Layer.of(child) if type(child) is nn.Linear else layers_of(child))
    return network


class Affine(torch.autograd.Function):
    """x (n, in), weight (out, in), bias (out,) or None -> (n, out); by torch.vmap of M networks."""

    @staticmethod
    def forward(x, weight, bias):
        return product(x, weight.T, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        dx = product(grad, weight) if ctx.needs_input_grad[0] else None
        return dx, product(grad.T, x), grad.sum(0) if ctx.needs_input_grad[2] else None

    @staticmethod
    def vmap(info, in_dims, x, weight, bias):
        if in_dims[0] is not None:
            x = x.movedim(in_dims[0], 0)
        return AffineOfMany.apply(x, weight, bias), 0


class AffineOfMany(torch.autograd.Function):
    """x (n, in) of all networks or (M, n, in), weight (M, out, in), bias (M, out) -> (M, n, out).

    What lies in memory is (M, out, n): so x of all is the small factor, which oneDNN rearranges.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        if x.dim() == 2:
            out = product(weight.flatten(0, 1), x.T).unflatten(0, weight.shape[:2])
        else:
            out = torch.bmm(weight, x.mT)
        if bias is not None:
            out += bias[:, :, None]
        return out.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        delta = grad.mT  # (M, out, n)
        dx = None
        if x.dim() == 2:
            rows = delta.flatten(0, 1)
            dweight = product(rows, x).view_as(weight)
            if ctx.needs_input_grad[0]:
                dx = product(rows.T, weight.flatten(0, 1))
        else:
            dweight = torch.bmm(delta, x)
            if ctx.needs_input_grad[0]:
                dx = torch.bmm(weight.mT, delta).mT
        return dx, dweight, delta.sum(2) if ctx.needs_input_grad[2] else None
