"""The stand-in for torch's compiler: an eager run never imports the real one, and whoever needs it gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from hpcai500.comm.communicator import open_communicator
from hpcai500.deferred_dynamo import defer_dynamo
defer_dynamo()

def train(model, forward):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        forward(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return model.weight.detach().clone()

torch.manual_seed(0)
model = torch.nn.Linear(3, 3)
begin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
eager = train(model, model)
with open_communicator("torchdist") as comm:
    comm.barrier()
assert "sympy" not in sys.modules, "the compiler was imported"
assert len([name for name in sys.modules if name.startswith("torch._dynamo")]) == 1
assert not torch.compiler.is_compiling()
"""
USES = {
    "torch.compile": """
model.load_state_dict(begin)
compiled = train(model, torch.compile(model, backend="eager"))
assert torch.equal(compiled, eager)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
""",
    "submodule": "import torch._dynamo.config as config; assert config.cache_size_limit > 0",
    "rules": "assert torch._dynamo.trace_rules.lookup(len) is not None",
    "attribute": "from torch._dynamo import optimize; assert callable(optimize)",
    "decorator": "assert torch._dynamo.disable(recursive=False)(len)([1]) == 1",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_eager_training_does_not_import_the_compiler_and_others_get_it(use: str) -> None:
    real = 'assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.__file__'
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + use + "\n" + real], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
