"""CamVid: street scenes from a driving car, 11 classes.

G. J. Brostow, J. Fauqueur, R. Cipolla: Semantic object classes in video, 2009;
in the cut to 480x360 pixels and 11 classes of V. Badrinarayanan, A. Kendall,
R. Cipolla: SegNet, 2017. The frames of a split follow each other in time, and
those of `val` lie within a sequence of `train`: its scores are optimistic.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from input_pipeline import audit, errors
from input_pipeline.audit import Audit, Listing
from input_pipeline.builders import folders, records

SPLITS = ('train', 'val')
CLASSES = (
  'Sky',
  'Building',
  'Pole',
  'Road',
  'Pavement',
  'Tree',
  'SignSymbol',
  'Fence',
  'Car',
  'Pedestrian',
  'Bicyclist',
)
PALETTE = (
  (128, 128, 128),
  (128, 0, 0),
  (192, 192, 128),
  (128, 64, 128),
  (60, 40, 222),
  (128, 128, 0),
  (192, 128, 128),
  (64, 64, 128),
  (64, 0, 128),
  (64, 64, 0),
  (0, 128, 192),
)
UNLABELLED = 11

CODE = folders.MaskCode(
  names=CLASSES,
  values=tuple(range(len(CLASSES))),
  ignored_values=(UNLABELLED,),
)


class Camvid(records.Builder):
  """CamVid with 11 classes, from SOURCE/{train,val}/{images,labels}.

  Images are JPEG files, labels PNG files of class ids with 11 where nothing is
  labelled. Ids are 'train/NAME'. Tags are the classes in the mask.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, source: str = '', **kwargs: Any):
    """Opens no file yet.

    Args:
      source: folder of `train` and `val`; not needed once it is prepared.
      **kwargs: `data_dir`, where records are prepared.
    """
    self._source = source
    self._audit: Audit | None = None
    super().__init__(**kwargs)
    self._original_state['source'] = source  # What pickling sends.

  def contents(self) -> records.Contents:
    """Eleven classes, with masks and tags."""
    return records.Contents(CLASSES, PALETTE, labels=True, tags=True)

  def audit(self) -> Audit:
    """Decodes all files, once.

    A benchmark is whole or it is not that benchmark: nothing is skipped.

    Raises:
      UserError: a folder is missing or a file is bad.
    """
    if self._audit is None:
      listings = {split: self._list(split) for split in SPLITS}
      self._audit = audit.run(
        {split: listing.examples for split, listing in listings.items()},
        CLASSES,
        CODE.read,
        problems=[p for found in listings.values() for p in found.problems],
        warnings=[w for found in listings.values() for w in found.warnings],
        remedy='get the data set again: its records are whole or not made',
      )
    return self._audit

  def splits(self) -> Mapping[str, Iterator[records.Record]]:
    """The records of both splits, sorted by name."""
    return {
      split: (folders.labelled_record(example, CODE) for example in examples)
      for split, examples in self.audit().examples.items()
    }

  def _list(self, split: str) -> Listing:
    """The files of a split."""
    if not self._source:
      raise errors.UserError(
        'source is empty: give the folder of camvid, with '
        '{train,val}/{images,labels} in it, or set SEG_DATA_DIR to the folder '
        'that holds it'
      )
    folder = pathlib.Path(self._source).expanduser() / split
    for part in (folder / 'images', folder / 'labels'):
      if not part.is_dir():
        raise errors.UserError(
          f'source: there is no folder {part}; camvid is expected as '
          '{train,val}/{images,labels}'
        )
    return audit.list_examples(
      folder / 'images', folder / 'labels', prefix=f'{split}/'
    )
