"""Affine maps: values and gradients of oneDNN's products against float64, and when it is asked."""

import pytest
import torch
from torch import Tensor, nn

from rl_gumbel import affine as module
from rl_gumbel.affine import Linear, affine, is_large, product
from rl_gumbel.algorithms.compilation import compiled
from rl_gumbel.networks import EnsembleLinear, TanhLayers

needs_onednn = pytest.mark.skipif(not module.HAS_ONEDNN, reason="oneDNN would not be asked here")


@pytest.fixture(params=[1, 2**62], ids=["oneDNN", "PyTorch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever library multiplies, whatever the size."""
    monkeypatch.setattr(module, "MIN_MULTIPLICATIONS", request.param)


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output and its gradient, weighted so that every entry counts differently."""
    x = x.detach().requires_grad_()
    y = net(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *net.parameters()])]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Linear(5, 3), (7, 5)),
        (lambda: Linear(5, 3, bias=False), (7, 5)),
        (lambda: Linear(5, 3), (2, 7, 5)),
        (lambda: EnsembleLinear(3, 5, 4), (3, 7, 5)),
        (lambda: TanhLayers(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh()), (9, 5)),
    ],
)
def test_values_and_gradients_are_those_of_double_precision(make, shape):
    net, x = make(), torch.randn(shape)
    got = gradients(net, x)
    want = gradients(net.double(), x.double())
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("library")
def test_linear_is_that_of_torch():
    ours, theirs = Linear(6, 4), nn.Linear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.usefixtures("library")
def test_members_that_share_their_input_by_expansion():
    layer, x = EnsembleLinear(2, 5, 4), torch.randn(6, 5)
    together = gradients(layer, x.expand(2, -1, -1))
    apart = gradients(layer, torch.stack([x, x]))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


@needs_onednn
def test_a_compiled_product_is_the_same():
    def loss_gradients(x: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))

    layer, x = EnsembleLinear(2, 128, 128), torch.randn(2, 256, 128)
    assert is_large(x, 256, 128, 128)
    fast = compiled(loss_gradients)  # warns, which is an error here, where it cannot compile
    eager = fast(x)
    for ours, theirs in zip(fast(x), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


@needs_onednn
def test_only_large_products_of_32_bits_on_the_cpu_are_onednns():
    x = torch.empty(1024, 64)
    assert is_large(x, 1024, 64, 64)
    assert not is_large(x, 1023, 64, 64)
    assert not is_large(x.double(), 1024, 64, 64)
    assert not is_large(x.to("meta"), 1024, 64, 64)
    with torch.autocast("cpu"):
        assert not is_large(x, 1024, 64, 64)


@needs_onednn
def test_a_second_derivative_of_a_large_product_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "MIN_MULTIPLICATIONS", 1)
    x = torch.randn(1, 3, 2, requires_grad=True)
    y = affine(x, torch.randn(1, 2, 2), None).square().sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.usefixtures("library")
def test_what_needs_no_gradient_gets_none():
    layer = EnsembleLinear(2, 3, 3).requires_grad_(False)
    x = torch.randn(2, 4, 3, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(-1)[:, None].expand(2, 4, 3))
    assert layer.weight.grad is None


@pytest.mark.usefixtures("library")
def test_product_of_transposes():
    x, y = torch.randn(9, 4), torch.randn(9, 5)
    want = torch.einsum("ij,ik->jk", x.double(), y.double()).float()
    torch.testing.assert_close(product(x.t(), y), want)
