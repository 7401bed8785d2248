from __future__ import annotations

import dataclasses

import numpy as np
import torch

from cbn_deploy.checkpoint import load_checkpoint, load_model, save_checkpoint
from cbn_deploy.models import create_model
from cbn_deploy.runtime.factory import open_session
from export import ExportOptions, export_checkpoint
from tests.checkpoints import make_checkpoint
from tests.reference.tolerances import tolerance


def test_a_network_trained_with_ldam_can_be_exported(tmp_path):
    """Its normalised features and class weights are part of the exported graph."""
    make_checkpoint(tmp_path / "linear.pt", name="resnet8")
    linear = load_checkpoint(tmp_path / "linear.pt")
    architecture = dataclasses.replace(linear.architecture, cosine_scale=30.0)
    torch.manual_seed(1)
    state = {**create_model(architecture).state_dict(), **linear.state_dict}
    del state["fc.bias"]
    save_checkpoint(tmp_path / "cosine.pt", dataclasses.replace(linear, architecture=architecture, state_dict=state))
    export_checkpoint(tmp_path / "cosine.pt", tmp_path / "model.onnx", ExportOptions(inputs=28))
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    logits = open_session(tmp_path / "model.onnx").run(images).logits
    with torch.no_grad():
        expected = load_model(load_checkpoint(tmp_path / "cosine.pt"))(torch.from_numpy(images)).numpy()
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(logits / scale, expected / scale, **tolerance("exported logits"))
    assert np.abs(expected).max() <= 30.0
