"""What a record holds, and the TFDS builder that all data sets share.

A record is a dict of

  image  the encoded image (JPEG or PNG bytes, as the data set published them)
  label  a PNG of class id + 1, 0 where ignored: 8 bits up to 254 classes,
         16 bits above (only in data sets that have masks)
  tags   class ids of the whole image (only in data sets that have them)
  id     the official name

Labels are shifted by one so that no class id is special: every data set is
decoded by the same line, whatever it calls ignored.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline import batch, errors

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Contents:
  """What the records of a data set mean.

  Attributes:
    classes: name of each class id.
    palette: RGB colour of each class id, for pictures.
    labels: whether records have masks.
    tags: whether records have image-level labels.
  """

  classes: tuple[str, ...]
  palette: tuple[tuple[int, int, int], ...]
  labels: bool = True
  tags: bool = False

  def __post_init__(self):
    if len(self.classes) != len(self.palette):
      raise ValueError(
        f'{len(self.classes)} classes but {len(self.palette)} colours'
      )


def label_dtype(num_classes: int) -> type[np.unsignedinteger]:
  """The type in which class id + 1 is stored: 8 bits up to 254 classes."""
  return np.uint8 if num_classes <= 254 else np.uint16


def encode_label(label: np.ndarray, num_classes: int) -> bytes:
  """Encodes class ids [H, W] (negative: ignored) as the PNG of a record.

  Raises:
    ValueError: a class id is not below `num_classes`.
  """
  if label.max(initial=-1) >= num_classes:
    raise ValueError(f'label {label.max()} of {num_classes} classes')
  shifted = np.maximum(label.astype(np.int32) + 1, 0)
  _, png = cv2.imencode('.png', shifted.astype(label_dtype(num_classes)))
  return png.tobytes()


def decode_label(png: bytes) -> Int16[np.ndarray, 'H W']:
  """Decodes the PNG of a record to class ids; -1 where ignored.

  Raises:
    UserError: the bytes are no image.
  """
  shifted = _decode(png, cv2.IMREAD_UNCHANGED, 'a label')
  # In one pass over memory.
  return np.add(shifted, batch.IGNORE, dtype=np.int16)


def decode_image(encoded: bytes) -> np.ndarray:
  """Decodes JPEG or PNG bytes to RGB uint8 [H, W, 3].

  Raises:
    UserError: the bytes are no image.
  """
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  return _decode(encoded, flags, 'an image')


def _decode(encoded: bytes, flags: int, what: str) -> np.ndarray:
  pixels = (
    cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
  )
  if pixels is None:
    raise errors.UserError(
      f'{what} of {len(encoded)} bytes cannot be decoded: the record is '
      'damaged, prepare the data set again'
    )
  return pixels


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder of segmentation records, without TensorFlow.

  A data set subclasses it, sets `VERSION`, and gives `contents` and `splits`.
  Records are written to array_record files in the order of `splits`, so that
  index i of a split is the same image wherever it is prepared.
  """

  # TFDS would look beside the code for checksums of downloads, with a package
  # (importlib_resources) that it does not ask for.
  code_path = None

  def __init__(self, **kwargs):
    super().__init__(file_format='array_record', **kwargs)

  def contents(self) -> Contents:
    """Classes, colours and which kinds of label there are."""
    raise NotImplementedError

  def splits(self) -> Mapping[str, Iterable[Record]]:
    """The records of each split."""
    raise NotImplementedError

  def audit(self) -> Any:
    """Checks the files that records are made from (`input_pipeline.audit`).

    Returns:
      An `audit.Audit`, or None where records are not made from files.

    Raises:
      UserError: a file is bad.
    """
    return None

  def _info(self) -> tfds.core.DatasetInfo:
    contents = self.contents()
    features: dict[str, Any] = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'id': tfds.features.Text(),
    }
    if contents.labels:
      features['label'] = tfds.features.Image(
        shape=(None, None, 1),
        dtype=label_dtype(len(contents.classes)),
        encoding_format='png',
      )
    if contents.tags:
      features['tags'] = tfds.features.Sequence(np.int32)
    return tfds.core.DatasetInfo(
      builder=self,
      description=(type(self).__doc__ or self.name).strip(),
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(
        classes=list(contents.classes),
        palette=[list(colour) for colour in contents.palette],
      ),
    )

  def _split_generators(self, dl_manager) -> Mapping[str, Iterator]:
    del dl_manager  # Nothing is downloaded.
    return {
      name: self._generate_examples(records)
      for name, records in self.splits().items()
    }

  def _generate_examples(self, records: Iterable[Record]) -> Iterator:
    yield from enumerate(records)
