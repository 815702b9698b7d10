"""Splits whose images have other tags: clusters, or sub-categories as well."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from input_pipeline import datasets
from input_pipeline.sources import masks, records
from pass_luss.benchmark import label_folders
from runtime import errors, threads


class TaggedRecords(Sequence[records.Record]):
  """Records with the given tags instead of their own labels.

  Args:
    source: records of the images.
    tags: class ids of each image.
  """

  def __init__(
    self, source: Sequence[records.Record], tags: Sequence[tuple[int, ...]]
  ):
    self._source = source
    self._tags = tags

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i) -> records.Record:
    record = {**self._source[int(i)], 'tags': self._tags[int(i)]}
    record.pop('label', None)
    return record

  def __repr__(self) -> str:
    return f'TaggedRecords({len(self)} records)'


def read_image_tags(split: datasets.Split) -> list[tuple[int, ...]]:
  """Reads the classes of each image, which has at least one.

  Raises:
    UserError: an image has none.
  """
  tags = list(
    threads.map_in_threads(
      lambda i: tuple(map(int, split.records[i]['tags'])), range(len(split))
    )
  )
  for name, classes in zip(split.ids(), tags, strict=True):
    if not classes or min(classes) < 1:
      raise errors.UserError(
        f'{split.name}: expected tags of 1 or more for each image, got '
        f'{classes} of {name}: choose images that show a class'
      )
  return tags


def read_single_tags(split: datasets.Split) -> dict[str, int]:
  """Reads the class of each image by id.

  Raises:
    UserError: an image has several classes.
  """
  tags = dict(zip(split.ids(), read_image_tags(split), strict=True))
  several = [name for name, classes in tags.items() if len(classes) > 1]
  if several:
    raise errors.UserError(
      f'{split.name}: expected images of one class, got {len(several):,} of '
      f'several, as {several[0]}: leave out label_cam, or choose other images'
    )
  return {name: classes[0] for name, classes in tags.items()}


def with_cluster_tags(
  split: datasets.Split, clusters: Int[np.ndarray, 'N']
) -> datasets.Split:
  """Returns the split with the cluster of each image as its only tag.

  Its classes are 'other' and as many categories as there are classes.

  Args:
    split: the images.
    clusters: cluster of each image, from 0, in the order of the split.
  """
  return label_folders.categorized_split(
    split,
    'clusters',
    'tags',
    len(split.classes) - 1,
    TaggedRecords(split.records, [(1 + i,) for i in clusters.tolist()]),
  )


def with_subcategory_tags(
  split: datasets.Split,
  subcategories: Mapping[tuple[int, int], int],
  count: int,
) -> datasets.Split:
  """Returns the split with the sub-categories of images among their tags.

  After its classes 0…C come `count` sub-categories of class 1, those of class
  2, and so on.

  Args:
    split: images with tags.
    subcategories: sub-category, from 0, by (index of the image, class).
    count: number of sub-categories of a class.
  """
  classes = split.classes
  tags: list[list[int]] = [[] for _ in range(len(split))]
  for (i, category), sub in subcategories.items():
    tags[i] += [category, len(classes) + count * (category - 1) + sub]
  names = [f'{name} {k + 1}' for name in classes[1:] for k in range(count)]
  return dataclasses.replace(
    split,
    name=f'{split.name} with sub-categories',
    classes=(*classes, *names),
    palette=masks.voc_palette(len(classes) + len(names)),
    label_kinds=('tags',),
    records=TaggedRecords(split.records, [tuple(each) for each in tags]),
  )
