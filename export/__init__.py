"""From a checkpoint to one self-describing ``model.onnx`` whose parity is proved."""
