"""A runtime of MLServer with adaptive batching; requests carry the file as base64, as its protocol wants."""

import base64

import numpy as np
from common import Classifier
from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class ImageModel(MLModel):
    """Files in, labels out."""

    async def load(self) -> bool:
        """Load the model."""
        self.classifier = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A batch."""
        files = [base64.b64decode(text) for text in StringCodec.decode_input(payload.inputs[0])]
        logits = self.classifier.logits(np.stack([self.classifier.decode(content) for content in files]))
        labels = [str(self.classifier.ranking(row)["predictions"][0]["label"]) for row in logits]
        output = StringCodec.encode_output("label", labels, use_bytes=False)
        return InferenceResponse(model_name=self.name, outputs=[output])
