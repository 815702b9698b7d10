"""Data and loaders of the fake methods: few images of known content."""

import contextlib
import dataclasses
import time

import cv2
import numpy as np

from input_pipeline import batch as batch_lib
from input_pipeline import datasets, loader, resampling, transforms, views
from input_pipeline.sources import fingerprints, records

NUM_CLASSES = 4
BATCH_SIZE = 8


def labeled_split(
  sizes: list[tuple[int, int]], num_classes: int = NUM_CLASSES, seed: int = 0
) -> datasets.Split:
  """Draws images of rectangles with a color per class and ignored pixels."""
  rng = np.random.default_rng(seed)
  palette = rng.integers(0, 256, (num_classes, 3))
  examples = []
  for i, size in enumerate(sizes):
    coarse = rng.integers(0, num_classes, (4, 4))
    label = resampling.resize_label_nearest(coarse, size)
    image = palette[label] + rng.normal(0, 20, (*size, 3))
    label[:2, :3] = batch_lib.IGNORE
    examples.append(make_record(i, image.clip(0, 255), label, num_classes))
  return make_split(examples, num_classes)


def coordinate_split(
  count: int, size: tuple[int, int] = (40, 48)
) -> datasets.Split:
  """Draws images with the position in the color: red 5x, green 6y, blue 10i."""
  y, x = np.mgrid[: size[0], : size[1]]
  return make_split(
    [
      make_record(i, np.stack([5 * x, 6 * y, np.full(size, 10 * i)], -1))
      for i in range(count)
    ]
  )


def make_record(
  i, image, label=None, num_classes=NUM_CLASSES
) -> records.Record:
  _, png = cv2.imencode('.png', image.astype(np.uint8)[..., ::-1])
  record = {'image': png.tobytes(), 'id': f'image{i:02}'.encode()}
  if label is not None:
    record['label'] = records.encode_record_label(label, num_classes)
  return record


def make_split(examples, num_classes=NUM_CLASSES) -> datasets.Split:
  return datasets.Split(
    name='fake train',
    version='fake/1.0.0',
    classes=tuple(f'class{i}' for i in range(num_classes)),
    palette=((0, 0, 0),) * num_classes,
    label_kinds=('label',) if 'label' in examples[0] else (),
    records=examples,
    index=fingerprints.ImageIndex.from_samples(
      [
        records.Sample(
          example['id'].decode(),
          example['image'],
          records.decode_record_image(example['image']),
        )
        for example in examples
      ]
    ),
  )


@dataclasses.dataclass(frozen=True)
class TestLoader(loader.Loader):
  """A loader that fails, or hangs, at the batch of an index."""

  __test__ = False

  fails_at: int = -1
  hangs_at: int = -1

  @contextlib.contextmanager
  def start(self, step):
    with super().start(step) as batches:
      yield self._disturbed(batches, step)

  def _disturbed(self, batches, step):
    for index, batch in enumerate(batches, start=step):
      if index == self.fails_at:
        raise ConnectionError(f'batch {index} is lost')
      if index == self.hangs_at:
        time.sleep(60)
      yield batch


def two_stream_loader(**fields) -> TestLoader:
  """Loads batches of labeled and unlabeled images of 16 x 16 pixels."""
  labeled = labeled_split([(20, 24)] * 11)
  unlabeled = labeled_split([(24, 18)] * 13, seed=1)
  decode = transforms.Decode(NUM_CLASSES)
  return make_two_stream_loader(labeled, decode, unlabeled, **fields)


def make_two_stream_loader(labeled, labels, unlabeled, **fields) -> TestLoader:
  """Loads two streams of given splits.

  Args:
    labeled: split of the labeled stream.
    labels: transform that decodes its images and labels.
    unlabeled: split of the unlabeled stream.
    **fields: of the loader.
  """
  augmentations = (transforms.RandomCrop((16, 16)), transforms.RandomFlip())
  decode = transforms.Decode(NUM_CLASSES, keep=())
  streams = {
    'labeled': _stream(labeled, labels, *augmentations),
    'unlabeled': _stream(unlabeled, decode, *augmentations),
  }
  return TestLoader(streams, BATCH_SIZE, seed=3, **fields)


def multi_view_loader(**fields) -> TestLoader:
  """Loads batches of two views of 24 pixels and three of 16 pixels."""
  crop = views.MultiCrop(
    (
      views.ViewGroup('large', 2, (24, 24), area=(0.4, 1.0)),
      views.ViewGroup('small', 3, (16, 16), area=(0.1, 0.4)),
    )
  )
  decode = transforms.Decode(NUM_CLASSES, keep=())
  streams = {'': _stream(coordinate_split(10), decode, crop)}
  return TestLoader(streams, BATCH_SIZE, seed=4, **fields)


def _stream(split, *steps) -> loader.Stream:
  return loader.Stream(split.records, transforms.Compose(steps))
