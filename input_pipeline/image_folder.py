"""The images of a folder as a split, without preparing records."""

import pathlib

from input_pipeline import datasets, record_views
from input_pipeline.sources import audit, fingerprints
from runtime import errors, progress, threads


def open_image_folder(
  images: pathlib.Path,
  classes: tuple[str, ...],
  palette: tuple[tuple[int, int, int], ...],
) -> tuple[datasets.Split, tuple[errors.BadFile, ...]]:
  """Opens the images of a folder without preparing records.

  Every image is decoded once: a damaged file is reported before the predictions
  of hours are lost.

  Args:
    images: folder of the images, which may be in its subfolders.
    classes: name of each class id of the predictions.
    palette: RGB color of each class id, 0 to 255.

  Returns:
    The split of the usable images, and the files that are not usable.

  Raises:
    UserError: the folder is missing, or has no usable image.
  """
  listing = audit.list_image_examples(images)
  examples, indices, bad = [], [], [*listing.problems]
  for example, index in zip(
    listing.examples,
    progress.progress_bar(
      threads.map_in_threads(
        audit.catch_bad_files(_index_example), listing.examples
      ),
      desc=f'checking {images}',
      total=len(listing.examples),
    ),
    strict=True,
  ):
    if isinstance(index, errors.BadFile):
      bad.append(index)
    else:
      examples.append(example)
      indices.append(index)
  bad = sorted(bad, key=str)
  if not examples:
    raise errors.UserError(
      f'{images}: no image is usable: {bad[0]}; repair that file'
    )
  split = datasets.Split(
    name=str(images),
    version='',
    classes=classes,
    palette=palette,
    label_kinds=(),
    records=record_views.ImageFiles(examples),
    index=fingerprints.ImageIndex.join(indices),
  )
  return split, tuple(bad)


def _index_example(example: audit.Example) -> fingerprints.ImageIndex:
  return fingerprints.ImageIndex.from_sample(audit.read_image_example(example))
