"""The classification losses image by image, in float64 numpy, each as its paper prints it. Nothing of the package."""

from __future__ import annotations

import numpy as np


def softmax(logits):
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def cross_entropy(o, y, counts):
    return -np.log(softmax(o)[y])


def balanced_softmax(o, y, counts):
    """Eq. 20: -log( n_y e^{o_y} / sum_k n_k e^{o_k} )."""
    return -np.log(counts[y] * np.exp(o[y]) / sum(n * np.exp(score) for n, score in zip(counts, o, strict=True)))


def focal(o, y, counts, gamma):
    """Lin et al. (2017), FL(p_t) = -(1 - p_t)^gamma log p_t."""
    p_t = softmax(o)[y]
    return -((1 - p_t) ** gamma) * np.log(p_t)


def ldam(o, y, counts, max_margin, scale):
    """Cao et al. (2019): margins Delta_j = C / n_j^{1/4}, cosines z = o / s."""
    z = o / scale
    constant = max_margin * min(counts) ** 0.25
    enforced = np.exp(scale * (z[y] - constant / counts[y] ** 0.25))
    others = sum(np.exp(scale * z[j]) for j in range(len(counts)) if j != y)
    return -np.log(enforced / (enforced + others))


def logit_adjustment(o, y, counts, tau):
    """Menon et al. (2021): log[ 1 + sum_{y' != y} (pi_y' / pi_y)^tau e^{f_y' - f_y} ]."""
    pi = np.asarray(counts, dtype=np.float64) / sum(counts)
    rivals = [(pi[j] / pi[y]) ** tau * np.exp(o[j] - o[y]) for j in range(len(counts)) if j != y]
    return np.log1p(sum(rivals))


def vector_scaling(o, y, counts, gamma, tau):
    """Kini et al. (2021): log( 1 + sum_{k != y} e^{Delta_k z_k - Delta_y z_y + iota_k - iota_y} )."""
    n = np.asarray(counts, dtype=np.float64)
    delta, iota = (n / n.max()) ** gamma, tau * np.log(n / n.sum())
    rivals = [np.exp(delta[k] * o[k] - delta[y] * o[y] + iota[k] - iota[y]) for k in range(len(n)) if k != y]
    return np.log1p(sum(rivals))


def effective_number(n, beta):
    """Cui et al. (2019): E_n = (1 - beta^n) / (1 - beta), as the sum that it is."""
    return sum(beta**i for i in range(n))


def class_weights(counts, kind, beta):
    raw = {
        "none": [1.0 for _ in counts],
        "inverse": [1.0 / n for n in counts],
        "effective_number": [1.0 / effective_number(n, beta) for n in counts],
    }[kind]
    return [len(counts) * weight / sum(raw) for weight in raw]


def mean(loss, logits, labels, weights, counts, **parameters):
    """1/B sum_i w_{y_i} loss_i."""
    pairs = zip(logits, labels, strict=True)
    return sum(weights[y] * loss(o, y, counts, **parameters) for o, y in pairs) / len(labels)
