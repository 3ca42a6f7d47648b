"""lab/fast/products.py: products by oneDNN. Authorities: float64, torch's layer and autograd."""

import copy

import numpy as np
import pytest
import torch

import he2rna
from lab.fast.products import Layer, product
from lab.he2rna.training import model_of_choices
from lab.tests.helpers import relative


@pytest.mark.parametrize("n, m, p", [(1, 1, 1), (1, 7, 3), (5, 1, 9), (64, 300, 1), (0, 4, 3)])
def test_a_product_is_that_of_float64_however_its_numbers_lie(n, m, p):
    g = torch.Generator().manual_seed(0)
    wide, tall = torch.randn(n, 2 * m, generator=g), torch.randn(3 * p, m, generator=g)
    bias = torch.randn(p, generator=g)
    for a in (wide[:, :m], wide[:, ::2], wide[:, :m].T.contiguous().T):
        for b in (tall[::3].T, tall[:p].T.contiguous()):
            wanted = a.double() @ b.double()
            assert product(a, b).shape == (n, p)
            assert np.allclose(product(a, b), wanted, atol=1e-4)
            assert np.allclose(product(a, b, bias), wanted + bias, atol=1e-4)
            assert np.allclose(product(a.double(), b.double(), bias.double()), wanted + bias)


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_a_layer_is_torchs_in_value_and_gradient(shape):
    torch.manual_seed(0)
    plain = torch.nn.Linear(12, 7)
    fast = Layer.of(copy.deepcopy(plain))
    x = torch.randn(shape, requires_grad=True)
    results = []
    for layer in (plain, fast):
        out = layer(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    for wanted, got in zip(*results, strict=True):
        assert got.shape == wanted.shape and relative(got.detach(), wanted.detach()) < 1e-5


def test_the_command_trains_the_plain_model():
    """Twenty whole steps, of every k; weights under the same names."""
    torch.manual_seed(0)
    fast = model_of_choices(12, 31, (16, 8), (1, 3, 9, 99))
    plain = he2rna.HE2RNA(12, 31, (16, 8), (1, 3, 9, 99))
    plain.load_state_dict(fast.state_dict())
    x, mask, y = torch.randn(4, 9, 12), torch.ones(4, 9, dtype=torch.bool), torch.randn(4, 31)
    before = copy.deepcopy(plain.state_dict())
    for model in (plain, fast):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        torch.manual_seed(1)  # of k and of dropout
        for _ in range(20):
            loss = (model(x, mask) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, weight in plain.state_dict().items():
        assert torch.allclose(fast.state_dict()[name], weight, atol=1e-5)
        assert not torch.allclose(weight, before[name], atol=1e-3)
