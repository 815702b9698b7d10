"""AdCo: MoCo v2 whose negatives are trained to be hard.

Hu et al., arXiv:2011.08435 (spec §2.4):

  d_j = W_j / |W_j|                           negatives
  l   = [q Kᵀ, q D]                           keys K of the batch, and negatives
  L   = CE(l / T, own key)                    minimized by the encoder
  g_j = -∂/∂W_j mean_i -log softmax(l_i / τ)_own
  V ← 0.9 V + g + 1e-4 W,  W ← W - 3 V        after the step: W maximizes

Plain: query of view 1, key of view 2. Symmetric: both views through both
networks; L and g are means of the two. Multi-crop: key of view 1, queries of
view 2 and of smaller views; L and g are sums over the queries.

Before that, K / B steps store the keys in W, symmetric those of view 2: each is
InfoNCE of the first query against W alone, and after the last the momentum
encoder is made equal to the encoder.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import (
  comparator_options,
  contrast,
  embedding_ops,
  objective,
)
from pass_luss.pretrain.objectives import moco
from segcore.models import segmenter
from segcore.ops import losses
from segcore.types import Scalar

Embeddings = Float[Array, 'B D']


class _Views(NamedTuple):
  """Numbers of the large views of the queries and of the keys."""

  queries: tuple[int, ...]
  keys: tuple[int, ...]


_VIEWS: dict[comparator_options.AdcoVariant, _Views] = {
  'plain': _Views((0,), (1,)),
  'symmetric': _Views((0, 1), (0, 1)),
  'multi_crop': _Views((1,), (0,)),
}


@flax.struct.dataclass
class Negatives:
  """Negatives of AdCo and the momentum of their training.

  Attributes:
    rows: float32 [K, D], W: not normalized.
    velocity: float32 [K, D], V: momentum of their SGD.
  """

  rows: Any
  velocity: Any


class Adco(moco.KeyObjective):
  """The AdCo objective: keys of the batch and trained negatives."""

  options: comparator_options.AdcoOptions

  name = 'adco'

  @property
  def views(self) -> tuple[int, ...]:
    """Returns the numbers of the large views of the queries."""
    return _VIEWS[self.options.variant].queries

  @property
  def momentum_views(self) -> tuple[int, ...]:
    """Returns the numbers of the views of the keys."""
    return _VIEWS[self.options.variant].keys

  def initial_memory(self, rng: Array) -> Negatives:
    """Builds negatives of Gaussian noise, with a velocity of 0."""
    shape = self.options.negatives, self.options.size
    return Negatives(jax.random.normal(rng, shape), jnp.zeros(shape))

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Embeds the views of the queries, the large ones first: q [B, V, D]."""
    maps = [views.view(number) for number in self.views]
    if self.options.reads_smaller_views:
      maps += views.smaller
    return {'queries': self.embed(net, maps)}

  def _pairs(self, step: objective.Step) -> list[tuple[Embeddings, Embeddings]]:
    """Pairs queries with keys of another view, the first query first.

    Two keys are of the two views of the queries, and swapped; one key is that
    of all queries.
    """
    queries = step.outputs[self.name]['queries']
    keys = step.momentum_outputs[self.name]['keys'][:, ::-1]
    return [
      (queries[:, i], keys[:, i % keys.shape[1]])
      for i in range(queries.shape[1])
    ]

  def _combine(self, terms: list[Array]) -> Array:
    """Computes the mean over pairs; of multi-crop the sum."""
    total = sum(terms)
    if self.options.variant == 'multi_crop':
      return total
    return total / len(terms)

  def _is_initial(self, step: objective.Step) -> Bool[Array, '']:
    """Returns whether this step only fills the negatives."""
    return step.state.step < self._num_initial_steps(step)

  def _num_initial_steps(self, step: objective.Step) -> int:
    """Returns the number of steps that fill the negatives, K / B."""
    return self.options.negatives // len(step.outputs[self.name]['queries'])

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes the loss L over all pairs; at first of the first one.

    Of multi-crop, 'loss_adco' is the loss of the first query, as in the other
    variants and in the released code; 'loss_adco_crops' is minimized.
    """
    negatives = step.state.memory[self.name].rows
    is_initial = self._is_initial(step)
    terms = [
      adco_loss(
        queries,
        keys,
        negatives,
        self.options.temperature,
        ~is_initial,
      )
      for queries, keys in self._pairs(step)
    ]
    loss = jnp.where(is_initial, terms[0], self._combine(terms))
    if self.options.variant == 'multi_crop':
      return objective.LossTerms(
        {'loss_adco_crops': loss}, {'loss_adco': terms[0]}
      )
    return objective.LossTerms({'loss_adco': loss}, {})

  def after_update(
    self, step: objective.Step, new: objective.State
  ) -> objective.State:
    """Updates the negatives; at first, stores the keys in them."""
    old, is_initial = step.state.memory[self.name], self._is_initial(step)
    pairs = jax.lax.stop_gradient(self._pairs(step))
    gradients = [
      negative_gradient(*pair, old.rows, self.options.negative_temperature)
      for pair in pairs
    ]
    trained = train_negatives(old, self._combine(gradients), self.options)
    keys = pairs[0][1].astype(old.rows.dtype)
    position = (step.state.step * len(keys), jnp.zeros_like(step.state.step))
    filled = Negatives(
      jax.lax.dynamic_update_slice(old.rows, keys, position), old.velocity
    )
    negatives = _choose(is_initial, filled, trained)
    is_last = step.state.step == self._num_initial_steps(step) - 1
    params = _choose(
      is_last, self.needs_momentum.select(new.params), new.momentum_params
    )
    return new.with_memory(self.name, negatives).replace(momentum_params=params)


def _choose(condition: Bool[Array, ''], one: Any, other: Any) -> Any:
  """Selects one of two trees of arrays by a traced condition."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def adco_logits(
  queries: Embeddings, keys: Embeddings, negatives: Float[Array, 'K D']
) -> Float[Array, 'B B+K']:
  """Computes l = [q Kᵀ, q D], cosines with the keys and with the negatives.

  Args:
    queries: L2-normalized queries q.
    keys: L2-normalized keys of all images of the batch.
    negatives: negatives W, not normalized.
  """
  directions = embedding_ops.l2_normalize_embeddings(negatives)
  queries = losses.at_least_float32(queries)
  return jnp.concatenate(
    [
      contrast.row_similarities(queries, keys),
      contrast.row_similarities(queries, directions),
    ],
    axis=-1,
  )


