"""The clustering of the pixels of all images, at the start of each epoch."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pass_luss.dense import (
  dense_options,
  image_batches,
  losses,
  mini_batch_kmeans,
  pixel_clustering,
)
from runtime import console
from segcore.distributed import sharding
from segcore.train import train_state


@dataclasses.dataclass(frozen=True, eq=False)
class EpochClusters:
  """Computes the clusters of an epoch, which depend on the state alone.

  Attributes:
    method: MDC or PiCIE.
    images: base images with their indices.
    options: options of k-means.
    every: number of steps of an epoch.
    seed: seed of the order of the images.
  """

  method: pixel_clustering.PixelClustering
  images: image_batches.ImageBatches
  options: dense_options.KmeansOptions
  every: int
  seed: int

  def __call__(self, state: pixel_clustering.State) -> pixel_clustering.State:
    """Returns the state at the start of an epoch.

    Raises:
      Preempted: the machine asked to stop; the last checkpoint is kept.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)
    epoch = int(state.step) // self.every
    state = state.replace(view_key=pixel_clustering.epoch_key(state.rng, epoch))
    centroids = {}
    # One view after the other: the second one's network has the batch
    # statistics that the first one has left.
    for view in self.method.view_numbers:
      stats, of_view = self._cluster_view(state, view, epoch)
      state = state.replace(batch_stats=stats)
      centroids |= of_view
    counts = self._count_labels(state, centroids)
    clusterings = {
      name: pixel_clustering.Clustering(
        each, losses.cluster_frequencies(counts[name])
      )
      for name, each in centroids.items()
    }
    largest = max(float(jnp.max(x.weights)) for x in clusterings.values())
    console.print_line(
      f'epoch {epoch + 1}: clustered the pixels of {self.images.num_images:,} '
      f'images; the largest cluster has {largest:.0%}'
    )
    begin = jax.jit(self.method.begin_epoch, out_shardings=shardings)
    return begin(state, clusterings)

  def _cluster_view(
    self, state: pixel_clustering.State, view: int, epoch: int
  ) -> tuple[Any, dict[str, Float[Array, 'K D']]]:
    """Clusters the pixels of a view, in batches.

    The network is in training mode: its batch statistics change.

    Returns:
      Batch statistics, and centroids by the name of the clustering.
    """
    specs = [spec for spec in self.method.specs if spec.view == view]
    images, stats = self.images, state.batch_stats
    seed = np.random.SeedSequence((self.seed, epoch, view)).generate_state(1)

    def feature_batches() -> Iterator[Float[Array, 'B h w D']]:
      nonlocal stats
      for batch in images.read(images.num_whole, int(seed[0]) // 2):
        variables = {'params': state.params, 'batch_stats': stats}
        features, stats = self._features[view](variables, state.view_key, batch)
        yield features

    centroids = mini_batch_kmeans.cluster_batches(
      feature_batches(),
      [spec.count for spec in specs],
      min(self.options.initial_batches, images.num_whole),
      self.options.iterations,
      state.view_key,
      images.mesh,
    )
    names = [spec.name for spec in specs]
    return stats, dict(zip(names, centroids, strict=True))

  def _count_labels(
    self,
    state: pixel_clustering.State,
    centroids: Mapping[str, Float[Array, 'K D']],
  ) -> dict[str, Float[Array, 'K']]:
    """Counts the pixels of each cluster, over the views of all images."""
    variables = train_state.train_state_variables(state)
    count = -(-self.images.num_images // self.images.batch_size)
    totals = {name: jnp.zeros(len(each)) for name, each in centroids.items()}
    # The first N images of a stream of N are all of them.
    for i, batch in enumerate(self.images.read(count, self.seed)):
      totals = self._count(
        totals, variables, dict(centroids), state.view_key, batch, i
      )
    return totals

  @functools.cached_property
  def _features(self) -> dict[int, Callable[..., Any]]:
    """Returns the jitted features of each view, in training mode."""
    rows = sharding.batch_sharding(self.images.mesh)
    whole = sharding.replicated_sharding(self.images.mesh)

    def build(place: int) -> Callable[..., Any]:
      def features(variables, key, batch):
        view = self.method.views(batch, key)[place]
        return self.method.features(variables, view, train=True)

      return jax.jit(features, out_shardings=(rows, whole))

    return {view: build(i) for i, view in enumerate(self.method.view_numbers)}

  @functools.cached_property
  def _count(self) -> Callable[..., dict[str, Array]]:
    """Returns the jitted sum of the numbers of pixels of each cluster."""

    def count(totals, variables, centroids, key, batch, number):
      views = self.method.views(batch, key)
      labels = self.method.label_views(variables, centroids, views)
      row = number * len(batch['index']) + jnp.arange(len(batch['index']))
      valid = (row < self.images.num_images)[:, None, None]
      return {
        name: totals[name]
        + mini_batch_kmeans.count_pixels(
          jnp.where(valid, each, -1), len(centroids[name])
        )
        for name, each in labels.items()
      }

    return jax.jit(count)
