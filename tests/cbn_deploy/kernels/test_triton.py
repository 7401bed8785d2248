"""The Triton kernels in Triton's interpreter, and what happens where Triton is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from cbn_deploy.kernels import cuda, portable
from export.op import TABLES
from tests.export.op_cases import random_case

CASES = Path(__file__).parent / "triton_interpreted"


@pytest.mark.parametrize("cases", sorted(CASES.glob("*_cases.py")), ids=lambda path: path.stem)
def test_in_the_interpreter(cases: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(cases)],
        # Triton decides when it is first imported, so it takes a process of its own.
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_without_triton_the_portable_operations_run_and_say_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "cbn_deploy.kernels.triton.operator", raising=False)
    monkeypatch.delattr("cbn_deploy.kernels.triton.operator", raising=False)
    cuda._triton_modules.cache_clear()
    case = random_case(1, 2, 8, 4, (5, 5), 0.0, alike=False)
    tables = [torch.from_numpy(case.tables[name]) for name in TABLES]
    arguments = (torch.from_numpy(case.x), *tables, case.epsilon, case.density_scale)
    with pytest.warns(UserWarning, match="pip install triton"):
        y, posterior = cuda.compound_batch_norm(*arguments, with_posterior=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cuda.compound_batch_norm(*arguments, with_posterior=True)
    cuda._triton_modules.cache_clear()
    expected_y, expected_posterior = portable.compound_batch_norm(*arguments)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(posterior, expected_posterior)


def test_training_on_the_cpu_is_not_for_triton() -> None:
    assert cuda.training_passes(torch.zeros(1, 2, 3), 4) is None
