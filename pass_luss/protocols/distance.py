"""Distance matching: pixels take the classes of their nearest labeled regions.

No training: the features of representation learning are compared with those of
a few labeled images (spec §5.3).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from pass_luss.pretrain import embedding_ops
from pass_luss.protocols import knn, segment
from pass_luss.pseudo_labels import features
from runtime import errors
from segcore.eval import evaluator, gather
from segcore.eval import short_side as short_side_lib
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state


@dataclasses.dataclass(frozen=True)
class DistanceOptions:
  """The protocol.

  Attributes:
    bank: split with masks, that pixels are compared with.
    splits: that are labeled; those with masks are scored.
    neighbors: k that vote.
    temperature: of their weights.
    short_side: of the images.
    batch_size: global number of images; changes nothing of what is found.
    rematch: whether categories are matched with classes once more before
      scoring, as the released script does; both scores are reported.
    accuracy_from: split with one tag an image, whose images say by their
      neighbors what the images of the others are; '' for none.
    crop: side of the middle that is looked at for that.
    about: what a submission says of the method.
  """

  bank: str = 'train_semi'
  splits: tuple[str, ...] = ('val',)
  neighbors: int = 10
  temperature: float = 0.07
  short_side: int = 256
  batch_size: int = 8
  rematch: bool = True
  accuracy_from: str = ''
  crop: int = 224
  about: segment.SubmissionInfo = segment.SubmissionInfo()

  def __post_init__(self):
    if self.neighbors < 1:
      raise ValueError(f'neighbors: found {self.neighbors}, expected 1 or more')
    if not self.temperature > 0:
      raise ValueError(
        f'temperature: found {self.temperature}, expected more than 0'
      )

  def describe(self) -> str:
    """In words, for results.json."""
    said = (
      f'{self.neighbors} nearest regions of {self.bank}, temperature '
      f'{self.temperature}, short side {self.short_side}; not matched'
    )
    if self.rematch:
      said += ', and as SPLIT_rematched matched on the split itself'
    return said

  def check_neighbors(self, count: int, what: str) -> None:
    """Raises UserError if there are fewer than so many neighbors."""
    if self.neighbors > count:
      raise errors.UserError(
        f'config.distance.neighbors: found {self.neighbors}, expected at '
        f'most {count}, as there are {what}'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class DistanceMatcher:
  """Labels images by their nearest neighbors.

  Attributes:
    segmenter: whose encoder's deepest map is compared.
    state: of the network.
    options: of the protocol.
    mesh: the devices.
    reading: of the input pipeline.
  """

  segmenter: segmenter_lib.Segmenter
  state: train_state.TrainState
  options: DistanceOptions
  mesh: Mesh
  reading: loader_lib.ReadOptions

  def build_bank(self, split: datasets.Split) -> knn.Bank:
    """Regions of the labeled images of all hosts.

    Raises:
      UserError: there are fewer than are to vote.
    """
    look = short_side_lib.FeatureMaps(self._features, self.options.short_side)
    entries, labels = [], []
    for feature_map, example in self._predictions(split, look, ('label',))(
      self.state
    ):
      mask = short_side_lib.resize_labels(
        example['label'], feature_map.shape[:2]
      )
      found = knn.build_bank(
        feature_map[None], mask[None], len(split.classes) - 1
      )
      entries.extend(found.features)
      labels.extend(found.labels)
    bank = knn.Bank(
      gather.all_gather(entries, np.float32),
      gather.all_gather(labels, np.int32),
    )
    self.options.check_neighbors(len(bank.labels), f'regions in {split.name}')
    return bank

  def grid_label_function(
    self, bank: knn.Bank
  ) -> Callable[
    [datasets.Split], Iterator[tuple[np.ndarray, Mapping[str, Any]]]
  ]:
    """From a split to labels of the cells of each image of this host, and it.

    To be used again and again: programs are compiled, and the bank is placed,
    once.
    """
    vote = knn.make_sharded_vote(
      self.mesh, bank, self.options.neighbors, self.options.temperature
    )
    look = _Voting(self._features, self.options.short_side, vote=vote)
    return lambda split: self._predictions(split, look)(self.state)

  def image_accuracy(
    self, known: datasets.Split, split: datasets.Split
  ) -> float | None:
    """Share of images whose neighbors say their tag; None without tags.

    Raises:
      UserError: fewer images are known than are to vote.
    """
    of_known, of_split = (features.single_tags(s) for s in (known, split))
    if of_known is None or of_split is None:
      return None
    self.options.check_neighbors(len(known), f'images in {known.name}')
    found = [self._of_images(s) for s in (known, split)]
    bank = knn.Bank(found[0], of_known.astype(np.int32))
    said = knn.vote(
      jnp.asarray(found[1]),
      bank,
      self.options.neighbors,
      self.options.temperature,
    )
    return float(np.mean(np.asarray(said) == of_split))

  def _of_images(self, split: datasets.Split) -> np.ndarray:
    """Features of whole images, in the order of the split, of length 1."""
    look = short_side_lib.FeatureMaps(
      features.feature_function(self.segmenter, 'image'),
      self.options.short_side,
      self.options.crop,
    )
    return gather.predict_in_order(self._predictions(split, look), self.state)

  def _predictions(
    self,
    split: datasets.Split,
    look: short_side_lib.FeatureMaps,
    keep: tuple[str, ...] = (),
  ) -> evaluator.Predictions:
    return evaluator.Predictions(
      *(split, look, self.options.batch_size, self.mesh),
      *(keep, self.reading),
    )

  def _features(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w D']:
    """The deepest map, enlarged."""
    found = self.segmenter.apply(
      train_state.variables(state), images, decode=False, method='features'
    )
    return embedding_ops.upsample(found['encoder'].deepest.array).astype(
      jnp.float32
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Voting(short_side_lib.FeatureMaps):
  """Labels of cells by the vote of their neighbors."""

  vote: Any = None

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Array:
    features = super().__call__(state, inputs)
    labels = self.vote(features.reshape(-1, features.shape[-1]))
    return labels.reshape(features.shape[:-1])
