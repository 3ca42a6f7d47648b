"""Several processes that share each batch of a pretraining, so that they learn as one.

Each embeds its part of the batch. The embeddings are gathered, and every process computes the loss
of the whole batch from them; BatchNorm sees the whole batch; the gradients are summed. [ours]
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lab.fast.bank import bank_gradient


class Whole(nn.Module):
    """A network that takes this process's part of a batch and gives the whole batch's rows.

    All processes then compute the same loss. Its gradient for the own rows is complete in each, and
    what other processes' rows add to the parameters is theirs to give.
    """

    def __init__(self, network):
        super().__init__()
        if any(p.requires_grad for p in network.parameters()):
            network = DistributedDataParallel(network, forward_sync_buffers=False)
        self.network = network

    def forward(self, x):
        own = self.network(x)
        if own.requires_grad:
            own.register_hook(times_processes)
        rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, own.detach().contiguous())
        rows[dist.get_rank()] = own
        return torch.cat(rows)


def times_processes(gradient):
    """DistributedDataParallel takes the mean of the gradients; wanted is their sum."""
    return gradient * dist.get_world_size()


def shared_bank_gradient(q, k, bank, tau, in_batch=False):
    """The bank's gradient, the mean of the processes': equal but for rounding, and kept equal."""
    gradient = bank_gradient(q, k, bank, tau, in_batch)
    dist.all_reduce(gradient)
    return gradient.div_(dist.get_world_size())


def share_batchnorm(net, device):
    """Let every BatchNorm see the batch of all processes; its state stays."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm  # the same in all but how it computes
    return net


class AllSum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum over processes too.

    torch.distributed.nn.functional.all_reduce does the same, but is deprecated since torch 2.13,
    and what it points to is private.
    """

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return AllSum.apply(gradient)


class SharedBatchNorm(nn.BatchNorm2d):
    """What SyncBatchNorm does, on CPUs, which torch's refuses. [ours]"""

    def forward(self, x):  # (B, C, h, w)
        if not self.training:
            return super().forward(x)
        values = x.float()
        n = values.numel() // values.shape[1] * dist.get_world_size()
        mean = AllSum.apply(values.sum((0, 2, 3))) / n  # (C,)
        values = values - mean[:, None, None]
        variance = AllSum.apply(values.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (values * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
