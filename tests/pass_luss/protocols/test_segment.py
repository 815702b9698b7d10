"""Matching and scores of label map files, and submissions."""

import io
import zipfile

import numpy as np
import pytest

from pass_luss.benchmark import label_folders, matching, png_format
from pass_luss.protocols import protocol_options, segment
from segcore.train import workspace as workspace_lib
from tests.support import fake_data


def test_permuted_ground_truth_scores_100_percent_after_matching(folder):
  rng = np.random.default_rng(0)
  split = fake_data.make_split(
    [
      fake_data.make_record(
        i, np.zeros((6, 8, 3)), rng.choice([-1, 0, 1 + i % 3], (6, 8)), 4
      )
      for i in range(5)
    ]
  )
  count = len(split.classes) - 1
  permutation = np.array([0, 3, 1, 2])
  workspace = workspace_lib.Workspace(folder, {}, 'digest')
  folder = folder / 'val'

  def maps(part):
    for record in (part.records[i] for i in range(len(part))):
      label = segment.records.decode_record_label(record['label'])
      yield permutation[np.maximum(label, 0)], {'id': np.bytes_(record['id'])}

  label_folders.write_missing_label_maps(split, maps, folder, workspace, 40)
  match = segment.match_label_map_files(split, folder, count)
  assert match.classes == (0, 2, 3, 1)
  values = segment.score_label_map_files(split, folder, count, match)
  assert values['miou'] == pytest.approx(1.0)
  assert segment.score_label_map_files(split, folder, count, None)['miou'] < 0.5

  # Existing files are kept; only missing ones are computed.
  computed = []

  def recorded_maps(part):
    computed.extend(part.ids())
    return maps(part)

  label_folders.write_missing_label_maps(
    split, recorded_maps, folder, workspace, 40
  )
  assert computed == []
  label_folders.label_map_path(folder, split.ids()[2]).unlink()
  label_folders.write_missing_label_maps(
    split, recorded_maps, folder, workspace, 40
  )
  assert computed == [split.ids()[2]]


def test_submission_zip(folder):
  folder = folder / 'test'
  split = fake_data.coordinate_split(2)
  for name in split.ids():
    png_format.write_imagenet_s_png(folder / f'{name}.png', np.array([[0, 2]]))
  match = folder.parent / 'match.json'
  matching.Match((0, 2, 1)).write(match)
  about = protocol_options.SubmissionInfo(name='ours', networks='ResNet-18')
  path = segment.write_submission(split, folder, match, about)
  with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
    assert sorted(archive.namelist()) == [
      *(f'{name}.png' for name in split.ids()),
      *('match.json', 'method.txt'),
    ]
    text = archive.read('method.txt').decode()
  assert text.splitlines()[0] == 'Method name: ours'
  assert [line.split(':')[0] for line in text.splitlines()] == [
    *('Method name', 'Training data', 'Training scheme', 'Networks'),
    *('Paper/Project link', 'Method description'),
  ]
