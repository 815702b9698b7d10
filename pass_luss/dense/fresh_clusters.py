"""Clusters of the pixels of images as they are, after the training (§3.5).

The released codes of MDC and PiCIE can evaluate by such centroids instead of
those of the last epoch.
"""

import jax
from jaxtyping import Array, Float, UInt8

from input_pipeline import batch as batch_lib
from pass_luss.dense import (
  dense_options,
  image_batches,
  mini_batch_kmeans,
  pixel_clustering,
)
from segcore import types
from segcore.distributed import sharding
from segcore.train import train_state


def cluster_whole_images(
  method: pixel_clustering.PixelClustering,
  state: train_state.TrainState,
  images: image_batches.ImageBatches,
  options: dense_options.KmeansOptions,
  num_clusters: int,
  seed: int,
) -> train_state.TrainState:
  """Clusters the pixels of images without augmentation.

  As at the start of an epoch, the network is in training mode, so that its
  batch statistics change.

  Args:
    method: MDC or PiCIE.
    state: trained state.
    images: square images of one size.
    options: options of k-means.
    num_clusters: number K of clusters.
    seed: seed of the order of the images and of the first centroids.

  Returns:
    The state with the centroids as its classifier, and the batch statistics
    after the pass.
  """
  mesh, stats = images.mesh, state.batch_stats
  whole = sharding.replicated_sharding(mesh)

  def features(
    variables: dict[str, types.Params], pixels: UInt8[Array, 'B H W 3']
  ) -> tuple[Float[Array, 'B h w D'], types.Params]:
    view = pixel_clustering.PixelView(
      batch_lib.batch_images_to_symmetric(pixels), None
    )
    return method.features(variables, view, train=True)

  compute = jax.jit(
    features, out_shardings=(sharding.batch_sharding(mesh), whole)
  )

  def feature_batches():
    nonlocal stats
    for batch in images.read(images.num_whole, seed):
      variables = {'params': state.params, 'batch_stats': stats}
      each, stats = compute(variables, batch['image'])
      yield each

  (centroids,) = mini_batch_kmeans.cluster_batches(
    feature_batches(),
    (num_clusters,),
    min(options.initial_batches, images.num_whole),
    options.iterations,
    jax.random.PRNGKey(seed),
    mesh,
  )
  return pixel_clustering.with_centroids(
    state.replace(batch_stats=stats), jax.device_put(centroids, whole)
  )
