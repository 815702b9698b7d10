"""Base of MDC and PiCIE: a network learns the clusters of its own pixels.

At the start of each epoch the pixels of views of all images are clustered, and
the network as it is then is kept: it labels the pixels of a batch. So labels of
an epoch are those of one network, as if they had been stored (spec comparators
§3.3 to §3.5). Source: Cho et al. 2021, arXiv:2103.17070.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from pass_luss.dense import cluster_head, mini_batch_kmeans, views
from pass_luss.dense import losses as losses_lib
from pass_luss.pretrain import embedding_ops
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.ops import losses
from segcore.train import train_state
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult

S = TypeVar('S', bound=train_state.TrainState)

# Stride of the features that are clustered.
_STRIDE = 4
# Folded into the key of a run for those of its epochs, as no step has it.
_EPOCHS_KEY = 2**31 - 3


class ClusteringSpec(NamedTuple):
  """A clustering that a method needs.

  Attributes:
    name: its name.
    view: number of the view whose pixels are clustered, 0 or 1.
    count: number of clusters.
  """

  name: str
  view: int
  count: int


@flax.struct.dataclass
class Clustering:
  """Clusters of an epoch; also a tree of shapes or of shardings.

  Attributes:
    centroids: float32 [K, D].
    weights: float32 [K], share of the pixels of each cluster.
  """

  centroids: Any
  weights: Any


@flax.struct.dataclass
class State(train_state.TrainState):
  """Training state with the clusters of the epoch.

  Attributes:
    labeler: variables of the network at the start of the epoch, after its
      pixels were clustered.
    clusterings: `Clustering` by name.
    view_key: key of the views of the epoch.
    classifier_opt_state: state of the optimizer of the classifier; () if that
      is not trained.
  """

  labeler: Any
  clusterings: Any
  view_key: Any
  classifier_opt_state: Any


class PixelView(NamedTuple):
  """The images of a view.

  Attributes:
    images: input of the network.
    box: part of the feature map that is the view; None for all of it.
  """

  images: Float[Array, 'B H W 3']
  box: views.Box | None


@dataclasses.dataclass(frozen=True)
class PixelClustering:
  """Trains a network on clusters of its pixels; a `method.Method`.

  Batches hold base images, `image`, and their `index` in the split.

  Attributes:
    segmenter: encoder, decoder and a `ClusterHead`.
    update: gradient step of encoder and decoder.
    options: options of the method.
    num_clusters: number K of clusters.
    side: side of the images of the network, in pixels.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: Any
  num_clusters: int
  side: int

  @property
  def specs(self) -> tuple[ClusteringSpec, ...]:
    """Returns the clusterings; the first one segments images."""
    raise NotImplementedError

  @property
  def view_numbers(self) -> tuple[int, ...]:
    """Returns the numbers of the views that are clustered."""
    return tuple(sorted({spec.view for spec in self.specs}))

  def loss(
    self,
    head: types.Params,
    features: Sequence[Float[Array, 'B h w D']],
    clusters: Mapping[str, losses_lib.ViewClusters],
  ) -> tuple[types.Scalar, types.Metrics]:
    """Computes the loss of a batch, and further scalars to log.

    Args:
      head: parameters of the classifier.
      features: L2-normalized features of each view.
      clusters: clusters by the name of the clustering, with the labels.
    """
    raise NotImplementedError

  def begin_classifier(self, state: State, key: Array) -> State:
    """Returns the state with the classifier of an epoch: the centroids.

    Args:
      state: state with the clusterings of the epoch.
      key: key of what is drawn.
    """
    del key
    return with_centroids(
      state, state.clusterings[self.specs[0].name].centroids
    )

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """Builds the state before step 0, without clusters."""
    rows = batch_spec['image'].shape[0]
    shape = (rows, self.side, self.side, 3)
    state = self.update.init(self.segmenter, rng, shape, loaded)
    features = state.params['heads'][cluster_head.NAME]['kernel'].shape[0]
    return State(
      **vars(state),
      labeler=_labeler_variables(state),
      clusterings={
        spec.name: Clustering(
          jnp.zeros((spec.count, features)), jnp.zeros(spec.count)
        )
        for spec in self.specs
      },
      view_key=rng,
      classifier_opt_state=self.init_classifier_optimizer(state.params),
    )

  def init_classifier_optimizer(self, params: types.Params) -> Any:
    """Builds the optimizer state of the classifier; () without one."""
    del params
    return ()

  def train_step(self, state: State, batch: batch_lib.Batch) -> StepResult:
    """Labels the views of a batch by the epoch's network, and learns them."""
    computed = self.views(batch, state.view_key)
    of = state.clusterings
    labels = self.label_views(
      state.labeler, {name: x.centroids for name, x in of.items()}, computed
    )
    clusters = {
      name: losses_lib.ViewClusters(
        of[name].centroids, of[name].weights, labels[name]
      )
      for name in of
    }

    def loss(params):
      features, stats = [], state.batch_stats
      # One view after the other: each has batch statistics of its own.
      for view in computed:
        each, stats = self.features(
          {'params': params, 'batch_stats': stats}, view, train=True
        )
        features.append(each)
      head = params['heads'][cluster_head.NAME]
      total, scalars = self.loss(head, features, clusters)
      return total, (scalars, stats)

    (total, (scalars, stats)), gradient = jax.value_and_grad(
      loss, has_aux=True
    )(state.params)
    trained = {name: gradient[name] for name in self.update.trained}
    new = self.update.apply_gradients(state, trained, stats)
    new = self.update_classifier(new, gradient['heads'][cluster_head.NAME])
    return new, {'loss': total, **scalars}

  def update_classifier(self, state: State, gradient: types.Params) -> State:
    """Returns the state with an updated classifier; centroids stay."""
    del gradient
    return state

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w K']:
    """Computes the scores of the clusters, in evaluation mode."""
    variables = train_state.train_state_variables(state)
    name = cluster_head.NAME
    return self.segmenter.apply(variables, images, heads=(name,))[name]

  def views(self, batch: batch_lib.Batch, key: Array) -> tuple[PixelView, ...]:
    """Computes the views of a batch that are clustered.

    Args:
      batch: base images and their indices.
      key: key of the views of the epoch.
    """
    images = batch_lib.batch_images_to_symmetric(batch['image'])
    draws = views.sample_view_draws(views.row_keys(key, batch['index']))
    first, second = draws.first, draws.second
    computed = {
      # The image is cropped in view 1, the feature map in view 2.
      0: lambda: PixelView(
        views.crop_maps(
          views.apply_photometry(images, first), draws.box, self.side
        ),
        None,
      ),
      1: lambda: PixelView(
        views.shrink_images(views.apply_photometry(images, second), self.side),
        draws.box,
      ),
    }
    return tuple(computed[number]() for number in self.view_numbers)

  def features(
    self, variables: Mapping[str, types.Params], view: PixelView, train: bool
  ) -> tuple[Float[Array, 'B h w D'], types.Params]:
    """Computes the L2-normalized features of a view.

    Returns:
      Features, and the batch statistics after the forward pass.
    """
    maps, changed = self.segmenter.apply(
      variables,
      view.images,
      method='features',
      train=train,
      mutable=['batch_stats'],
    )
    features = losses.at_least_float32(maps['decoder'].at_stride(_STRIDE).array)
    if view.box is not None:
      features = views.crop_maps(features, view.box, features.shape[1])
    return (
      embedding_ops.l2_normalize_embeddings(features),
      {**variables['batch_stats'], **changed.get('batch_stats', {})},
    )

  def begin_epoch(
    self, state: State, clusterings: Mapping[str, Clustering]
  ) -> State:
    """Returns the state at the start of an epoch.

    Args:
      state: state with the key of the views of the epoch, and batch statistics
        after the pixels were clustered.
      clusterings: clusters of the epoch by name.
    """
    state = state.replace(
      labeler=_labeler_variables(state), clusterings=dict(clusterings)
    )
    return self.begin_classifier(state, state.view_key)

  def label_views(
    self,
    variables: Mapping[str, types.Params],
    centroids: Mapping[str, Float[Array, 'K D']],
    computed: Sequence[PixelView],
  ) -> dict[str, Int[Array, 'B h w']]:
    """Labels the pixels of views by the nearest centroids, of each clustering.

    Args:
      variables: variables of the network, which is in evaluation mode.
      centroids: centroids by the name of the clustering.
      computed: views that are clustered.
    """
    features = {
      number: self.features(variables, view, train=False)[0]
      for number, view in zip(self.view_numbers, computed, strict=True)
    }
    return {
      spec.name: mini_batch_kmeans.assign_pixels(
        features[spec.view], centroids[spec.name]
      )
      for spec in self.specs
    }


def epoch_key(rng: Array, epoch: int) -> Array:
  """Derives the key of the views of an epoch from that of the run."""
  return jax.random.fold_in(jax.random.fold_in(rng, _EPOCHS_KEY), epoch)


def replace_head(state: S, params: types.Params) -> S:
  """Returns the state with other parameters of the classifier."""
  heads = {**state.params['heads'], cluster_head.NAME: params}
  return state.replace(params={**state.params, 'heads': heads})


def with_centroids(
  state: train_state.TrainState, centroids: Float[Array, 'K D']
) -> train_state.TrainState:
  """Returns the state with centroids as its classifier, of scores f·c."""
  bias = jnp.zeros(len(centroids))
  return replace_head(state, {'kernel': centroids.T, 'bias': bias})


def _labeler_variables(state: train_state.TrainState) -> dict[str, Any]:
  """Copies the variables of encoder and decoder."""
  # Copies: the step donates the state, of which no leaf may occur twice.
  return jax.tree.map(
    jnp.copy,
    {
      'params': {n: state.params[n] for n in ('encoder', 'decoder')},
      'batch_stats': state.batch_stats,
    },
  )
