import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from radfm.linear_radfm import HAS_ONE_DNN, Linear, linear

ONE_DNN = "mkldnn::_linear_pointwise"
needs_one_dnn = pytest.mark.skipif(not HAS_ONE_DNN, reason="this PyTorch was built without oneDNN")


class Recorded(TorchDispatchMode):
    """The names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


class Quantised(torch.Tensor):
    """Says it is float32, as quantised weights do, and is known to torch functions alone."""


def operators(rows, layer):
    with Recorded() as recorded:
        layer(rows)
    return recorded.names


@needs_one_dnn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "rows",
    [torch.rand(3, 2, 7), torch.rand(7), torch.rand(0, 7), torch.rand(7, 5).t(), torch.rand(4, 1, 7).expand(4, 3, 7)],
    ids=["three axes", "one row", "no row", "transposed", "expanded"],
)
@torch.no_grad()
def test_without_gradients_one_dnn_multiplies_and_agrees_with_float64(rows, bias):
    torch.manual_seed(0)
    layer = Linear(7, 6, bias=bias)
    assert ONE_DNN in operators(rows, layer)
    exact = torch.nn.functional.linear(rows.double(), layer.weight.double(), layer.bias.double() if bias else None)
    torch.testing.assert_close(layer(rows), exact.float())


def test_gradients_go_the_differentiable_way():
    layer, rows = Linear(7, 6), torch.rand(3, 7, requires_grad=True)
    assert ONE_DNN not in operators(rows, layer)
    layer(rows).sum().backward()
    torch.testing.assert_close(rows.grad, layer.weight.detach().sum(0).expand(3, 7))


@torch.no_grad()
def test_what_one_dnn_does_not_take_is_left_to_pytorch():
    layer, rows = Linear(7, 6), torch.rand(3, 7)
    assert ONE_DNN not in operators(rows.double(), Linear(7, 6).double())
    with torch.autocast("cpu", torch.bfloat16):
        assert ONE_DNN not in operators(rows, layer)
        assert layer(rows).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert ONE_DNN not in operators(rows, layer)
    quantised = torch.rand(6, 7).as_subclass(Quantised)
    assert ONE_DNN not in operators(rows, lambda rows: linear(rows, quantised))


@torch.no_grad()
def test_compiled_and_exported_it_is_pytorch_s_own_product():
    layer, rows = Linear(7, 6), torch.rand(3, 7)
    graph = torch.export.export(layer, (rows,)).graph
    assert {str(node.target) for node in graph.nodes if node.op == "call_function"} == {"aten.linear.default"}
