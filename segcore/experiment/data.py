"""Data blocks of a config, and the streams that training reads."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epy

from input_pipeline import (
  crop_content,
  crop_scale,
  datasets,
  loader,
  long_side_crop,
  samplers,
  splits,
  transforms,
  views,
)
from runtime import console, files, json_files, options
from segcore.ops import class_weights
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from input_pipeline import record_views
  from input_pipeline.sources import records

# Crops by their names in configs.
CROPS = {
  **transforms.CROPS,
  'fitted': crop_scale.FittedInceptionCrop,
  'long_side': long_side_crop.LongSideCrop,
}
# Names and colors of the class ids, in the folder of a trained network.
CLASSES_FILE = 'classes.json'
# Labeled images that are searched for classes before training.
_MAX_COUNTED = 1000


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
    split: name of the split whose labeled images are trained on.
    val_split: name of the split evaluated during training; 'held_out' is the
      part of `split` that the subset sets aside, 'not_labeled' what is neither
      set aside nor labeled.
    follow: names of further splits evaluated during training, for a curve; of
      the training split, the labeled images are evaluated.
    subset: selection of the labeled images.
  """

  data: datasets.DataOptions
  split: str = 'train'
  val_split: str = 'val'
  follow: tuple[str, ...] = ()
  subset: splits.Subset = splits.Subset()

  @classmethod
  def of_validation(
    cls, data: datasets.DataOptions, val_split: str, follow: tuple[str, ...]
  ) -> 'LabeledData':
    """Returns the masks of validation splits; no other split needs masks."""
    return cls(data=data, split=val_split, val_split=val_split, follow=follow)


@dataclasses.dataclass(frozen=True)
class ImageStream:
  """Augmented images of a split.

  Attributes:
    split: images to augment.
    crop: crop of one of the classes of `transforms.CROPS`.
    flips: random flips.
    keep: kinds of label in the examples: 'label', 'tags', or 'index', the place
      of the image in the split.
    sampler: sampler that draws images with replacement; None reads every image
      once in each epoch. A class that it requires of a crop needs the label.
  """

  split: datasets.Split
  crop: Any
  flips: transforms.RandomFlip
  keep: tuple[str, ...] = ()
  sampler: samplers.Sampler | None = None

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width of an image."""
    return self.crop.size

  @property
  def transform(self) -> transforms.Transform:
    """Builds the transform that decodes and augments a record."""
    decode = transforms.Decode(len(self.split.classes), self.keep)
    crop = self.crop
    if self.sampler:
      crop = crop_content.RequiredClassCrop(crop)
    return transforms.Compose((decode, crop, self.flips))

  def open(self) -> loader.Stream:
    """Returns the stream for the loader."""
    stored = _stored_records(self.split, self.keep)
    return loader.Stream(stored, self.transform, self.sampler)


@dataclasses.dataclass(frozen=True)
class ViewStream:
  """Several views of each image of a split.

  Attributes:
    split: images to augment.
    crop: random crops that cut the views from an image.
    keep: labels of the image in the examples: 'tags', 'label' where the crop
      cuts it, too, or 'index', the place of the image in the split.
  """

  split: datasets.Split
  crop: views.MultiCrop
  keep: tuple[str, ...] = ()

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width of a view of the first group."""
    return self.crop.groups[0].size

  @property
  def transform(self) -> transforms.Transform:
    """Builds the transform that decodes and augments a record."""
    decode = transforms.Decode(len(self.split.classes), self.keep)
    return transforms.Compose((decode, self.crop))

  def open(self) -> loader.Stream:
    """Returns the stream for the loader."""
    stored = _stored_records(self.split, self.keep)
    return loader.Stream(stored, self.transform)


def _stored_records(
  split: datasets.Split, keep: tuple[str, ...]
) -> 'Sequence[records.Record]':
  """Returns the records of a split, with their places if these are kept."""
  if 'index' in keep:
    return record_views.IndexedRecords(split.records)
  return split.records


# The streams of a training by name; a single one has the name ''.
Streams = Mapping[str, ImageStream | ViewStream]


