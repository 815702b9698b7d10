"""Network, data and devices that the stages of an experiment share."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epy
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from input_pipeline import datasets, splits
from runtime import errors
from segcore.experiment import data as data_lib
from segcore.models import network_options
from segcore.train import operation_options

with epy.lazy_imports():
  from input_pipeline.sources import fingerprints
  from segcore.models import heads as heads_lib
  from segcore.models import network as network_lib
  from segcore.models import segmenter


@dataclasses.dataclass(frozen=True)
class Context:
  """Network, data and devices that the stages of an experiment share.

  Attributes:
    network: options of the network of all stages.
    data_dir: folder of the records; '' for the default of TFDS.
    operation: options of speed and intervals, which change no result.
    mesh: mesh of the devices.
    stages: names of all stages that such an experiment may have.
    opened: splits that were opened before, by data set and name.
  """

  network: network_options.NetworkOptions
  data_dir: str
  operation: operation_options.OperationOptions
  mesh: Mesh
  stages: tuple[str, ...] = ()
  opened: dict[tuple[datasets.DataOptions, str], datasets.Split] = (
    dataclasses.field(default_factory=dict, compare=False)
  )

  def with_network(self, **fields: Any) -> 'Context':
    """Returns a context with other fields of the network options."""
    network = dataclasses.replace(self.network, **fields)
    return dataclasses.replace(self, network=network)

  def with_output_stride(self, output_stride: int) -> 'Context':
    """Returns a context whose encoder dilates its last blocks.

    Args:
      output_stride: stride of the encoder's deepest map; 0 to leave it.
    """
    return self.with_encoder(output_stride=output_stride or None)

  def with_encoder(self, **fields: Any) -> 'Context':
    """Returns a context with other fields of the encoder; None leaves one."""
    given = {name: x for name, x in fields.items() if x is not None}
    if not given:
      return self
    return self.with_network(encoder={**self.network.encoder, **given})

  def with_decoder(self, **fields: Any) -> 'Context':
    """Returns a context with other fields of the decoder."""
    return self.with_network(decoder={**self.network.decoder, **fields})

  def fitted(self, size: tuple[int, int]) -> network_options.NetworkOptions:
    """Returns the network options for images of this (height, width)."""
    return network_lib.with_position_grid(self.network, size, 'config.network')

  def build(
    self, heads: Mapping[str, Any], size: tuple[int, int]
  ) -> 'segmenter.Segmenter':
    """Builds the network with these heads for images of this size."""
    return network_lib.build_network(self.fitted(size), heads, 'config.network')

  @property
  def size_multiple(self) -> int:
    """Returns the number of pixels of which image sides must be multiples."""
    reads = 'encoder' if self.network.decoder is None else 'decoder'
    built = network_lib.build_network(
      self.network,
      {'tags': heads_lib.PoolHead(1, reads=reads)},
      'config.network',
    )
    return built.size_multiple

  def open(
    self,
    data: datasets.DataOptions,
    split: str,
    kind: str = '',
    purpose: str = '',
  ) -> datasets.Split:
    """Opens a split, once.

    Args:
      data: name and location of the data set.
      split: name of the split.
      kind: kind of label that the split must have: 'label', 'tags', or '' for
        none.
      purpose: name of the part that needs the labels, for the message.

    Raises:
      UserError: the split is missing, or has no such labels.
    """
    if (data, split) not in self.opened:
      self.opened[data, split] = datasets.open_dataset_split(
        data, split, self.data_dir
      )
    opened = self.opened[data, split]
    if kind:
      opened.require_labels(kind, purpose)
    return opened

  def labeled(
    self, block: data_lib.LabeledData, purpose: str
  ) -> datasets.Split:
    """Opens the labeled images of a data block.

    Args:
      block: data block of the training.
      purpose: name of the part that needs the masks, for the message.
    """
    split = self.open(block.data, block.split, 'label', purpose)
    shown = _shown_classes(split) if block.subset.cover else None
    return split.select(
      block.subset.labeled_indices(split.ids(), split.id_rule, shown)
    )

  def absent_classes(
    self, block: data_lib.LabeledData, purpose: str
  ) -> tuple[int, ...]:
    """Returns the classes that no image shows, if labels shall cover them all.

    Args:
      block: data block of the training.
      purpose: name of the part that needs the masks, for the message.
    """
    if not block.subset.cover:
      return ()
    split = self.open(block.data, block.split, 'label', purpose)
    return tuple(np.flatnonzero(~_shown_classes(split).any(axis=0)).tolist())

  def evaluated(
    self, block: data_lib.LabeledData, name: str, purpose: str
  ) -> datasets.Split:
    """Opens a split with masks for evaluation.

    Args:
      block: data block of the training; of its training split, the labeled
        images are opened.
      name: name of the split; 'held_out' for the images that the subset sets
        aside, 'not_labeled' for those of the training split that are neither
        labeled nor set aside.
      purpose: name of the part that needs the masks, for the message.

    Raises:
      UserError: the split is missing, has no masks or no images.
    """
    if name == block.split:
      return self.labeled(block, purpose)
    if name not in (splits.HELD_OUT, splits.NOT_LABELED):
      return self.open(block.data, name, 'label', purpose)
    split = self.open(block.data, block.split, 'label', purpose)
    if name == splits.NOT_LABELED:
      return split.select(self._not_labeled_indices(block, split, purpose))
    return split.select(
      block.subset.held_out_indices(split.ids(), split.id_rule)
    )

  def labeled_and_held_out(
    self, block: data_lib.LabeledData, purpose: str
  ) -> list[datasets.Split]:
    """Opens the labeled images and, if there are any, those set aside.

    Args:
      block: data block of the training.
      purpose: name of the part that needs the masks, for the message.
    """
    opened = [self.labeled(block, purpose)]
    if block.subset.held_out:
      opened.append(self.evaluated(block, splits.HELD_OUT, purpose))
    return opened

  def _not_labeled_indices(
    self, block: data_lib.LabeledData, split: datasets.Split, purpose: str
  ) -> Int[np.ndarray, 'not_labeled']:
    """Returns the indices of images that are neither labeled nor held out."""
    ids = split.ids()
    excluded = {
      name
      for other in self.labeled_and_held_out(block, purpose)
      for name in other.ids()
    }
    indices = np.flatnonzero([name not in excluded for name in ids])
    if not len(indices):
      raise errors.UserError(
        f'split {splits.NOT_LABELED!r}: expected images of {block.split!r} '
        f'that are neither labeled nor held out, got none: label fewer of the '
        f'{len(ids)} images, or evaluate another split'
      )
    return indices

  def check_disjoint(
    self,
    block: data_lib.LabeledData,
    reported: Sequence[str],
    purpose: str,
  ) -> None:
    """Checks that no evaluated split shares an image with the labeled ones.

    Args:
      block: data block of the training.
      reported: names of the splits that are evaluated after the training.
      purpose: name of the part that needs the masks, for the message.

    Raises:
      UserError: a split is missing or has no masks, or shares an image with the
        labeled ones.
    """
    for name in (block.split, block.val_split, *block.follow, *reported):
      opened = self.evaluated(block, name, purpose)
      if name != block.split:
        labeled = self.labeled(block, purpose)
        fingerprints.check_splits_disjoint(
          labeled.index, opened.index, (labeled.name, opened.name)
        )


@functools.lru_cache(maxsize=4)
def _shown_classes(split: datasets.Split) -> Bool[np.ndarray, 'N C']:
  """Returns whether each image shows each class."""
  return split.class_pixels() > 0
