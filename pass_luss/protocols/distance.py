"""Distance matching protocol: kNN classification of pixels, without training.

The features of the pretrained encoder are compared with those of regions of a
few labeled images (spec §5.3).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from pass_luss.pretrain import embedding_ops
from pass_luss.protocols import knn, protocol_options
from pass_luss.pseudo_labels import features
from runtime import errors
from segcore.eval import evaluator, gather
from segcore.eval import short_side as short_side_lib
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state


@dataclasses.dataclass(frozen=True, eq=False)
class DistanceMatcher:
  """Classifies cells and images by their nearest neighbors.

  Attributes:
    segmenter: network; the features are its encoder's deepest map.
    state: training state of the network.
    options: options of the protocol.
    mesh: the devices.
    reading: options of the input pipeline.
    maps: predictor of the maps whose cells are classified; None for the deepest
      map, enlarged four times.
    path: path of the options in the config, for messages.
  """

  segmenter: segmenter_lib.Segmenter
  state: train_state.TrainState
  options: protocol_options.DistanceOptions
  mesh: Mesh
  reading: loader_lib.ReadOptions
  maps: short_side_lib.FeatureMaps | None = None
  path: str = 'config.distance'

  def build_bank(self, split: datasets.Split) -> knn.KnnBank:
    """Builds the bank of regions of a split with masks, the same on all hosts.

    Raises:
      UserError: there are fewer than k regions.
    """
    predictions = self._predictions(split, self._feature_maps, ('label',))
    entries, labels = [], []
    for feature_map, example in predictions(self.state):
      mask = short_side_lib.resize_predicted_labels(
        example['label'], feature_map.shape[:2]
      )
      regions = knn.build_knn_bank(
        feature_map[None], mask[None], len(split.classes) - 1
      )
      entries.extend(regions.features)
      labels.extend(regions.labels)
    bank = knn.KnnBank(
      gather.all_gather_predictions(entries, np.float32),
      gather.all_gather_predictions(labels, np.int32),
    )
    self._check_neighbors(len(bank.labels), f'regions in {split.name}')
    return bank

  def grid_label_function(
    self, bank: knn.KnnBank
  ) -> Callable[
    [datasets.Split], Iterator[tuple[np.ndarray, Mapping[str, Any]]]
  ]:
    """Builds the function that classifies the cells of a split's images.

    Call it for several splits: it places the bank on the devices and compiles
    once.

    Returns:
      A function of a split that yields (classes [h, w], example) of each image
      of this host.
    """
    predictor = self.vote_predictor(bank)
    return lambda split: self._predictions(split, predictor)(self.state)

  def vote_predictor(self, bank: knn.KnnBank) -> short_side_lib.FeatureMaps:
    """Builds the predictor of the classes [h, w] of an image's cells."""
    vote = knn.make_sharded_knn_vote(
      self.mesh, bank, self.options.neighbors, self.options.temperature
    )
    return _VotePredictor(
      **{
        field.name: getattr(self._feature_maps, field.name)
        for field in dataclasses.fields(short_side_lib.FeatureMaps)
      },
      vote=vote,
    )

  def image_accuracy(
    self, tagged: datasets.Split, split: datasets.Split
  ) -> float | None:
    """Computes the accuracy of the kNN classification of whole images.

    Args:
      tagged: images that are the neighbors.
      split: images to classify.

    Returns:
      The share of correct images; None unless each image has one tag.

    Raises:
      UserError: fewer than k images are tagged.
    """
    labels, truth = (
      features.read_feature_row_classes(tagged),
      features.read_feature_row_classes(split),
    )
    if labels is None or truth is None:
      return None
    self._check_neighbors(len(tagged), f'images in {tagged.name}')
    bank = knn.KnnBank(self._image_features(tagged), labels.astype(np.int32))
    predicted = knn.knn_vote(
      jnp.asarray(self._image_features(split)),
      bank,
      self.options.neighbors,
      self.options.temperature,
    )
    return float(np.mean(np.asarray(predicted) == truth))

  def _image_features(
    self, split: datasets.Split
  ) -> Float32[np.ndarray, 'N D']:
    """Computes L2-normalized features of whole images, in the split's order."""
    predictor = short_side_lib.FeatureMaps(
      features.clustering_feature_function(self.segmenter, 'image'),
      self.options.short_side,
      self.options.crop,
    )
    return gather.predict_in_order(
      self._predictions(split, predictor), self.state
    )

  def _predictions(
    self,
    split: datasets.Split,
    predictor: short_side_lib.FeatureMaps,
    keep: tuple[str, ...] = (),
  ) -> evaluator.Predictions:
    return evaluator.Predictions(
      split, predictor, self.options.batch_size, self.mesh, keep, self.reading
    )

  @property
  def _feature_maps(self) -> short_side_lib.FeatureMaps:
    """Returns the predictor of the maps whose cells are classified."""
    return self.maps or short_side_lib.FeatureMaps(
      self._features, self.options.short_side
    )

  def _check_neighbors(self, count: int, candidates: str) -> None:
    """Raises UserError if k exceeds the number of candidates."""
    if self.options.neighbors > count:
      raise errors.UserError(
        f'{self.path}.neighbors: expected at most {count}, the number of '
        f'{candidates}, got {self.options.neighbors}'
      )

  def _features(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w D']:
    """Computes the upsampled deepest feature map."""
    deepest = self.segmenter.apply(
      train_state.train_state_variables(state), images, method='deepest_map'
    )
    return embedding_ops.upsample_embeddings(deepest).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class _VotePredictor(short_side_lib.FeatureMaps):
  """Predicts the class of each cell by the vote of its nearest neighbors.

  Attributes:
    vote: function from queries to classes, built by
      `knn.make_sharded_knn_vote`.
  """

  vote: Callable[[Array], Array] = dataclasses.field(kw_only=True)

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Array:
    maps = super().__call__(state, inputs)
    labels = self.vote(maps.reshape(-1, maps.shape[-1]))
    return labels.reshape(maps.shape[:-1])
