"""Monitor panels: pseudo-labels of a fixed batch during training."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from segcore.distributed import sharding
from segcore.eval import panels
from segcore.models import segmenter as segmenter_lib
from segcore.train import tensorboard, train_state
from u2pl import pseudo_labels

# Of the images before mixing, then of the strong view.
_TITLES = (
  'unlabeled',
  'pseudo-label',
  'student',
  'mixed image',
  'entropy',
  'reliable labels',
)


class PanelOutput(NamedTuple):
  """Pseudo-labels of unlabeled images, as pictures of a training show them.

  Attributes:
    weak_labels: pseudo-labels of the images as they are.
    images: images that the student learns, in [-1, 1].
    labels: pseudo-labels of these; negative where they are not learned.
    entropy: entropy of the prediction for these, in nats.
  """

  weak_labels: Int[Array, 'B H W']
  images: Float[Array, 'B H W 3']
  labels: Int[Array, 'B H W']
  entropy: Float[Array, 'B H W']


@runtime_checkable
class HasPanels(Protocol):
  """Method whose pseudo-labels are shown.

  Attributes:
    segmenter: network of student and teacher.
    num_classes: number C of classes.
  """

  segmenter: segmenter_lib.Segmenter
  num_classes: int

  def panel_output(
    self, state: train_state.TrainState, batch: batch_lib.Batch, rng: Array
  ) -> PanelOutput:
    """Computes pseudo-labels of unlabeled images, and of what is learned."""


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherPanels:
  """Draws panels of unlabeled images; every host draws the same.

  Attributes:
    trained: the method.
    batch: streams of labeled and unlabeled images, as in training.
    palette: colors of the classes.
    num_pictures: largest number of rows of a panel.
    mesh: devices; each of them processes the whole batch.
    stream: name of the stream of unlabeled images.
  """

  trained: HasPanels
  batch: Mapping[str, Any]
  palette: tuple[panels.Color, ...]
  num_pictures: int
  mesh: Mesh
  stream: str = 'unlabeled'

  def __call__(self, state: train_state.TrainState) -> tensorboard.Summaries:
    """Returns the image 'teacher/panels'.

    Pixels that the student does not learn are gray in the last column; entropy
    is white at log C.
    """
    outputs = jax.device_get(self._compute(state, self.batch))
    rows = []
    for i in range(min(self.num_pictures, len(outputs['student']))):
      rows.append(
        [
          self.batch[self.stream]['image'][i],
          panels.colorize_label_map(outputs['weak_labels'][i], self.palette),
          panels.colorize_label_map(outputs['student'][i], self.palette),
          batch_lib.batch_images_to_uint8(outputs['images'][i]),
          _gray(outputs['entropy'][i] / np.log(self.trained.num_classes)),
          panels.colorize_label_map(outputs['labels'][i], self.palette),
        ]
      )
    return tensorboard.Summaries(
      {}, {'teacher/panels': panels.draw_picture_grid(rows, _TITLES)}
    )

  @functools.cached_property
  def _compute(self):
    def compute(state, batch):
      # A fixed key: panels of different steps show the same mixing.
      output = self.trained.panel_output(state, batch, jax.random.PRNGKey(0))
      images = batch_lib.batch_images_to_symmetric(batch[self.stream]['image'])
      logits = self.trained.segmenter.apply(
        train_state.train_state_variables(state), images, heads=('logits',)
      )['logits']
      scores = pseudo_labels.upsample_teacher_scores(logits, images.shape[1:3])
      return {
        'student': jnp.argmax(scores, axis=-1).astype(jnp.int32),
        **output._asdict(),
      }

    return jax.jit(
      compute, out_shardings=sharding.replicated_sharding(self.mesh)
    )


def _gray(values: np.ndarray) -> np.ndarray:
  """Returns values from 0 to 1 as gray RGB images."""
  gray = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
  return np.repeat(gray[..., None], 3, axis=-1)
