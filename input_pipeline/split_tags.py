"""Labels of whole images from a list, in place of those of a data set.

split = split_tags.replace_tags(split, pathlib.Path('voc_tags.csv'))
"""

import dataclasses
import pathlib

from input_pipeline import datasets, record_views
from input_pipeline.sources import tag_files
from runtime import errors


def replace_tags(split: datasets.Split, path: pathlib.Path) -> datasets.Split:
  """Replaces the tags of a split by those of a list.

  Class 0, the background, is in every image.

  Args:
    split: images, of any data set.
    path: table of FILE,LABEL;LABEL, or folder of NAME.txt (see `tag_files`).

  Raises:
    UserError: the list cannot be read, lacks an image, or has a label that is
      no class.
  """
  ids, names = split.ids(), {each: i for i, each in enumerate(split.classes)}
  labels, missing = tag_files.read_image_tags(
    path, pathlib.Path(split.name), ids
  )
  if missing:
    first = next(iter(missing))
    raise errors.UserError(
      errors.format_on_one_line(
        f'tags: expected {path} to list all images of {split.name}, got none '
        f'of {len(missing):,}, as {first}'
      )
    )
  tags = []
  for each in ids:
    for label in labels[each]:
      if label not in names:
        raise errors.UserError(
          f'tags: {path}: {each}: expected classes of {split.name}, '
          f'{", ".join(split.classes)}, got {label!r}'
        )
    tags.append(sorted({0, *(names[label] for label in labels[each])}))
  kinds = dict.fromkeys((*split.label_kinds, 'tags'))
  return dataclasses.replace(
    split,
    label_kinds=tuple(kinds),
    records=record_views.Retagged(split.records, tags),
  )
