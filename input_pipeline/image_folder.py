"""A folder of images as a split, without preparing records.

opened = image_folder.open_image_folder(folder, classes, palette)
opened.split.records[0]
opened.skipped   # Every other file, with the reason.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

from input_pipeline import datasets, record_views
from input_pipeline.sources import (
  audit,
  file_traits,
  fingerprints,
  image_files,
  pairing,
  records,
)
from runtime import errors, progress, threads


@dataclasses.dataclass(frozen=True)
class FolderSplit:
  """The images of a folder.

  Attributes:
    split: the usable images.
    orientations: EXIF value, by id, of the images that are turned.
    skipped: all other files.
    warnings: oddities of the usable images, a line each.
  """

  split: datasets.Split
  orientations: Mapping[str, int]
  skipped: tuple[errors.BadFile, ...]
  warnings: tuple[str, ...]


def open_image_folder(
  images: pathlib.Path,
  classes: tuple[str, ...],
  palette: tuple[tuple[int, int, int], ...],
  options: image_files.ImageOptions = image_files.AS_STORED,
) -> FolderSplit:
  """Opens the images of a folder without preparing records.

  Every image is decoded once, to check that it can be.

  Args:
    images: the folder; its subfolders are included.
    classes: name of each class id, for predictions.
    palette: RGB color of each class id.
    options: define the pixels of the images.

  Raises:
    UserError: the folder is missing, or has no usable image.
  """
  listing = pairing.list_image_examples(images)
  usable, bad = [], [*listing.problems, *listing.left_out]
  for result in progress.progress_bar(
    threads.map_in_threads(
      audit.catch_bad_files(functools.partial(_check, options=options)),
      listing.examples,
    ),
    desc=f'checking {images}',
    total=len(listing.examples),
  ):
    (bad if isinstance(result, errors.BadFile) else usable).append(result)
  bad = sorted(bad, key=str)
  if not usable:
    raise errors.UserError(
      f'{images}: no image is usable: {bad[0]}; repair that file'
    )
  split = datasets.Split(
    name=str(images),
    version='',
    classes=classes,
    palette=palette,
    label_kinds=(),
    records=record_views.ImageFiles(
      [image.example for image in usable],
      options,
      [image.traits.as_stored for image in usable],
    ),
    index=fingerprints.ImageIndex.join([image.index for image in usable]),
  )
  traits, orientations = file_traits.TraitCounter(), {}
  for image in usable:
    traits.add(image.example.id, image.traits)
    orientation = image.traits.orientation
    if options.follow_exif and orientation != image_files.UPRIGHT:
      orientations[image.example.id] = orientation
  return FolderSplit(
    split, orientations, tuple(bad), tuple(traits.warnings(options))
  )


@dataclasses.dataclass(frozen=True)
class _Image:
  """An image file that can be predicted.

  Attributes:
    example: file of the image.
    index: name, size and hashes of the image.
    traits: traits of the file.
  """

  example: pairing.Example
  index: fingerprints.ImageIndex
  traits: records.Traits


def _check(
  example: pairing.Example, options: image_files.ImageOptions
) -> _Image:
  """Decodes an image; raises BadFile."""
  sample = audit.read_image_example(example, image_options=options)
  index = fingerprints.ImageIndex.from_sample(sample)
  return _Image(example, index, sample.traits)