def augmentations_from_config(
  crop: Mapping[str, Any], flips: tuple[str, ...], path: str
) -> tuple[Any, transforms.RandomFlip]:
  """Builds the crop and the random flips of a config block.

  A crop named 'fitted' that was not fitted to its data yet (see `fitting`) is
  that for images of unknown size.

  Args:
    crop: name and fields of a crop (see `CROPS`).
    flips: directions of the flips: 'horizontal', 'vertical'.
    path: path of the block in the config, for messages.

  Raises:
    UserError: a field is wrong.
  """
  built = options.build_named_options(CROPS, crop, f'{path}.crop')
  if isinstance(built, crop_scale.FittedInceptionCrop):
    built = built.without_data()
  return (
    built,
    options.build_options(
      transforms.RandomFlip, {'kinds': flips}, f'{path}.flips'
    ),
  )


def fixed_panel_batch(
  stream: ImageStream | ViewStream, count: int
) -> dict[str, Any]:
  """Builds a batch of augmented images that is the same on every call.

  Args:
    stream: augmented images of a split.
    count: number of images of the batch.
  """
  # Evenly spaced: in a split with repeated entries, the first ones may all be
  # the same image.
  stored = stream.open().records
  examples = [
    stream.transform(stored[i * len(stored) // count], np.random.default_rng(i))
    for i in range(count)
  ]
  return loader.drop_host_only_keys(loader.stack_examples(examples))


def write_stage_classes(
  workspace: workspace_lib.Workspace, split: datasets.Split
) -> Sequence[files.Path]:
  """Writes names and colors of the classes; returns the path of the file."""
  path = workspace.directory / CLASSES_FILE
  json_files.write_json(
    path, {'classes': split.classes, 'palette': split.palette}
  )
  return [path]


def require_same_stage_labels(
  workspace: workspace_lib.Workspace, labeled: datasets.Split
) -> None:
  """Checks that a stage continues with the labeled images of its start.

  The first call writes the ids of the images to the folder of the stage.

  Raises:
    UserError: the stage was started with other labeled images.
  """
  json_files.require_unchanged_json(
    workspace.directory / 'labeled_ids.json',
    labeled.ids(),
    'the choice of labeled images',
  )


def warn_of_unseen_classes(
  labeled: datasets.Split, absent: Sequence[int] = ()
) -> None:
  """Warns of classes that no labeled image shows.

  Of many labeled images only the first are read, as they nearly always show all
  classes; the audit of the data set has counted all of them.

  Args:
    labeled: the labeled images.
    absent: classes that no other image shows either, as far as it is known.
  """
  num_classes, seen = len(labeled.classes), set()
  for i in range(min(len(labeled), _MAX_COUNTED)):
    label = records.decode_record_label(labeled.records[i]['label'])
    seen.update(np.flatnonzero(np.bincount(label[label >= 0])).tolist())
    if len(seen) == num_classes:
      return
  if len(labeled) <= _MAX_COUNTED:
    for classes, advice in (
      (absent, 'nor does any other image of the split'),
      (
        {*range(num_classes)} - {*absent},
        'choose other labeled images, or more',
      ),
    ):
      unseen = [repr(labeled.classes[i]) for i in sorted({*classes} - seen)]
      if unseen:
        console.print_line(
          f'warning: no labeled image of {labeled.name} shows '
          f'{", ".join(unseen)}: {advice}'
        )


def stage_class_weights(
  workspace: workspace_lib.Workspace,
  labeled: datasets.Split,
  weighting: class_weights.LossClassWeightOptions,
) -> tuple[float, ...] | None:
  """Computes the weights of the classes from the masks of a stage's images.

  They are printed and written to the folder of the stage, which must not be
  continued with others.

  Args:
    workspace: folder of the stage.
    labeled: images that are trained on.
    weighting: options of the weights.

  Returns:
    The weight of each class, rounded to 4 decimals, so that all machines have
    the same; None without weights.

  Raises:
    UserError: the stage was started with other weights.
  """
  if weighting.kind == 'none':
    return None
  pixels = labeled.class_pixels()
  images = np.count_nonzero(pixels, axis=0)
  exact = class_weights.compute_class_weights(
    pixels.sum(axis=0), images, weighting
  )
  weights = tuple(np.round(exact, 4).tolist())
  by_name = dict(zip(labeled.classes, weights, strict=True))
  json_files.require_unchanged_json(
    workspace.directory / 'class_weights.json', by_name, 'the class weights'
  )
  least, most = (pick(by_name, key=by_name.get) for pick in (min, max))
  console.print_line(
    f'class weights ({weighting.kind}): from {by_name[least]:g} ({least}) to '
    f'{by_name[most]:g} ({most})'
  )
  return weights
