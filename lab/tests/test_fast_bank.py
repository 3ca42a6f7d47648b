"""lab/fast/bank.py: the bank's gradient in blocks equals the plain one of histcode.py."""

import pytest
import torch
import torch.nn.functional as F

import histcode
from lab.fast.bank import bank_gradient


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("block", [64, 333, 1000])  # several blocks and a short one, one, one
def test_the_gradient_in_blocks_equals_the_plain_one(block, in_batch):
    generator = torch.Generator().manual_seed(0)
    q, k = F.normalize(torch.randn(2, 12, 16, generator=generator, dtype=torch.float64), dim=2)
    bank = torch.randn(333, 16, generator=generator, dtype=torch.float64)
    bank *= torch.logspace(-2, 2, 333, dtype=torch.float64)[:, None]
    for tau in (0.02, 0.12, 1.0):
        wanted = histcode.bank_gradient(q, k, bank, tau, in_batch)
        got = bank_gradient(q, k, bank, tau, in_batch, block)
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-16)
