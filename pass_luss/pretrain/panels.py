"""Pictures and figures of representation learning, from a few fixed images."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, UInt8

from input_pipeline import batch as batch_lib
from pass_luss.pretrain import embedding_ops, method
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain.objectives import swav
from runtime import console
from segcore.distributed import sharding
from segcore.eval import panels
from segcore.train import tensorboard

# Below these, everything looks the same to the network.
_LEAST_USAGE = 0.2
_LEAST_SPREAD = 0.002
# Color of the overlap's border.
_BORDER = (255, 220, 0)


@dataclasses.dataclass(eq=False)
class PretrainPanels:
  """What training makes of the same few images; the same on every host.

  Attributes:
    trained: the method.
    batch: its views, boxes and mirrors, as training has them.
    num_pictures: images of a panel.
    mesh: the devices; each looks at everything.
  """

  trained: method.Pretrain
  batch: Mapping[str, Any]
  num_pictures: int
  mesh: Mesh
  _warned: bool = False

  def __call__(self, state: method.State) -> tensorboard.Summaries:
    """Draws the overlaps; says once if everything has become the same."""
    found = jax.device_get(self._look(state, self.batch))
    views = found.pop('views')
    scalars = {f'watch/{name}': float(value) for name, value in found.items()}
    told = collapse(scalars)
    if told and not self._warned:
      self._warned = True
      console.log(told)
    rows = []
    for i in range(min(self.num_pictures, len(views['large']))):
      boxes, flips = self.batch['box_large'][i], self.batch['flip_large'][i]
      corners = overlap_corners(np.asarray(boxes), np.asarray(flips))
      row = []
      for view in (0, 1):
        image = batch_lib.to_uint8(views['large'][i, view])
        row.append(framed(image, corners[view]))
      for view in views.get('small', np.zeros((i + 1, 0)))[i]:
        image = batch_lib.to_uint8(view)
        size = row[0].shape[1::-1]
        row.append(cv2.resize(image, size, interpolation=cv2.INTER_NEAREST))
      rows.append(row)
    titles = ['first view', 'second view']
    titles += [f'small {k + 1}' for k in range(len(rows[0]) - 2)]
    panel = panels.draw_grid(rows, tuple(titles))
    return tensorboard.Summaries(scalars, {'views/panels': panel})

  @functools.cached_property
  def _look(self):
    def look(state, batch):
      views = self.trained.views(batch, jax.random.PRNGKey(0))
      flat = views['large'].reshape(-1, *views['large'].shape[2:])
      deep = self.trained.predict(state, flat)
      pooled = embedding_ops.l2_normalize(
        jnp.mean(deep.astype(jnp.float32), axis=(1, 2))
      )
      found = {
        'views': views,
        'feature_spread': swav.embedding_deviation(pooled),
      }
      clusters = self.trained.options.clusters
      if clusters:
        scores = self.trained.segmenter.apply(
          {'params': state.params, 'batch_stats': state.batch_stats},
          flat,
          heads=('clusters',),
        )['clusters']
        probs = jax.nn.softmax(scores / clusters.temperature)
        found['prototype_usage'] = prototypes_lib.usage(probs)
      return found

    return jax.jit(look, out_shardings=sharding.replicated(self.mesh))


def collapse(scalars: Mapping[str, float]) -> str:
  """What is to be said if everything looks the same to the network; or ''."""
  usage = scalars.get('watch/prototype_usage', 1.0)
  spread = scalars['watch/feature_spread']
  if usage >= _LEAST_USAGE and spread >= _LEAST_SPREAD:
    return ''
  return (
    f'warning: the features have collapsed (prototype usage {usage:.3f}, '
    f'spread of features {spread:.3f}, of 1): all images look the same to '
    'the network; lower the learning rate, or raise epsilon'
  )


def overlap_corners(
  boxes: Float[np.ndarray, '2 4'], flips: Bool[np.ndarray, '2']
) -> list[tuple[float, float, float, float] | None]:
  """Where the overlap is in each view: top, left, bottom, right in [0, 1].

  None where there is none.
  """
  low = boxes[:, :2].max(axis=0)
  high = (boxes[:, :2] + boxes[:, 2:]).min(axis=0)
  if (high <= low).any():
    return [None, None]
  found = []
  for box, flip in zip(boxes, flips, strict=True):
    top, left = (low - box[:2]) / box[2:]
    bottom, right = (high - box[:2]) / box[2:]
    if flip:
      left, right = 1 - right, 1 - left
    found.append((float(top), float(left), float(bottom), float(right)))
  return found


def framed(
  image: UInt8[np.ndarray, 'h w 3'],
  corners: tuple[float, float, float, float] | None,
) -> UInt8[np.ndarray, 'h w 3']:
  """The image with a border around a part of it."""
  image = np.array(image)  # OpenCV draws into it.
  if corners is None:
    return image
  height, width = image.shape[:2]
  top, left, bottom, right = corners
  first = (round(left * (width - 1)), round(top * (height - 1)))
  last = (round(right * (width - 1)), round(bottom * (height - 1)))
  return cv2.rectangle(image, first, last, _BORDER, 1)
