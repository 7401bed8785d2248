"""torch.compile with the real C++ compiler, where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.config
from torch import nn

from cbn_deploy.norm import FrozenCompoundBatchNorm2d
from export.bench.compiler import compile_network, why_no_compiler
from export.bench.networks import efficient_in_torch

needs_compiler = pytest.mark.skipif(why_no_compiler() is not None, reason=str(why_no_compiler()))


@needs_compiler
def test_compiled_layers_agree_at_every_batch_size_beyond_dynamos_limit():
    generator = torch.Generator().manual_seed(0)

    def table() -> torch.Tensor:
        return torch.rand(3, 4, generator=generator) + 0.5

    layer = FrozenCompoundBatchNorm2d(torch.tensor([0.5, 0.3, 0.2]), table(), table(), table(), table(), 1e-5, 0.5)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU()).eval().requires_grad_(False)
    run = compile_network(efficient_in_torch(module))
    # With a limit of one entry, the second batch size would fall back to eager, or fail as fullgraph demands.
    with torch._dynamo.config.patch(recompile_limit=1):
        for batch_size in (1, 3):
            images = np.random.default_rng(batch_size).standard_normal((batch_size, 3, 8, 8)).astype(np.float32)
            np.testing.assert_allclose(run(images), module(torch.from_numpy(images)).numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(run(images), run(images))


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert why_no_compiler() == (
        "torch.compile needs a C++ compiler, and no-such-compiler was not found; install it or set CXX."
    )


@pytest.mark.skipif(not Path("/bin/false").exists(), reason="no /bin/false to stand in for a broken compiler")
def test_a_broken_compiler_is_one_sentence(tmp_path):
    code = "from torch import nn; from export.bench.compiler import compile_network; compile_network(nn.ReLU())"
    environment = {**os.environ, "CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "RuntimeUnavailableError: torch.compile does not work here (" in done.stderr