def adco_loss(
  queries: Embeddings,
  keys: Embeddings,
  negatives: Float[Array, 'K D'],
  temperature: float,
  all_keys: Bool[Array, ''] | bool = True,
) -> Scalar:
  """Computes CE(l / T, own key), the mean over the batch.

  Args:
    queries: L2-normalized queries.
    keys: L2-normalized keys of all images of the batch.
    negatives: negatives W, not normalized.
    temperature: temperature T.
    all_keys: whether the keys of other images are negatives, too.
  """
  logits = adco_logits(queries, keys, negatives) / temperature
  own = jnp.eye(*logits.shape, dtype=bool)
  is_other_key = (jnp.arange(logits.shape[1]) < len(keys)) & ~own
  logits = jnp.where(is_other_key & ~jnp.asarray(all_keys), -jnp.inf, logits)
  normalizer = jax.scipy.special.logsumexp(logits, axis=-1)
  # Not the diagonal of the logits, which would gather them from all devices.
  positive = jnp.sum(losses.at_least_float32(queries) * keys, axis=-1)
  return jnp.mean(normalizer - positive / temperature)


def negative_gradient(
  queries: Embeddings,
  keys: Embeddings,
  negatives: Float[Array, 'K D'],
  temperature: float,
) -> Float[Array, 'K D']:
  """Computes g, minus the gradient of the loss at τ with respect to W.

  g_j = -1 / (τ |W_j|) [mean_i p_ij q_i - (mean_i p_ij q_i·d_j) d_j] with
  p = softmax(l / τ).

  Args:
    queries: L2-normalized queries.
    keys: L2-normalized keys of all images of the batch.
    negatives: negatives W, not normalized.
    temperature: temperature τ.
  """
  cosines = adco_logits(queries, keys, negatives)
  probs = jax.nn.softmax(cosines / temperature)[:, len(keys) :]
  cosines = cosines[:, len(keys) :]
  directions = embedding_ops.l2_normalize_embeddings(negatives)
  norms = jnp.linalg.norm(negatives, axis=-1, keepdims=True)
  pull = jnp.einsum(
    'ij,id->jd', probs, queries, precision=embedding_ops.EXACT
  ) / len(queries)
  along = jnp.mean(probs * cosines, axis=0)[:, None]
  return -(pull - along * directions) / (temperature * norms)


def train_negatives(
  negatives: Negatives,
  gradient: Float[Array, 'K D'],
  options: comparator_options.AdcoOptions,
) -> Negatives:
  """Computes a step of SGD with momentum and weight decay."""
  velocity = (
    options.negative_momentum * negatives.velocity
    + gradient
    + options.negative_weight_decay * negatives.rows
  )
  rows = negatives.rows - options.negative_learning_rate * velocity
  return Negatives(rows, velocity)
