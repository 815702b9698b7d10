"""TensorBoard panels and a collapse check of pretraining, on fixed images."""

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
from pass_luss.pretrain import embedding_ops, objective, view_axis
from pass_luss.pretrain import method as method_lib
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain.objectives import swav
from runtime import console
from segcore.distributed import sharding
from segcore.eval import panels
from segcore.train import tensorboard

# Below these, features or assignments count as collapsed: the same for all
# images.
_MIN_USAGE = 0.2
_MIN_DEVIATION = 0.002
# RGB of the rectangle drawn around the overlap.
_OVERLAP_COLOR = (255, 220, 0)


@dataclasses.dataclass(eq=False)
class PretrainPanels:
  """Computes monitoring scalars and draws the views of a few fixed images.

  Attributes:
    method: the method that is trained.
    batch: images, with views, boxes and flips as in training; the same on every
      host.
    num_pictures: number of images drawn.
    mesh: the devices, each of which computes everything.
  """

  method: method_lib.Pretrain
  batch: Mapping[str, Any]
  num_pictures: int
  mesh: Mesh
  _warned: bool = False

  def __call__(self, state: objective.State) -> tensorboard.Summaries:
    """Returns the panel and scalars; warns once if features have collapsed."""
    outputs = jax.device_get(self._evaluate(state, self.batch))
    views = outputs.pop('views')
    scalars = {f'watch/{name}': float(v) for name, v in outputs.items()}
    warning = collapse_warning(scalars)
    if warning and not self._warned:
      self._warned = True
      console.print_line(warning)
    count = min(self.num_pictures, len(views['large']))
    rows = [self._draw_views(views, i) for i in range(count)]
    titles = ['first view', 'second view'][: views['large'].shape[1]]
    titles += [f'small {k + 1}' for k in range(len(rows[0]) - len(titles))]
    panel = panels.draw_picture_grid(rows, tuple(titles))
    return tensorboard.Summaries(scalars, {'views/panels': panel})

  def _draw_views(
    self, views: Mapping[str, np.ndarray], index: int
  ) -> list[UInt8[np.ndarray, '_ _ 3']]:
    """Draws the views of an image, the overlap marked in the large ones."""
    large = views['large'][index]
    corners = [None]  # One view overlaps with nothing.
    if len(large) == 2:
      corners = view_overlap_corners(
        np.asarray(self.batch['box_large'][index]),
        np.asarray(self.batch['flip_large'][index]),
      )
    pictures = [
      draw_overlap_rectangle(batch_lib.batch_images_to_uint8(view), corner)
      for view, corner in zip(large, corners, strict=True)
    ]
    size = pictures[0].shape[1::-1]
    for name in sorted(views.keys() - {'large'}):
      for view in views[name][index]:
        image = batch_lib.batch_images_to_uint8(view)
        pictures.append(
          cv2.resize(image, size, interpolation=cv2.INTER_NEAREST_EXACT)
        )
    return pictures

  @functools.cached_property
  def _evaluate(self):
    """Compiles the function from state and batch to views and scalars."""
    objectives = self.method.objectives
    clusters = next((o for o in objectives if isinstance(o, swav.Swav)), None)

    def evaluate(state, batch):
      # A fixed key: the same colors at every evaluation.
      views = self.method.views(batch, jax.random.PRNGKey(0))
      images = view_axis.merge_view_axis(views['large'])
      deep = self.method.predict(state, images)
      pooled = jnp.mean(deep.astype(jnp.float32), axis=(1, 2))
      outputs = {
        'views': views,
        'feature_spread': swav.embedding_deviation(
          embedding_ops.l2_normalize_embeddings(pooled)
        ),
      }
      if clusters:
        scores = self.method.segmenter.apply(
          {'params': state.params, 'batch_stats': state.batch_stats},
          images,
          heads=('clusters',),
        )['clusters']
        probs = jax.nn.softmax(scores / clusters.options.temperature)
        outputs['prototype_usage'] = prototypes_lib.prototype_usage(probs)
      return outputs

    return jax.jit(
      evaluate, out_shardings=sharding.replicated_sharding(self.mesh)
    )


def collapse_warning(scalars: Mapping[str, float]) -> str | None:
  """Returns a warning if features or assignments have collapsed, else None.

  Args:
    scalars: 'watch/feature_spread', and 'watch/prototype_usage' if there are
      prototypes.
  """
  usage = scalars.get('watch/prototype_usage', 1.0)
  deviation = scalars['watch/feature_spread']
  if usage >= _MIN_USAGE and deviation >= _MIN_DEVIATION:
    return None
  return (
    f'warning: the features have collapsed (prototype usage {usage:.3f}, '
    f'spread of features {deviation:.3f}, of 1): they are the same for all '
    'images; lower the learning rate, or raise epsilon'
  )


def view_overlap_corners(
  boxes: Float[np.ndarray, '2 4'], flips: Bool[np.ndarray, '2']
) -> list[tuple[float, float, float, float] | None]:
  """Computes where the overlap is in each view.

  Args:
    boxes: (top, left, height, width) of both views in the image.
    flips: whether each view is flipped, left to right.

  Returns:
    Top, left, bottom and right in [0, 1], for each view; None without overlap.
  """
  low = boxes[:, :2].max(axis=0)
  high = (boxes[:, :2] + boxes[:, 2:]).min(axis=0)
  if (high <= low).any():
    return [None, None]
  corners = []
  for box, flip in zip(boxes, flips, strict=True):
    top, left = (low - box[:2]) / box[2:]
    bottom, right = (high - box[:2]) / box[2:]
    if flip:
      left, right = 1 - right, 1 - left
    corners.append((float(top), float(left), float(bottom), float(right)))
  return corners


def draw_overlap_rectangle(
  image: UInt8[np.ndarray, 'h w 3'],
  corners: tuple[float, float, float, float] | None,
) -> UInt8[np.ndarray, 'h w 3']:
  """Returns a copy of the image with a rectangle of one pixel's width.

  Args:
    image: image, which is not changed.
    corners: top, left, bottom and right in [0, 1]; None for no rectangle.
  """
  image = np.array(image)  # A copy: OpenCV draws in place.
  if corners is None:
    return image
  height, width = image.shape[:2]
  top, left, bottom, right = corners
  first = (round(left * (width - 1)), round(top * (height - 1)))
  last = (round(right * (width - 1)), round(bottom * (height - 1)))
  return cv2.rectangle(image, first, last, _OVERLAP_COLOR, 1)
