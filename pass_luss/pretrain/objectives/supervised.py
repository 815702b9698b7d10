"""Supervised: the classes of images, as an upper bound (spec §2.1).

s = FC(pool(f(x)))                    class scores of one view
L = mean_b CE(s, class of the folder)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import (
  comparator_options,
  embedding_ops,
  objective,
  projection_heads,
)
from segcore.models import segmenter
from segcore.ops import losses
from segcore.types import Scalar


class Supervised(objective.Objective):
  """The supervised objective, on the first large view."""

  options: comparator_options.SupervisedOptions

  name = 'supervised'

  @property
  def views(self) -> tuple[int, ...]:
    """Returns the number of the first large view alone."""
    return (0,)

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the fully connected layer, with a bias."""
    layers = (projection_heads.Layer(self.options.num_classes),)
    return {self.name: projection_heads.ProjectionHead(layers, dtype=dtype)}

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Scores the classes of each image."""
    pooled = embedding_ops.average_pool_embeddings(views.view(0))
    scores = net.heads.call_method(self.name, 'project', pooled, True)
    return {'scores': scores}

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes the loss L, and the share of images with the right class."""
    scores = step.outputs[self.name]['scores']
    tags = step.batch['tags'][:, self.options.first_class :]
    correct = jnp.take_along_axis(
      tags, jnp.argmax(scores, axis=-1)[:, None], axis=-1
    )
    return objective.LossTerms(
      {'loss_supervised': classification_loss(scores, tags)},
      {'train_accuracy': jnp.mean(correct.astype(jnp.float32))},
    )


def classification_loss(
  scores: Float[Array, 'B C'], tags: Bool[Array, 'B C']
) -> Scalar:
  """Computes the mean cross entropy of class scores.

  Args:
    scores: class scores.
    tags: classes of each image; those of an image with several have equal
      shares.
  """
  targets = tags / jnp.maximum(jnp.sum(tags, axis=-1, keepdims=True), 1)
  log_probs = jax.nn.log_softmax(losses.at_least_float32(scores))
  return -jnp.mean(jnp.sum(targets * log_probs, axis=-1))
