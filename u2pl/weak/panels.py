"""Pictures of labels from CAMs in a training, for TensorBoard."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from input_pipeline import batch as batch_lib
from segcore.distributed import sharding
from segcore.eval import panels
from segcore.models.layers import resize
from segcore.train import tensorboard, train_state
from u2pl.weak import afa

_TITLES = ('image', 'CAM label', 'training label', 'prediction')


@dataclasses.dataclass(frozen=True, eq=False)
class LabelPanels:
  """Draws images with their labels from CAMs; every host draws the same.

  Attributes:
    trained: method that makes labels.
    batch: tagged images, as in training.
    palette: colors of the classes.
    mesh: devices; each of them processes the whole batch.
  """

  trained: afa.AFA
  batch: Mapping[str, Any]
  palette: tuple[panels.Color, ...]
  mesh: Mesh

  def __call__(self, state: train_state.TrainState) -> tensorboard.Summaries:
    """Returns the image 'labels/panels'; pixels without a label are gray."""
    maps = jax.device_get(self._compute(state, self.batch))
    rows = [
      [image, *(panels.colorize_label_map(x, self.palette) for x in each)]
      for image, *each in zip(self.batch['image'], *maps, strict=True)
    ]
    return tensorboard.Summaries(
      {}, {'labels/panels': panels.draw_picture_grid(rows, _TITLES)}
    )

  @functools.cached_property
  def _compute(self):
    def compute(state, batch):
      images = afa.tagged_images(batch)
      # A fixed key: panels of different steps drop the same branches.
      labels = self.trained.make_labels(state, images, jax.random.PRNGKey(0))
      logits = self.trained.predict(
        state, batch_lib.batch_images_to_symmetric(images.pixels)
      )
      scores = resize.resize_bilinear(logits, images.pixels.shape[1:3])
      predicted = jnp.argmax(scores, axis=-1).astype(jnp.int32)
      return labels.plain, labels.segmentation, predicted

    return jax.jit(
      compute, out_shardings=sharding.replicated_sharding(self.mesh)
    )
