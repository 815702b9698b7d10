"""Pascal Context: VOC 2010 with every pixel labeled, in 59 classes.

R. Mottaghi et al.: The role of context for object detection and semantic
segmentation in the wild, 2014. Labels are read from the official `.mat` files,
which have 459 classes, or from `trainval_merged.json` of the Detail API, which
has only the 59.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16
from pycocotools import mask as coco

from input_pipeline import batch
from input_pipeline.builders import files
from input_pipeline.sources import archives, masks, pairing, records
from runtime import errors

# Among the ids of the 459 classes, those of the 59, in the order of class ids.
OFFICIAL_IDS = (
  2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85,
  98, 104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258,
  259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368,
  397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
CLASSES = (
  'aeroplane', 'bag', 'bed', 'bedclothes', 'bench', 'bicycle', 'bird',
  'boat', 'book', 'bottle', 'building', 'bus', 'cabinet', 'car', 'cat',
  'ceiling', 'chair', 'cloth', 'computer', 'cow', 'cup', 'curtain', 'dog',
  'door', 'fence', 'floor', 'flower', 'food', 'grass', 'ground', 'horse',
  'keyboard', 'light', 'motorbike', 'mountain', 'mouse', 'person', 'plate',
  'platform', 'pottedplant', 'road', 'rock', 'sheep', 'shelves', 'sidewalk',
  'sign', 'sky', 'snow', 'sofa', 'table', 'track', 'train', 'tree', 'truck',
  'tvmonitor', 'wall', 'water', 'window', 'wood',
)  # fmt: skip
NUM_OFFICIAL = 459


@dataclasses.dataclass(eq=False)
class PascalContextConfig(tfds.core.BuilderConfig):
  """The variant: 59 classes, or 60 with the background as a class."""

  background: bool = False


@dataclasses.dataclass(frozen=True)
class Annotation:
  """The masks of one image in the list of the Detail API, read like a file.

  Attributes:
    path: path of the list.
    name: name of the image.
    segments: (class id, run-length encoding, height, width) of each mask, sizes
      in pixels.
  """

  path: str
  name: str
  segments: tuple[tuple[int, str, int, int], ...]

  @property
  def size(self) -> int:
    """Returns the size of the encoded masks in bytes."""
    return sum(len(counts) for _, counts, _, _ in self.segments)

  def stamp(self) -> tuple[Any, ...]:
    """Returns the path and a digest of the masks."""
    content = hashlib.sha256(self.read_bytes()).hexdigest()
    return (self.path, self.name, content)

  def read_bytes(self) -> bytes:
    """Returns the encoded masks as JSON."""
    return json.dumps(self.segments).encode()

  def __str__(self):
    return f'{self.path}:{self.name}'

  def values(self) -> np.ndarray:
    """Decodes the ids of the 459 classes [H, W]; 0 where nothing is labeled.

    Raises:
      UserError: a mask cannot be decoded.
    """
    if not self.segments:
      raise errors.UserError('has no segment: download the list again')
    _, _, height, width = self.segments[0]
    values = np.zeros((height, width), np.int32)
    for class_id, counts, h, w in self.segments:
      try:
        mask = coco.decode({'size': [h, w], 'counts': counts.encode()})
        values[mask > 0] = class_id
      except Exception as error:  # pycocotools raises any exception.
        raise errors.UserError(
          errors.format_on_one_line(
            f'has a mask that cannot be decoded: {error}'
          )
        ) from error
    return values


class PascalContext(files.OfficialBuilder):
  """Pascal Context with 59 classes, or 60 with the background.

  Ids are those of VOC ('2008_000002'). Tags are the classes in the mask.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar = [
    PascalContextConfig('59'),
    PascalContextConfig('60', background=True),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = '59'
  patterns = ('VOCtrainval*2010*.tar', 'trainval*.tar.gz', 'trainval*.tgz')
  counts: ClassVar = {'train': 4998, 'val': 5105}

  def schema(self) -> records.Schema:
    """Returns the 59 classes, preceded by the background if it is a class."""
    classes = ('background',) * self.builder_config.background + CLASSES
    return records.Schema(classes, masks.voc_palette(len(classes)), tags=True)

  def find_examples(
    self, sources: files.Files
  ) -> Mapping[str, pairing.Listing]:
    """Pairs images and labels of the main lists of VOC 2010."""
    images = files.match_source_files(
      sources, r'VOC2010/JPEGImages/(?P<id>\w+)\.jpg'
    )
    main = r'VOC2010/ImageSets/Main/(?P<id>train|val)\.txt'
    lists = files.match_source_files(sources, main)
    labels: Mapping[str, archives.File]
    labels = files.match_source_files(sources, r'(?P<id>\d{4}_\d{6})\.mat')
    merged = files.match_source_files(sources, r'(?P<id>trainval_merged)\.json')
    if merged and not labels:
      labels = read_mask_annotations(merged['trainval_merged'])
    self.require_files(
      {
        'VOC2010/JPEGImages/*.jpg': images,
        'VOC2010/ImageSets/Main/{train,val}.txt': len(lists) == 2,
        'trainval/*.mat or trainval_merged.json': labels,
      }
    )
    return {
      split: files.pair_images_and_masks(
        files.read_official_list(lists[split]),
        images,
        labels,
        str(lists[split]),
      )
      for split in self.counts
    }

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads the id of each pixel and maps it to a class."""
    background = self.builder_config.background
    if isinstance(file, Annotation):
      return make_pascal_context_table(background, official=False).apply(
        file.values()
      )
    values = files.read_mat_file(file, 'LabelMap')
    return make_pascal_context_table(background, official=True).apply(values)


@functools.cache
def make_pascal_context_table(
  background: bool, official: bool
) -> masks.CodeTable:
  """Builds the table from the 459 official ids to class ids.

  Args:
    background: whether pixels of none of the 59 classes are a class; else they
      are ignored.
    official: whether ids other than those of the 59 classes may occur.
  """
  rest = 0 if background else batch.IGNORE
  ids = dict.fromkeys(range(NUM_OFFICIAL + 1) if official else (0,), rest)
  first = int(background)
  return masks.CodeTable(
    {**ids, **{raw: first + i for i, raw in enumerate(OFFICIAL_IDS)}}
  )


def read_mask_annotations(file: archives.File) -> Mapping[str, Annotation]:
  """Reads the masks of the Detail API's list, by VOC id.

  Raises:
    BadFile: the file is not that list.
  """
  try:
    content = json.loads(file.read_bytes())
    segments = collections.defaultdict(list)
    for segment in content['annos_segmentation']:
      mask = segment['segmentation']
      height, width = mask['size']
      segments[segment['image_id']].append(
        (int(segment['category_id']), str(mask['counts']), height, width)
      )
    return {
      pathlib.PurePath(image['file_name']).stem: Annotation(
        str(file),
        image['file_name'],
        tuple(segments.get(image['image_id'], ())),
      )
      for image in content['images']
    }
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.BadFile(
      file,
      'expected the list of the Detail API, got another or a damaged one '
      f'({type(error).__name__}: {error}): download it again',
    ) from error
