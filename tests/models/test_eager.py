"""That nothing imports torch._dynamo before `torch.compile`, and that it works then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from tlray.models import eager

ROOT = Path(__file__).resolve().parent.parent.parent

_TRAIN = """
import sys
from tlray.models import eager
import torch

def train(kind, **settings):
    torch.manual_seed(0)
    model = eager.timm.create_model("resnet10t", num_classes=2)
    optimizer = kind(model.parameters(), lr=0.1, **settings)
    x_BCHW = torch.rand(2, 3, 32, 32)
    for _ in range(2):
        optimizer.zero_grad()
        model(x_BCHW).sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return [p.detach() for p in model.parameters()]

def same(kind, **settings):
    return all(map(torch.equal, train(eager.optimizer(kind), **settings), train(kind, **settings)))
"""


def run(code: str) -> None:
    command = [sys.executable, "-c", _TRAIN + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_compiler_waits_until_something_is_compiled_and_works_then() -> None:
    run("""
train(eager.optimizer(torch.optim.AdamW), fused=True)
train(eager.optimizer(torch.optim.SGD), momentum=0.9)
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
assert same(torch.optim.AdamW, fused=True) and same(torch.optim.SGD, momentum=0.9, nesterov=True)

from torch._dynamo.testing import CompileCounter

assert torch.compiler.disable.__module__ == "torch.compiler"
model = eager.timm.create_model("resnet10t", num_classes=2).eval()
x_BCHW, counter = torch.rand(2, 3, 32, 32), CompileCounter()
compiled = torch.compile(model, backend=counter, fullgraph=True)
assert torch.equal(compiled(x_BCHW), model(x_BCHW)) and counter.frame_count == 1

# What timm keeps from being compiled stays out of the graph.
from timm.layers.typing import disable_compiler

outside = CompileCounter()

@disable_compiler
def kept_out(x):
    return x.sin().cos()

f = torch.compile(lambda x: kept_out(x + 1) * 2, backend=outside)
assert torch.equal(f(x_BCHW), (x_BCHW + 1).sin().cos() * 2)
assert outside.op_count == 2, outside.op_count

# The function that torchvision imports by name asks the real one.
from torchvision.ops import roi_align

pooled = roi_align.__globals__["is_compile_supported"]("cpu")
assert pooled is torch._dynamo.utils.is_compile_supported("cpu")
""")


def test_an_optimiser_is_one_of_torchs_classes() -> None:
    kind = eager.optimizer(torch.optim.SGD)
    assert issubclass(kind, torch.optim.SGD) and kind.__name__ == "SGD"
