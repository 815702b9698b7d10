"""MaskContrast: pixels are drawn to the mask of another view of their image.

Van Gansbeke et al. 2021, arXiv:2102.06191 (spec comparators §3.6):

  θ_k ← m θ_k + (1 - m) θ_q               before the step
  p_b = n(Σ n(e'(v_2)))                   prototype of each mask, of the
                                          momentum encoder
  q = n(e(v_1))                           all salient pixels of all images
  L = CE([q·P, q·ring] / T) + balanced saliency loss
  ring ← p                                after the step

Prototypes are those of the global batch, and batch statistics are, too: so the
result does not depend on the number of devices, and keys need no shuffling.
"""

import dataclasses

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pass_luss.dense import dense_options, mask_head, mask_losses
from pass_luss.pretrain import objective
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import moco
from segcore.models import segmenter
from segcore.models.layers import resize


@dataclasses.dataclass(frozen=True)
class MaskContrast(moco.RingObjective):
  """The objective of MaskContrast: view 1 has the queries, view 2 the keys.

  Batches have `label_large`, 1 where a pixel of a view is salient.

  Attributes:
    options: head, ring and momentum encoder.
  """

  options: dense_options.MaskContrastOptions

  name = dense_options.MASKS
  head_modules = mask_head.MODULES

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the head of embeddings and saliency, by its name."""
    options = self.options
    head = mask_head.MaskHead(
      options.size,
      options.width,
      options.dilations,
      options.dropout_rate,
      dtype=dtype,
    )
    return {self.name: head}

  def initial_memory(self, rng: Array) -> queue_lib.Ring:
    """Builds the ring of prototypes, of noise."""
    return queue_lib.random_ring(rng, self.options.queue, self.options.size)

  def momentum_outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Computes embeddings and saliency of the cells of view 2."""
    return self._cells(net, views, self.momentum_views)

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Computes embeddings and saliency of the cells of view 1."""
    return self._cells(net, views, self.views)

  def targets(self, step: objective.Step) -> objective.Arrays:
    """Computes the prototypes of the masks of view 2."""
    masks = salient_pixels(step.batch['label_large'], self.momentum_views[0])
    embeddings, _ = upsample_cells(
      step.momentum_outputs[self.name]['cells'], masks.shape[1:]
    )
    prototypes = mask_losses.mask_prototypes(embeddings, masks)
    return {'prototypes': jax.lax.stop_gradient(prototypes)}

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes the contrast and the saliency loss of view 1."""
    masks = salient_pixels(step.batch['label_large'], self.views[0])
    embeddings, saliency = upsample_cells(
      step.outputs[self.name]['cells'], masks.shape[1:]
    )
    contrast = mask_losses.mask_contrast_loss(
      embeddings,
      masks,
      step.targets[self.name]['prototypes'],
      step.state.memory[self.name].rows,
      self.options.temperature,
    )
    balanced = mask_losses.balanced_saliency_loss(saliency, masks)
    terms = {'loss_contrast': contrast, 'loss_saliency': balanced}
    return objective.LossTerms(terms, {})

  def after_update(
    self, step: objective.Step, new: objective.State
  ) -> objective.State:
    """Writes the prototypes of this step into the ring."""
    ring = queue_lib.write_ring(
      step.state.memory[self.name], step.targets[self.name]['prototypes']
    )
    return new.with_memory(self.name, ring)

  def _cells(
    self,
    net: segmenter.Segmenter,
    views: objective.EncodedViews,
    numbers: tuple[int, ...],
  ) -> objective.Arrays:
    maps = views.view(numbers[0])
    cells = net.heads.call_method(self.name, '__call__', maps, True)
    return {'cells': cells}


def salient_pixels(labels: Array, number: int) -> Bool[Array, 'B H W']:
  """Returns the salient pixels of a view.

  Args:
    labels: 1 where a pixel is salient, else 0; [B, V, H, W].
    number: number of the view.
  """
  return labels[:, number] > 0


def upsample_cells(
  cells: Float[Array, 'B h w E'], size: tuple[int, int]
) -> tuple[Float[Array, 'B H W D'], Float[Array, 'B H W']]:
  """Upsamples the outputs of the head bilinearly.

  Args:
    cells: embedding and saliency logit of each cell.
    size: height and width of the result.

  Returns:
    Embeddings, not normalized, and saliency logits.
  """
  upsampled = resize.resize_bilinear(cells, size)
  return upsampled[..., :-1], upsampled[..., -1]
