"""lab.histcode.processes"""

import torch
import torch.distributed as dist
from torch import nn


# Several processes (torchrun): each embeds its part of the batch; embeddings are gathered and each computes the loss of
# the whole batch from them; BatchNorm sees the whole batch; gradients are summed. So two processes equal one. [ours]
class AllSum(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum over processes too."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return AllSum.forward(ctx, gradient)


class AllRows(torch.autograd.Function):
    """Rows of all processes in their order. Each computes the same loss from them: its own rows' gradient is complete."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def all_rows(x):
    return AllRows.apply(x) if dist.is_initialized() else x


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batch of all processes. torch's SyncBatchNorm does the same but on GPUs alone. [ours]"""

    def forward(self, x):  # (B, C, h, w)
        if not self.training:
            return super().forward(x)
        dtype, x, column = x.dtype, x.float(), lambda v: v[None, :, None, None]
        n = x.numel() // x.shape[1] * dist.get_world_size()
        mean = AllSum.apply(x.sum((0, 2, 3))) / n  # (C,)
        x = x - column(mean)
        variance = AllSum.apply(x.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        return (x * column(self.weight * torch.rsqrt(variance + self.eps)) + column(self.bias)).to(
            dtype
        )


def share_batchnorm(net):
    """Put GlobalBatchNorm, with the same state, in place of every BatchNorm2d."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                shared = GlobalBatchNorm(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)
    return net


def sum_gradients(net):
    """One all_reduce for the gradients of all parameters: simpler than DistributedDataParallel, which would overlap it."""
    if dist.is_initialized():
        gradients = [p.grad for p in net.parameters()]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            g.copy_(part.view_as(g))
