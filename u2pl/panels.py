"""Pictures of what the teacher makes of the same few images, as they learn."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from input_pipeline import batch as batch_lib
from segcore.distributed import sharding
from segcore.eval import panels
from segcore.train import tensorboard
from u2pl import pseudo_labels
from u2pl.semi import mean_teacher

# Of images as they came, then of the same images mixed.
_TITLES = (
  *('unlabeled', 'pseudo-label', 'student'),
  *('mixed image', 'entropy', 'reliable labels'),
)


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherPanels:
  """Panels of unlabeled images; the same on every host.

  Attributes:
    trained: the method.
    batch: the streams 'labeled' and 'unlabeled', as training has them.
    palette: colors of the classes.
    num_pictures: rows of a panel.
    mesh: the devices; each looks at everything.
  """

  trained: mean_teacher.MeanTeacher
  batch: Mapping[str, Any]
  palette: tuple[panels.Color, ...]
  num_pictures: int
  mesh: Mesh

  def __call__(self, state: mean_teacher.State) -> tensorboard.Summaries:
    """Unreliable pixels are gray; bright entropy is high, up to log C."""
    found = jax.device_get(self._look(state, self.batch))
    rows = []
    for i in range(min(self.num_pictures, len(found['student']))):
      believed = np.where(found['reliable'][i], found['labels'][i], -1)
      rows.append(
        [
          self.batch['unlabeled']['image'][i],
          panels.colorize(found['clean_labels'][i], self.palette),
          panels.colorize(found['student'][i], self.palette),
          batch_lib.to_uint8(found['images'][i]),
          _gray(found['entropy'][i] / np.log(self.trained.num_classes)),
          panels.colorize(believed, self.palette),
        ]
      )
    return tensorboard.Summaries(
      {}, {'teacher/panels': panels.draw_grid(rows, _TITLES)}
    )

  @functools.cached_property
  def _look(self):
    def look(state, batch):
      _, guess = self.trained.guess(state, batch, jax.random.PRNGKey(0))
      images = batch_lib.to_symmetric(batch['unlabeled']['image'])
      student = self.trained.apply(
        {'params': state.params, 'batch_stats': state.batch_stats},
        images,
        ('logits',),
      )['logits']
      student = jnp.argmax(
        pseudo_labels.upsample(student, images.shape[1:3]), axis=-1
      )
      return {
        'student': student.astype(jnp.int32),
        **{
          name: getattr(guess, name)
          for name in (
            *('images', 'labels', 'clean_labels', 'entropy', 'reliable'),
          )
        },
      }

    return jax.jit(look, out_shardings=sharding.replicated(self.mesh))


def _gray(values: np.ndarray) -> np.ndarray:
  """Values from 0 to 1 as gray, RGB."""
  gray = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
  return np.repeat(gray[..., None], 3, axis=-1)
