"""Folders of label maps: written in blocks, kept, and read as labels."""

import numpy as np
import pytest

from pass_luss.benchmark import label_folders, png_format
from runtime import errors
from segcore.train import workspace as workspace_lib
from tests.pass_luss import support
from tests.support import fake_data


def test_records_get_the_label_maps_of_the_folder(tmp_path):
  split = fake_data.coordinate_split(3)
  rng = np.random.default_rng(0)
  labels = rng.integers(0, support.CLASSES + 1, (3, 40, 48))
  for name, label in zip(split.ids()[:2], labels, strict=False):
    png_format.write_imagenet_s_png(
      label_folders.label_map_path(tmp_path, name), label
    )
  with pytest.raises(
    errors.UserError, match='expected label maps of 3 images, got 2'
  ):
    label_folders.with_pseudo_labels(split, tmp_path, support.CLASSES)
  png_format.write_imagenet_s_png(
    label_folders.label_map_path(tmp_path, split.ids()[2]), labels[2]
  )
  labeled = label_folders.with_pseudo_labels(split, tmp_path, support.CLASSES)
  assert len(labeled.classes) == support.CLASSES + 1
  for i, label in enumerate(labels):
    record = labeled.records[i]
    np.testing.assert_array_equal(record['label'], label)
    assert record['image'] == split.records[i]['image']


def test_images_of_equal_input_size_share_a_block(folder, monkeypatch):
  monkeypatch.setattr(label_folders, '_BLOCK', 2)
  workspace = workspace_lib.Workspace(folder, {}, 'digest')
  sizes = [(6, 8), (9, 9), (12, 16), (5, 5), (3, 4)]
  split = fake_data.make_split(
    [
      fake_data.make_record(i, np.zeros((*size, 3)), np.zeros(size), 4)
      for i, size in enumerate(sizes)
    ]
  )
  blocks, stops = [], [False, True]
  monkeypatch.setattr(
    type(workspace.preemption), 'reached', lambda self: stops and stops.pop(0)
  )

  def maps(part):
    blocks.append([*part.ids()])
    for name, size in zip(part.ids(), part.sizes(), strict=True):
      yield np.ones(size, int), {'id': np.bytes_(name)}

  with pytest.raises(workspace_lib.Preempted, match='keeps the labels it has'):
    label_folders.write_missing_label_maps(
      split, maps, folder / 'val', workspace, 12
    )
  label_folders.write_missing_label_maps(
    split, maps, folder / 'val', workspace, 12
  )
  # Input sizes are (12, 12) twice and (12, 16) three times; blocks hold 2.
  ids = split.ids()
  assert blocks == [[ids[1], ids[3]], [ids[0], ids[2]], [ids[4]]]
  assert (
    len(label_folders.indices_without_label_map(split, folder / 'val')) == 0
  )
