"""The bank's gradient in blocks of negatives: the twin of histcode.bank_gradient for a large bank.

The plain form holds the similarities of all queries to all negatives several times over. Here they
are computed twice and never held whole: first each query's denominator, then the shares.
`python -m lab.bench bank` says what that is worth.
"""

import torch
from torch.nn import functional as F

BLOCK = 2048  # negatives at a time [ours]


@torch.no_grad()
def bank_gradient(q, k, bank, tau, in_batch=False, block=BLOCK):
    """dL/dw (K, d) of histcode.info_nce, from the same arguments. [HistCode eq. 4]"""
    own = q @ k.T if in_batch else (q * k).sum(1, keepdim=True)
    denominator = torch.logsumexp(own / tau, 1)  # (B,) its logarithm, so far of the keys
    for w in bank.split(block):
        similarity = F.normalize(w, dim=1) @ q.T  # (block, B)
        denominator = torch.logaddexp(denominator, torch.logsumexp(similarity / tau, 0))
    gradient = torch.empty_like(bank)
    for w, out in zip(bank.split(block), gradient.split(block), strict=True):
        length = w.norm(dim=1, keepdim=True)
        u = w / length
        similarity = u @ q.T
        share = torch.exp(similarity / tau - denominator)
        along = (share * similarity).sum(1, keepdim=True)
        torch.addcmul(share @ q, u, along, value=-1, out=out)
        out /= len(q) * tau * length
    return gradient
