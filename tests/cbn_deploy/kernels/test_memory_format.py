"""Values are brought into a tensor's type and format, and left alone where they have both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cbn_deploy.kernels.memory_format import dense, is_channels_last, stored_like

FIRST = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
LAST = FIRST.to(memory_format=torch.channels_last)
SPACED = FIRST.repeat_interleave(2, dim=3)[..., ::2]  # neither of the two
FLAT = LAST.flatten(2)  # (B, D, P) with its channels contiguous


@pytest.mark.parametrize("x", [FIRST, LAST, SPACED, FLAT], ids=["first", "last", "spaced", "flat"])
@pytest.mark.parametrize("values", [FIRST, LAST, SPACED, LAST.double()], ids=["first", "last", "spaced", "double"])
def test_values_in_the_type_and_format_of_a_tensor(x: Tensor, values: Tensor) -> None:
    values = values.reshape(x.shape)
    stored = stored_like(x, values)
    assert torch.equal(stored, FIRST.reshape(x.shape))
    assert (stored.dtype, stored.stride()) == (x.dtype, dense(x).stride())


@pytest.mark.parametrize("values", [FIRST, LAST, FLAT])
def test_what_is_stored_so_is_not_copied(values: Tensor) -> None:
    assert stored_like(torch.empty_like(values), values) is values
    assert is_channels_last(values) == (values is not FIRST)
