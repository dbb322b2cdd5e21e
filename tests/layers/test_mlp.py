"""MLP is Linear, exact GELU, Linear."""

import math

import torch

from whitebox_crate.layers import MLP


def test_it_is_the_formula() -> None:
    layer = MLP(6, 10).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # x Phi(x), not its tanh approximation
    torch.testing.assert_close(layer(x), gelu @ layer.fc2.weight.T + layer.fc2.bias, rtol=0, atol=1e-12)
