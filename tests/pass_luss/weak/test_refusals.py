"""Options of weak supervision, and tags, that are refused."""

import dataclasses

import numpy as np
import pytest

from pass_luss.stages import cluster_images, segment_cam, subdivide
from pass_luss.weak import (
  classifier_options,
  image_tags,
)
from runtime import errors
from segcore.experiment import start
from tests.support import fake_data


@pytest.mark.parametrize(
  ('options', 'fields', 'message'),
  [
    (
      classifier_options.ClassifierOptions,
      {'dropout_rate': 1.0},
      'dropout_rate: expected < 1, got 1.0',
    ),
    (
      classifier_options.SeamOptions,
      {'scale': 1.0},
      'scale: expected 0 < scale < 1, got 1',
    ),
    (
      classifier_options.SeamOptions,
      {'scale': -0.5},
      'scale: expected 0 < .*, got -0.5',
    ),
    (
      classifier_options.SeamOptions,
      {'hardest': 0.0},
      r'hardest: expected \(0, 1\], got 0',
    ),
    (
      classifier_options.ScCamOptions,
      {'num_subcategories': 0},
      'num_subcategories: expected 1 or more, got 0',
    ),
    (
      classifier_options.ScCamOptions,
      {'sub_weight': -1.0},
      'sub_weight: expected 0 or mo',
    ),
    (
      classifier_options.AdvCamOptions,
      {'num_steps': 0},
      'num_steps: expected 1 or more',
    ),
    (
      classifier_options.AdvCamOptions,
      {'threshold': 2.0},
      'threshold: expected 0 to 1',
    ),
    (
      segment_cam.SegmentCamOptions,
      {'scales': (1.0, 0.0)},
      r'scales: expected factors > 0, got \(1.0, 0.0\)',
    ),
    (subdivide.SubdivideOptions, {'restarts': 0}, 'restarts: expected 1 or mo'),
    (
      cluster_images.ClusterImagesOptions,
      {'kind': 'pixel', 'start': start.Start('represent', ('encoder',))},
      "kind: expected 'image', got 'pixel'",
    ),
    (
      cluster_images.ClusterImagesOptions,
      {'start': start.Start()},
      r"start.take: expected \('encoder',\), got .*: name a stage or a weight",
    ),
  ],
)
def test_options(options, fields, message):
  with pytest.raises(ValueError, match=message):
    options(**fields)


def tagged(*tags):
  """Builds a split of images with the given tags."""
  image = np.zeros((4, 4, 3))
  split = fake_data.make_split(
    [fake_data.make_record(i, image) for i in range(len(tags))]
  )
  records = image_tags.TaggedRecords(split.records, tags)
  return dataclasses.replace(split, records=records)


def test_images_without_a_class():
  with pytest.raises(
    errors.UserError,
    match=r'tags of 1 or more for each image, got \(\) of image01: choose',
  ):
    image_tags.read_image_tags(tagged((2,), ()))


def test_images_of_several_classes():
  with pytest.raises(
    errors.UserError,
    match='images of one class, got 1 of several, as image01: leave out label',
  ):
    image_tags.read_single_tags(tagged((2,), (1, 2)))
