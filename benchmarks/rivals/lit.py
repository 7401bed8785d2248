"""LitServe with batching, as its documentation shows it."""

import litserve
import numpy as np
from common import BATCH_TIMEOUT, MAX_BATCH, PORT, Classifier
from fastapi import Request


class ClassifyApi(litserve.LitAPI):
    """One worker process; files are decoded in it."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the interface's
        """Load the model."""
        self.classifier = Classifier()

    def decode_request(self, request: Request) -> np.ndarray:
        """A form with the file ``image``."""
        return self.classifier.decode(request["image"].file.read())

    def predict(self, images: np.ndarray) -> np.ndarray:
        """A batch."""
        return self.classifier.logits(np.asarray(images))

    def encode_response(self, logits: np.ndarray) -> dict[str, object]:
        """One answer."""
        return self.classifier.ranking(logits)


if __name__ == "__main__":
    api = ClassifyApi(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
