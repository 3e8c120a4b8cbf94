"""The stand-in for a GPU: it computes what a CPU does, and complains of what a GPU would."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from patience import SECONDS
from standin import HERE, environment

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(torch.version.cuda is None, reason="torch is built for CPUs alone"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]

BEGIN = """
import re
import torch
import torch.nn.functional as F

def refused(what, call):
    try:
        call()
    except RuntimeError as error:
        assert re.search(what, str(error)), error
    else:
        raise AssertionError(f"expected an error about {what}")

x = torch.arange(6.0, device="cuda").view(2, 3)
"""
CLAIMS = {
    "a tensor's operations run, and their results stay": """
w = torch.ones(4, 3, device="cuda", requires_grad=True)
y = F.gelu(F.linear(x, w))
y.sum().backward()
assert y.is_cuda and w.grad.is_cuda
v = torch.ones(4, 3, requires_grad=True)
F.gelu(F.linear(x.cpu(), v)).sum().backward()
assert torch.equal(w.grad.cpu(), v.grad)
assert x.t()[1:].is_cuda and x.t()[1:].tolist() == [[1, 4], [2, 5]]
assert torch.cuda.memory_allocated() > 0
""",
    "operands of two devices are refused, a number of the host's is not": """
refused("same device", lambda: x + torch.ones(3))
refused("same device", lambda: x @ torch.ones(3, 2))
assert (x + torch.tensor(1.0)).sum() == 21
""",
    "what CUDA has no kernel for is refused": """
refused("not implemented for 'Long'", lambda: x.long() @ x.long().t())
refused("'cuda' device type", lambda: torch.empty(2, device="cuda").normal_(generator=torch.Generator()))
""",
    "what waits is found": """
import warnings
warnings.simplefilter("ignore")
torch.cuda.set_sync_debug_mode("error")
for call in (lambda: x.sum().item(), lambda: x.cpu(), lambda: x.nonzero(), lambda: x[x > 1]):
    refused("synchronizing", call)
x.add_(1).mul(2)
torch.cuda.set_sync_debug_mode("default")
""",
    "a captured graph runs nothing until it is replayed, and then on what is there": """
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    x.add_(1)
    y = (x * 2).sum(1)
assert x.sum() == 15
for _ in range(3):
    graph.replay()
assert x.sum() == 15 + 3 * 6
assert torch.equal(y, 2 * x.sum(1))
def waiting():
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.sum().item()
refused("capturing", waiting)
""",
    "a seed draws the same numbers again": """
drawn = []
for _ in range(2):
    torch.cuda.manual_seed(3)
    drawn.append((torch.randn(5, device="cuda"), torch.randperm(9, device="cuda")))
assert all(map(torch.equal, *drawn)) and not torch.equal(torch.randn(5, device="cuda"), drawn[0][0])
""",
    "autocast is CUDA's": """
with torch.autocast("cuda", torch.bfloat16):
    z = F.linear(x, torch.ones(4, 3, device="cuda"))
    assert (z.dtype, F.softplus(z).dtype) == (torch.bfloat16, torch.float32)
""",
    "memory is NaN until it is written": """
assert torch.empty(1000, device="cuda").isnan().all()
""",
    "a step of ours launches no more than torch's": """
import ctypes, os
from manual_mlp import MLP, backprop, dense, linear_cross_entropy
launched = ctypes.c_uint64.in_dll(ctypes.CDLL(os.environ["MANUAL_MLP_STANDIN"]), "standin_launches")

def launches(step, leaves):
    for _ in range(2):
        before = launched.value
        for leaf in leaves:
            leaf.grad = None
        step()
    return launched.value - before

for narrow in (False, True):
    for sizes, rows in (((64, 64, 64, 10), 32), ((784, 128, 10), 64)):
        mlp = MLP(list(sizes)).cuda()
        net = mlp.to_sequential()
        h, t = torch.randn(rows, sizes[0], device="cuda"), torch.zeros(rows, dtype=torch.long, device="cuda")
        # A region for each step, as in training: it turns the weights into bfloat16 once.
        def within(step):
            with torch.autocast("cuda", torch.bfloat16, narrow):
                step()

        ours = launches(lambda: within(lambda: backprop(mlp, h, t, "cross_entropy")), [*mlp.parameters()])
        torchs = launches(lambda: within(lambda: F.cross_entropy(net(h), t).backward()), [*net.parameters()])
        assert ours <= torchs, (sizes, narrow, ours, torchs)
leaves = [torch.randn(*size, device="cuda", requires_grad=True) for size in ((32, 64), (48, 64), (48,))]
g = torch.ones(32, 48, device="cuda")
for name, f in (("relu", torch.relu), ("gelu", F.gelu), ("tanh", torch.tanh)):
    ours = launches(lambda: dense(*leaves, name).backward(g), leaves)
    assert ours <= launches(lambda: f(F.linear(*leaves)).backward(g), leaves), name
""",
    "a sparse tensor keeps to the device": """
s = torch.eye(3, device="cuda").to_sparse()
assert s.is_cuda and torch.equal((s @ x.t()).cpu(), x.t().cpu())
""",
}


# Each by itself; what fails is printed.
RUN = """
import json, sys, traceback
begin, claims = json.load(sys.stdin)
found = {}
for name, code in claims.items():
    try:
        exec(begin + code, {})
    except Exception:
        found[name] = traceback.format_exc()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def failed() -> dict[str, str]:
    ran = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([BEGIN, CLAIMS]),
        cwd=HERE.parents[1],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("claim", CLAIMS)
def test_on_the_stand_in(claim: str, failed: dict[str, str]) -> None:
    assert claim not in failed, failed[claim]
