"""PCL v2: MoCo v2, and each image against the prototypes of its clusters.

Li et al., arXiv:2005.04966 (spec §2.7). Between epochs, of all images i:

  x_i = n(g'(pool(f'(image i))))           momentum encoder, evaluation mode
  a_i, c = k-means(x) at three numbers of clusters;  then c ← n(c)
  φ_c = mean_{a_i = c} |x_i - c| / log(n_c + 10)      density (Eq. 12)

In a step, with the query q of view 1 and MoCo's ring of keys:

  L = InfoNCE(q, k, ring; T)
    + mean over the clusterings of CE([q·c / φ_c], c_{a_i})  (ProtoNCE, Eq. 11)

over the prototypes of the batch and some that are no image's own.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pass_luss.pretrain import comparator_options, contrast, objective
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import moco
from segcore.ops import losses
from segcore.types import Scalar

# Percentiles between which densities are clipped.
_LOW, _HIGH = 10, 90


@flax.struct.dataclass
class Prototypes:
  """Prototypes of a clustering of all images, with their densities.

  Attributes:
    centroids: float32 [K, D], L2-normalized.
    densities: float32 [K], φ.
    assignments: int32 [N], the cluster of each image.
  """

  centroids: Any
  densities: Any
  assignments: Any


@flax.struct.dataclass
class Memory:
  """Ring of keys and clusterings, which PCL keeps from step to step.

  Attributes:
    ring: ring of keys.
    clusterings: `Prototypes` of each number of clusters.
    is_clustered: bool [], whether they have been computed.
  """

  ring: Any
  clusterings: Any
  is_clustered: Any


class Pcl(moco.RingObjective):
  """The PCL objective: a query of view 1, a key of view 2, and prototypes."""

  options: comparator_options.PclOptions

  name = 'pcl'

  @property
  def needs_embeddings(self) -> objective.EmbeddingSpec:
    """Returns the schedule of the clusterings: one before each epoch."""
    options = self.options
    return objective.EmbeddingSpec(
      options.from_step,
      options.every,
      options.num_images,
      options.short_side,
      options.crop,
    )

  def initial_memory(self, rng: Array) -> Memory:
    """Builds the ring of keys, of noise, and no clusterings."""
    size, count = self.options.size, self.options.num_images
    clusterings = tuple(
      Prototypes(jnp.zeros((k, size)), jnp.ones(k), jnp.zeros(count, jnp.int32))
      for k in self.options.clusters
    )
    ring = queue_lib.random_ring(rng, self.options.queue, size)
    return Memory(ring, clusterings, jnp.array(False))

  def targets(self, step: objective.Step) -> objective.Arrays:
    """Selects each image's cluster, and draws negatives, by clustering."""
    targets = {}
    for i, clustering in enumerate(step.state.memory[self.name].clusterings):
      own = clustering.assignments[step.batch['index']]
      num_clusters = len(clustering.centroids)
      targets[f'own{i}'] = own
      targets[f'drawn{i}'] = sample_negative_prototypes(
        jax.random.fold_in(step.rng, i),
        own,
        num_clusters,
        min(self.options.negatives, num_clusters - len(own)),
      )
    return targets

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes both terms of L; the second is 0 before the first clustering."""
    queries = step.outputs[self.name]['queries'][:, 0]
    memory, targets = step.state.memory[self.name], step.targets[self.name]
    prototypes = [
      proto_nce_loss(
        queries, clustering, targets[f'own{i}'], targets[f'drawn{i}']
      )
      for i, clustering in enumerate(memory.clusterings)
    ]
    mean = sum(prototypes) / len(prototypes)
    terms = {
      'loss_pcl_images': self.image_loss(step, memory.ring),
      'loss_pcl_prototypes': jnp.where(memory.is_clustered, mean, 0.0),
    }
    return objective.LossTerms(terms, {})

  def after_update(
    self, step: objective.Step, new: objective.State
  ) -> objective.State:
    """Writes the keys of this step into the ring."""
    memory = step.state.memory[self.name]
    memory = memory.replace(ring=self.write_keys(step, memory.ring))
    return new.with_memory(self.name, memory)


def sample_negative_prototypes(
  rng: Array, own: Int[Array, 'B'], num_clusters: int, count: int
) -> Int[Array, 'R']:
  """Draws prototypes without replacement of those that are no image's own.

  Args:
    rng: random key.
    own: cluster of each image of the batch.
    num_clusters: number K of clusters, at least `count` + B.
    count: number R of prototypes that are drawn.
  """
  # The R largest of uniform scores are a draw without replacement.
  scores = jax.random.uniform(rng, (num_clusters,)).at[own].set(-1.0)
  return jax.lax.top_k(scores, count)[1]


def proto_nce_loss(
  queries: Float[Array, 'B D'],
  clustering: Prototypes,
  own: Int[Array, 'B'],
  drawn: Int[Array, 'R'],
) -> Scalar:
  """Computes the cross entropy of queries with the prototypes of their images.

  mean_i -log softmax([q_i·c_{a_j} / φ_{a_j}] over j, [q_i·c_r / φ_r] over r)_i

  As in the official code, a prototype that two images share is a negative of
  either, too.

  Args:
    queries: L2-normalized queries.
    clustering: prototypes c and their densities φ.
    own: cluster a of each image of the batch.
    drawn: further clusters r, as negatives.
  """
  queries = losses.at_least_float32(queries)

  def normalizer(chosen: Int[Array, 'M']) -> Float[Array, 'B']:
    logits = contrast.row_similarities(queries, clustering.centroids[chosen])
    return jax.scipy.special.logsumexp(
      logits / clustering.densities[chosen], axis=-1
    )

  # Apart: those of the batch come from all devices, the drawn ones from none.
  normalizers = jnp.logaddexp(normalizer(own), normalizer(drawn))
  positive = jnp.sum(queries * clustering.centroids[own], axis=-1)
  return jnp.mean(normalizers - positive / clustering.densities[own])


def prototype_densities(
  embeddings: Float[np.ndarray, 'N D'],
  centroids: Float[np.ndarray, 'K D'],
  assignments: Int[np.ndarray, 'N'],
  temperature: float,
) -> Float[np.ndarray, 'K']:
  """Computes the densities φ, whose mean is the temperature.

  φ_c = mean |x_i - c| / log(n_c + 10) of the n_c members of a cluster; clusters
  with fewer than two take the largest. All are clipped to their 10th and 90th
  percentile and scaled.

  Args:
    embeddings: L2-normalized embeddings x.
    centroids: centroids c, not normalized.
    assignments: cluster of each embedding.
    temperature: mean of the result.
  """
  counts = np.bincount(assignments, minlength=len(centroids))
  distances = np.linalg.norm(embeddings - centroids[assignments], axis=-1)
  sums = np.bincount(assignments, distances, minlength=len(centroids))
  densities = sums / np.maximum(counts, 1) / np.log(counts + 10)
  densities[counts < 2] = np.max(densities, where=counts > 1, initial=0)
  low, high = np.percentile(densities, (_LOW, _HIGH))
  densities = np.clip(densities, low, high)
  if not densities.any():  # All embeddings are equal to their centroids.
    return np.full(len(densities), temperature)
  return temperature * densities / np.mean(densities)


def make_prototypes(
  embeddings: Float[np.ndarray, 'N D'],
  centroids: Float[np.ndarray, 'K D'],
  assignments: Int[np.ndarray, 'N'],
  temperature: float,
) -> Prototypes:
  """Builds the prototypes of a clustering; arguments as of the densities."""
  densities = prototype_densities(
    embeddings, centroids, assignments, temperature
  )
  norms = np.linalg.norm(centroids, axis=-1, keepdims=True)
  return Prototypes(
    (centroids / np.maximum(norms, 1e-12)).astype(np.float32),
    densities.astype(np.float32),
    assignments.astype(np.int32),
  )
