"""What a stage reports is in a file, in TensorBoard and in pictures."""

import json

import numpy as np
import PIL.Image
from tensorboard.backend.event_processing import event_accumulator

from segcore.eval import results as results_lib
from segcore.train import workspace as workspace_lib
from tests.support import fake_methods as fakes


def test_what_is_reported(tmp_path):
  split = fakes.labeled_split([(8, 8)] * 3)
  place = workspace_lib.Workspace(tmp_path, {}, 'abc')
  panel = np.full((4, 6, 3), 200, np.uint8)
  results = results_lib.Results(place, step=7)
  iou = np.linspace(0, 1, len(split.classes))
  results.add('val', {'miou': 0.5, 'f': float('nan'), 'iou': iou}, split, panel)
  results.draw('attention', panel)
  told, drawn = results.write(protocol='one view')

  found = json.loads(told.read_text())
  assert (found['protocol'], found['digest']) == ('one view', 'abc')
  val = found['splits']['val']
  assert val['num_images'] == 3
  # What is no number is none in the file, and not in the curves.
  assert val['metrics'] == {'miou': 0.5, 'f': None}
  assert [*val['per_class']['iou']] == list(split.classes)
  for name in ('val', 'attention'):
    picture = PIL.Image.open(drawn / f'{name}.png')
    np.testing.assert_array_equal(np.asarray(picture), panel)

  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  tags = events.Tags()
  assert tags['tensors'] or tags['scalars']
  names = {*tags['scalars'], *tags['images'], *tags['tensors']}
  assert {'val/miou', 'val/panels', 'attention/panels'} <= names
  assert not {'val/f', 'val/iou'} & names
