"""Without a card: the package can be imported, PyTorch computes instead, and one warning says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "torch-ext"
# Each operator once, forward and backward, with what it logged on the way; the numbers are those of its reference.
PROGRAM = """
import logging, sys
if sys.argv[1] == "no Triton":
    sys.modules["triton"] = None
messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("radfm_kernels").addHandler(handler)
import torch
import radfm_kernels
assert not radfm_kernels.runs_triton(torch.device("cpu")), "kernels run on a CPU"
assert not messages, messages

def same(operator, reference, *inputs):
    leaves = [[t.clone().requires_grad_() for t in inputs] for _ in range(2)]
    outputs = operator(*leaves[0]), reference(*leaves[1])
    for output in outputs:
        output.sum().backward()
    torch.testing.assert_close(*outputs)
    for a, b in zip(*leaves):
        torch.testing.assert_close(a.grad, b.grad)

def module(name):
    return sys.modules[f"radfm_kernels.{name}"]

torch.manual_seed(0)
cu = torch.tensor([0, 5, 8], dtype=torch.int32)
q, k, v = torch.randn(3, 8, 2, 16)
packed = module("packed_attention")
same(lambda *t: packed.packed_attention(*t, cu, cu, 5, 5), lambda *t: packed.reference(*t, cu, cu, 0.25), q, k, v)
latents = torch.randn(3, 6, 2, 16)
perceiver = module("perceiver_attention")
same(lambda *t: perceiver.perceiver_attention(*t, cu, 5), lambda *t: perceiver.reference(*t, cu, 0.25),
     latents[0], k, v, latents[1], latents[2])
patches = module("patch_embedding")
voxels, size = torch.randn(2, 1, 8, 8, 4), (4, 4, 4)
parameters = [torch.randn(*s) for s in ((12, 64), (12,), (12,), (12,), (4, 4), (4, 4), (4, 4))]
same(lambda *p: patches.patch_embedding(voxels, *p, size),
     lambda *p: patches.reference(voxels, *p, patch_size=size, eps=1e-5), *parameters)
entropy = module("weighted_cross_entropy")
labels, weights, masked = torch.tensor([1, 2, 3]), torch.tensor([1.0, 3.0, 1.0]), torch.tensor([0])
same(lambda h, w: entropy.weighted_cross_entropy(h, w, labels, weights, masked),
     lambda h, w: entropy.reference(h, w, labels, weights / 5, masked), torch.randn(3, 8), torch.randn(7, 8))
print(*messages, sep="\\n")
"""


@pytest.mark.parametrize(("machine", "reason"), [("no card", "need a CUDA card"), ("no Triton", "Triton is not installed")])
def test_operators_are_pytorch_s_and_one_warning_says_so(machine, reason):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE), "CUDA_VISIBLE_DEVICES": ""}
    env.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, "-c", PROGRAM, machine], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    messages = run.stdout.splitlines()
    assert len(messages) == 1 and messages[0].startswith("RadFM's kernels do not run on cpu") and reason in messages[0]
