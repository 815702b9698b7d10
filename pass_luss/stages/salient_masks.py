"""Stage `salient_masks`: masks of the salient objects of training images."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epy
from jaxtyping import Float

from input_pipeline import datasets, transforms
from pass_luss.stages import base
from runtime import console, errors, files, threads
from runtime.option_ranges import CheckedOptions, UnitInterval
from segcore.distributed import collectives
from segcore.experiment import experiment_stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.benchmark import label_folders, png_format
  from pass_luss.dense import salient_views
  from pass_luss.pseudo_labels import features, labeler
  from segcore.cost import topology as topology_lib

# Outputs in the stage's folder: the masks, and the salient share of each image.
_FOLDER, _SHARES = 'train', 'shares.npy'


@dataclasses.dataclass(frozen=True)
class SalientMasksOptions(CheckedOptions):
  """Options of masks of salient objects.

  Attributes:
    saliency: 'rc' for region contrast, or a folder with a saliency map of each
      image.
    threshold: saliency that salient pixels exceed.
    min_share: share of the image below which connected parts are removed, and
      images are left out.
  """

  saliency: str = 'rc'
  threshold: UnitInterval = 0.5
  min_share: UnitInterval = 0.01

  def __post_init__(self):
    super().__post_init__()
    if not self.saliency:
      raise ValueError("saliency: expected 'rc' or a folder of maps, got ''")


class SalientMasksStage(base.PassStage):
  """Writes the mask of the salient objects of each training image."""

  name = 'salient_masks'
  options: SalientMasksOptions

  def settings(self) -> dict[str, Any]:
    """Returns block and images."""
    return {self.name: self.options, 'images': self.experiment.images}

  def check(self) -> None:
    """Accepts all settings: those of the block were checked."""

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the training images as the only input."""
    return experiment_stage.Inputs((self.image_input(),))

  def check_data(self) -> None:
    """Raises UserError if saliency maps are missing."""
    labeler.foreground_function(self.options.saliency, self.open_images().ids())

  def dry_run(
    self, compiles: bool, topology: 'topology_lib.Topology | None'
  ) -> Iterable[str]:
    """Reports that there is no estimate: hosts compute the masks."""
    del compiles, topology
    return ('no cost is estimated: masks are computed on the hosts',)

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Writes the masks, and the salient share of each image."""
    split, folder = self.open_images(), workspace.directory / _FOLDER
    label_folders.write_missing_label_maps(
      split, self._masks, folder, workspace, short_side=1
    )
    path = workspace.directory / _SHARES
    if jax.process_index() == 0:
      shares = np.fromiter(
        threads.map_in_threads(
          lambda name: _read_share(folder, name), split.ids()
        ),
        np.float32,
      )
      features.write_feature_array(path, shares)
      console.print_line(
        f'{self.name}: {np.count_nonzero(shares):,} of {len(shares):,} images '
        f'have a mask, of {shares[shares > 0].mean():.0%} on average'
        if shares.any()
        else f'{self.name}: no image has a mask'
      )
    return [folder, path]

  def _masks(
    self, split: datasets.Split
  ) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
    """Yields (mask, example) of each image of this host."""
    block = self.options
    foreground = labeler.foreground_function(block.saliency, split.ids())
    decode = transforms.Decode(len(split.classes), ())

    def compute(index: int) -> tuple[np.ndarray, Mapping[str, Any]]:
      example = decode(split.records[index])
      mask = salient_views.salient_mask(
        foreground(example), block.threshold, block.min_share
      )
      return mask.astype(np.int16), example

    return threads.map_in_threads(
      compute, range(jax.process_index(), len(split), jax.process_count())
    )


def _read_share(folder: files.Path, name: str) -> float:
  path = label_folders.label_map_path(folder, name)
  return float((png_format.read_imagenet_s_png(path, 1) > 0).mean())


def with_salient_masks(
  split: datasets.Split, folder: files.Path
) -> datasets.Split:
  """Returns the images that have a mask, with it as their label.

  Args:
    split: all images.
    folder: folder of the finished stage.

  Raises:
    UserError: no image has a mask.
  """
  shares: Float[np.ndarray, 'N'] = collectives.broadcast_from_host_0(
    features.read_feature_array(folder / _SHARES)
  )
  kept = np.flatnonzero(shares > 0)
  if not len(kept):
    raise errors.UserError(
      f'{folder}: expected images with salient objects, got none among '
      f'{len(split):,}: choose other saliency maps, or a lower threshold'
    )
  masked = label_folders.with_pseudo_labels(split, folder / _FOLDER, 1)
  return masked.select(kept)
