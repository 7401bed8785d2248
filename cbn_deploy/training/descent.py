"""Gradient descent: portions of batches in, updates of the network out (lines 3 to 9 of Algorithm 1)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cbn_deploy.data import TrainingBatch
from cbn_deploy.training.averages import StepSums, step_sums
from cbn_deploy.training.classification import Classification
from cbn_deploy.training.execution import Execution, training_network
from cbn_deploy.training.optimizer import make_optimizer, set_learning_rate, use_kernels_of
from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.recipe import Recipe
from cbn_deploy.training.step import step_losses
from cbn_deploy.training.step_graphs import StepGraphs

__all__ = ["Descent"]


class Descent:
    """A network, its optimizer, and how one step is computed.

    The gradient of a step is that of the mean loss over the whole batch: each portion's mean counts by its share of the
    images, the portions' gradients are added up, and so are the ranks'.

    Args:
        model: on the device of ``execution``.
        recipe: optimizer and precision.
        execution: how to compute.
        ranks: who else computes the same steps.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, execution: Execution, ranks: Ranks) -> None:
        self.optimizer = make_optimizer(model, recipe.optimizer)
        self._model, self._execution, self._ranks, self._precision = model, execution, ranks, recipe.precision
        self._network = model
        self._learning_rate: Tensor | None = None
        self._graphs: StepGraphs | None = None

    def prepare(self) -> None:
        """Call it before the first step and whenever other parameters than before are trained."""
        self._network = training_network(self._model, self._execution, self._precision, self._ranks)
        use_kernels_of(self.optimizer, self._execution.device)
        if self._execution.cuda_graphs:
            self._learning_rate = torch.zeros((), device=self._execution.device)
            self._graphs = StepGraphs(self._model)

    def take(self, portion: TrainingBatch, recipe: Recipe, classify: Classification, learning_rate: float) -> StepSums:
        """Losses and gradients of a portion, and after a step's last portion the update.

        Args:
            portion: on the device.
            recipe: which paths and losses.
            classify: L_cls.
            learning_rate: of this step.

        Returns:
            What the epoch's means need, on the device; with CUDA graphs the next call overwrites it.
        """
        if self._graphs is None or self._learning_rate is None:
            return self._computed(portion, recipe, classify, learning_rate)
        in_place = self._learning_rate.fill_(learning_rate)
        return self._graphs.run(
            portion, lambda batch: self._computed(batch, recipe, classify, in_place), (recipe, classify)
        )

    def _computed(
        self, portion: TrainingBatch, recipe: Recipe, classify: Classification, learning_rate: float | Tensor
    ) -> StepSums:
        with self._gradients_of(portion):
            losses = step_losses(self._network, portion, recipe, classify)
            # DistributedDataParallel divides by the number of ranks, whatever their shares.
            total = losses.total * (portion.weight * self._ranks.world_size)
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if portion.ends_step:
            set_learning_rate(self.optimizer, learning_rate)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return step_sums(losses, portion.labels)

    def _gradients_of(self, portion: TrainingBatch) -> AbstractContextManager[None]:
        """Until the last portion of a step gradients stay on this rank, where they add up."""
        if isinstance(self._network, DistributedDataParallel) and not portion.ends_step:
            return self._network.no_sync()
        return nullcontext()
