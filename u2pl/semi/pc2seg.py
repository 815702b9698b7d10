"""PC2Seg-like: two views agree on labels and on features.

A guess. Of PC2Seg (Zhong et al. 2021, "Pixel Contrastive-Consistent
Semi-Supervised Semantic Segmentation") there is no public code, and only its
abstract and introduction were read. They state the squared error between the
predictions of two views, and InfoNCE between features of the same pixel with
negatives of other images whose pseudo-label differs. All that is marked with
"guess" here is this project's choice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.batch import Batch
from segcore import types
from segcore.models.layers import resize
from segcore.ops import losses as pixel_losses
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult, TrainState
from u2pl import pseudo_labels
from u2pl.semi import cutout_views, losses, method, pseudoseg_options, student

CellFeatures = Float[Array, 'B N D']


class Cells(NamedTuple):
  """Cells of each image that the contrastive loss reads.

  Attributes:
    indices: row · w + column of each cell.
    usable: cells that count; the others fill up the number.
  """

  indices: Int[Array, 'B N']
  usable: Bool[Array, 'B N']


class Pc2Seg(method.SemiSupervised):
  """Consistency of labels and features between two views."""

  options: pseudoseg_options.Pc2SegOptions

  def train_step(self, state: TrainState, batch: Batch) -> StepResult:
    """Runs one step of the PC2Seg-like system."""
    options, rng = self.options, jax.random.fold_in(state.rng, state.step)
    view_rng, cell_rng, *pass_rngs = jax.random.split(rng, 5)
    labeled, weak = method.stream_images(batch)
    keys = update_lib.row_prng_keys(view_rng, len(weak))
    draws = cutout_views.sample_view_draws(keys, options.views)
    known = losses.known_pixels(batch)
    strong, seen = cutout_views.strong_views(weak, draws, options.views, known)
    # Padding, and what the strong view does not show, teaches nothing.
    counted = known & seen

    def loss(params):
      # Guess: one pass each, in training mode.
      outputs, stats = [], state.batch_stats
      for images, key in zip((labeled, weak, strong), pass_rngs, strict=True):
        output, stats = self.forward(params, stats, images, key)
        outputs.append(output)
      of_labeled, of_weak, of_strong = outputs
      weight = self.unlabeled_weight(state, options.weight)
      terms = {
        'loss_supervised': self.supervised_loss(
          of_labeled, batch['labeled']['label']
        ),
        'loss_unsupervised': weight
        * options.consistency
        * label_consistency(of_weak['logits'], of_strong['logits'], counted),
        'loss_contrast': weight
        * options.contrast
        * self.feature_contrast(of_weak, of_strong, counted, cell_rng),
      }
      return sum(terms.values()), (terms, stats)

    return student.gradient_step(self.update, state, loss)

  def feature_contrast(
    self,
    weak: dict[str, Array],
    strong: dict[str, Array],
    counted: Bool[Array, 'B H W'],
    rng: Array,
  ) -> types.Scalar:
    """Computes the contrastive loss of random cells.

    Args:
      weak: outputs of the weak view by head.
      strong: outputs of the strong view by head.
      counted: pixels that count.
      rng: key of cells and negatives.
    """
    options, size = self.options, weak['rep'].shape[1:3]
    labels = jnp.argmax(
      pseudo_labels.upsample_teacher_scores(weak['logits'], size), axis=-1
    )
    counted = resize.resize_nearest_floor(counted, size)
    keys = update_lib.row_prng_keys(rng, len(labels))
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, size))(keys)
    cells = choose_cells(uniforms, counted, options.num_cells)
    pool = cells.indices.size
    shape = cells.indices.shape[1], pool
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
    negatives, usable = choose_negatives(
      uniforms, _at_cells(labels, cells), cells.usable, options.num_negatives
    )
    anchors, positives = (
      _l2_normalize(_at_cells(x['rep'], cells)) for x in (strong, weak)
    )
    loss = info_nce(anchors, positives, negatives, usable, options.temperature)
    return pixel_losses.masked_mean(loss, cells.usable & usable.any(-1))


def label_consistency(
  weak: Float[Array, 'B h w C'],
  strong: Float[Array, 'B h w C'],
  counted: Bool[Array, 'B H W'],
) -> types.Scalar:
  """Computes the mean over pixels of |softmax(strong) - softmax(weak)|².

  Guess: the weak view has no gradient; the grid is that of the logits.

  Args:
    weak: logits of the weak view.
    strong: logits of the strong view.
    counted: pixels that count.
  """
  target = jax.nn.softmax(pixel_losses.at_least_float32(weak))
  predicted = jax.nn.softmax(pixel_losses.at_least_float32(strong))
  error = pixel_losses.squared_error(predicted, jax.lax.stop_gradient(target))
  counted = resize.resize_nearest_floor(counted, weak.shape[1:3])
  return pixel_losses.masked_mean(jnp.sum(error, axis=-1), counted)


def choose_cells(
  uniforms: Float[Array, 'B h w'], counted: Bool[Array, 'B h w'], number: int
) -> Cells:
  """Chooses cells of each image without replacement, of those that count.

  Args:
    uniforms: random number of each cell; the largest ones are chosen.
    counted: cells that count.
    number: number of cells; at most all.
  """
  priorities = jnp.where(counted, uniforms, -1.0).reshape(len(counted), -1)
  values, indices = jax.lax.top_k(priorities, min(number, priorities.shape[1]))
  return Cells(indices, values >= 0)


def choose_negatives(
  uniforms: Float[Array, 'B N P'],
  labels: Int[Array, 'B N'],
  usable: Bool[Array, 'B N'],
  number: int,
) -> tuple[Int[Array, 'B N K'], Bool[Array, 'B N K']]:
  """Chooses the negatives of each anchor, without replacement.

  They are cells of other images with another pseudo-label.

  Args:
    uniforms: random number of each of the P = B · N cells for each anchor; the
      largest ones are chosen.
    labels: pseudo-label of each cell.
    usable: cells that count.
    number: number of negatives; at most all cells.

  Returns:
    Indices into the P cells, and which of them are negatives.
  """
  count = labels.shape[1]
  own = jnp.arange(len(labels))
  other_image = jnp.repeat(own, count) != own[:, None]
  other_label = labels.reshape(-1) != labels[..., None]
  possible = other_image[:, None] & other_label & usable.reshape(-1)
  values, indices = jax.lax.top_k(
    jnp.where(possible, uniforms, -1.0), min(number, uniforms.shape[-1])
  )
  return indices, values >= 0


def info_nce(
  anchors: CellFeatures,
  positives: CellFeatures,
  negatives: Int[Array, 'B N K'],
  usable: Bool[Array, 'B N K'],
  temperature: float,
) -> Float[Array, 'B N']:
  """Computes -log(e^(a·p/τ) / (e^(a·p/τ) + Σ e^(a·n/τ))) of each anchor.

  Guess: negatives are features of the weak view, and both views have gradients.

  Args:
    anchors: L2-normalized features of the strong view.
    positives: those of the weak view, at the same cells.
    negatives: indices of each anchor's negatives into all cells of `positives`.
    usable: which of them are negatives.
    temperature: τ.
  """
  exact = jax.lax.Precision.HIGHEST
  pool = positives.reshape(-1, positives.shape[-1])
  own = jnp.sum(anchors * positives, axis=-1, keepdims=True)
  others = jnp.einsum('bnd,pd->bnp', anchors, pool, precision=exact)
  others = jnp.take_along_axis(others, negatives, axis=-1)
  others = jnp.where(usable, others, -jnp.inf)
  logits = jnp.concatenate([own, others], axis=-1) / temperature
  return jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]


def _at_cells(x: Array, cells: Cells) -> Array:
  """Returns the values [B, N, …] of a map [B, h, w, …] at chosen cells."""
  flat = x.reshape(len(x), -1, *x.shape[3:])
  return jax.vmap(lambda row, index: row[index])(flat, cells.indices)


def _l2_normalize(x: Float[Array, '... D']) -> Float[Array, '... D']:
  """Divides features by their norms."""
  x = pixel_losses.at_least_float32(x)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(square + 1e-12)
