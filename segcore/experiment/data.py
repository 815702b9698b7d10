"""Data blocks of a config, and the streams that training reads."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import datasets, loader, splits, transforms, views
from runtime import files, json_files, options
from segcore.train import workspace as workspace_lib

# Names and colors of the class ids, in the folder of a trained network.
CLASSES_FILE = 'classes.json'


@dataclasses.dataclass(frozen=True)
class Images:
  """Images of a data set; their labels are not read."""

  data: datasets.DataOptions
  split: str = 'train'


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledData:
  """Images with masks, some of which count as labeled.

  Attributes:
    data: a data set with masks.
    split: its labeled subset is trained on.
    val_split: evaluated during training; 'held_out' is the part of `split` that
      the subset sets aside.
    follow: further splits evaluated during training, for a curve; the training
      split stands for its labeled images.
    subset: chooses the labeled images.
  """

  data: datasets.DataOptions
  split: str = 'train'
  val_split: str = 'val'
  follow: tuple[str, ...] = ()
  subset: splits.Subset = splits.Subset()


@dataclasses.dataclass(frozen=True)
class ImageStream:
  """Augmented images of a split.

  Attributes:
    split: the images.
    crop: one of `transforms.CROPS`.
    flips: random flips.
    keep: kinds of label that examples hold.
  """

  split: datasets.Split
  crop: Any
  flips: transforms.RandomFlip
  keep: tuple[str, ...] = ()

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width of an image."""
    return self.crop.size

  @property
  def transform(self) -> transforms.Transform:
    """Returns the transform from a record to an example."""
    decode = transforms.Decode(len(self.split.classes), self.keep)
    return transforms.Compose((decode, self.crop, self.flips))

  def open(self) -> loader.Stream:
    """Returns the stream for the loader."""
    return loader.Stream(self.split.records, self.transform)


@dataclasses.dataclass(frozen=True)
class ViewStream:
  """Several views of each image of a split.

  Attributes:
    split: the images.
    crop: cuts the views.
  """

  split: datasets.Split
  crop: views.MultiCrop

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width of a view of the first group."""
    return self.crop.groups[0].size

  @property
  def transform(self) -> transforms.Transform:
    """Returns the transform from a record to an example."""
    decode = transforms.Decode(len(self.split.classes), ())
    return transforms.Compose((decode, self.crop))

  def open(self) -> loader.Stream:
    """Returns the stream for the loader."""
    return loader.Stream(self.split.records, self.transform)


# The streams of a training by name; a single one has the name ''.
Streams = Mapping[str, ImageStream | ViewStream]


def augmentations_from_config(
  crop: Mapping[str, Any], flips: tuple[str, ...], path: str
) -> tuple[Any, transforms.RandomFlip]:
  """Builds the crop and the random flips of a config block.

  Args:
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions.
    path: path of the block, for messages.

  Raises:
    UserError: a field is wrong.
  """
  return (
    options.build_named_options(transforms.CROPS, crop, f'{path}.crop'),
    options.build_options(
      transforms.RandomFlip, {'kinds': flips}, f'{path}.flips'
    ),
  )


def fixed_panel_batch(
  stream: ImageStream | ViewStream, count: int
) -> dict[str, Any]:
  """Builds a batch of augmented images that is the same on every call.

  Args:
    stream: its split is sampled evenly: in a split with repeated entries, the
      first ones may all be one image.
    count: images of the batch.
  """
  records = stream.split.records
  examples = [
    stream.transform(
      records[i * len(records) // count], np.random.default_rng(i)
    )
    for i in range(count)
  ]
  return loader.drop_host_only_keys(loader.stack_examples(examples))


def write_stage_classes(
  workspace: workspace_lib.Workspace, split: datasets.Split
) -> Sequence[files.Path]:
  """Writes names and colors of the classes; returns the file."""
  path = workspace.directory / CLASSES_FILE
  json_files.write_json(
    path, {'classes': split.classes, 'palette': split.palette}
  )
  return [path]


def require_same_stage_labels(
  workspace: workspace_lib.Workspace, labeled: datasets.Split
) -> None:
  """Writes the ids of the labeled images; refuses others later on.

  Raises:
    UserError: they are not those that the stage was started with.
  """
  json_files.require_unchanged_json(
    workspace.directory / 'labeled_ids.json',
    labeled.ids(),
    'the choice of labeled images',
  )


def require_same_stage_data(
  workspace: workspace_lib.Workspace, split: datasets.Split, name: str = ''
) -> None:
  """Writes version and size of a split; refuses others later on.

  Args:
    workspace: of the stage.
    split: read by the stage.
    name: of the stream, if the stage reads several.

  Raises:
    UserError: they are not those that the stage was started with.
  """
  json_files.require_unchanged_json(
    workspace.directory / f'data{name and "_" + name}.json',
    {'version': split.version, 'num_images': len(split)},
    'the data set',
  )
