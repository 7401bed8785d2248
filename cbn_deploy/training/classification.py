"""The classification loss that a recipe names, made ready for its data, and the class prior that it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cbn_deploy.data.samplers import Sampling, sampled_class_distribution
from cbn_deploy.training import losses
from cbn_deploy.training.class_tables import class_weights, ldam_margins, log_class_prior, vector_scaling_factors
from cbn_deploy.training.loss_config import LossConfig

__all__ = ["Classification", "assumed_prior", "classification_loss"]

# (logits (B, K), labels (B,)) -> scalar
Classification = Callable[[Tensor, Tensor], Tensor]


def classification_loss(
    loss: LossConfig,
    class_counts: Sequence[int],
    *,
    sampling: Sampling = "instance_balanced",
    weighted: bool = True,
    device: torch.device | None = None,
) -> Classification:
    """L_cls of ``loss`` for K classes: a function of logits (B, K) and labels (B,) to a scalar.

    Args:
        loss: which loss, which class weights.
        class_counts: K training counts. Weights, margins and factors depend on them; an added log prior is that of
            the images that are shown, which depends on ``sampling``, too.
        sampling: how the images are drawn.
        weighted: whether the class weights of ``loss`` apply (they may begin later in a run).
        device: of the logits.

    Raises:
        ValueError: a class without training images.
    """
    log_prior = log_class_prior(class_counts, sampling).to(device)
    weights = None
    if weighted and loss.class_weights != "none":
        weights = class_weights(class_counts, loss.class_weights, loss.effective_number_beta).to(device)
    if loss.classification == "balanced_softmax":
        return lambda logits, labels: losses.balanced_softmax(logits, labels, log_prior, weights)
    if loss.classification == "focal":
        return lambda logits, labels: losses.focal(logits, labels, loss.focal_gamma, weights)
    if loss.classification == "ldam":
        margins = ldam_margins(class_counts, loss.ldam_max_margin).to(device)
        return lambda logits, labels: losses.ldam(logits, labels, margins, loss.ldam_scale, weights)
    if loss.classification == "logit_adjustment":
        return lambda logits, labels: losses.logit_adjustment(logits, labels, log_prior, loss.tau, weights)
    if loss.classification == "vector_scaling":
        factors = vector_scaling_factors(class_counts, loss.vector_scaling_gamma).to(device)
        return lambda logits, labels: losses.vector_scaling(logits, labels, factors, log_prior, loss.tau, weights)
    return lambda logits, labels: losses.cross_entropy(logits, labels, weights)


def assumed_prior(
    loss: LossConfig, class_counts: Sequence[int], *, sampling: Sampling = "instance_balanced"
) -> tuple[float, ...]:
    """The class prior q that ``softmax(logits)`` assumes after training with ``loss``: K shares.

    Let p be the class shares of the images shown and w the class weights. Where ``E[w_y loss(o, y)]`` is smallest,
    ``softmax(o)_k`` is in proportion to ``P(x | k) q_k`` with q_k in proportion to ``w_k p_k^(1 - t)``, t the factor of
    the log prior that the loss adds to the logits while training only: 1 for the balanced softmax, tau for logit
    adjustment, 0 for the cross-entropy.

    For three losses that is a choice, because their minimum is no class posterior for any prior:

    - focal (t = 0): its minimum ranks the classes as the weighted posterior does, but is flatter.
    - ldam (t = 0): it subtracts from the true class's logit only. With s Delta of a few units, as here, the class with
      the largest logit is still the one of largest ``w_k P(k | x)`` (but for ratios within 1 + exp(-s Delta)).
    - vector_scaling (t = tau): the factors Delta_k are left out; exact for gamma = 0.
    """
    shares = sampled_class_distribution(class_counts, sampling)
    exponent = {"balanced_softmax": 0.0, "logit_adjustment": 1 - loss.tau, "vector_scaling": 1 - loss.tau}
    weights = class_weights(class_counts, loss.class_weights, loss.effective_number_beta).double().numpy()
    prior = weights * shares ** exponent.get(loss.classification, 1.0)
    return tuple(float(share) for share in prior / np.sum(prior))
