"""Results of a stage: in results.json, in TensorBoard and as pictures."""

import json

import numpy as np
import PIL.Image
from tensorboard.backend.event_processing import event_accumulator

from segcore.eval import results as results_lib
from segcore.train import workspace as workspace_lib
from tests.support import fake_data


def test_results_are_written_to_all_places(tmp_path):
  split = fake_data.labeled_split([(8, 8)] * 3)
  workspace = workspace_lib.Workspace(tmp_path, {}, 'abc')
  panel = np.full((4, 6, 3), 200, np.uint8)
  results = results_lib.Results(workspace, step=7)
  iou = np.linspace(0, 1, len(split.classes))
  counts = np.eye(len(split.classes), dtype=np.int64)
  values = {'miou': 0.5, 'f': float('nan'), 'iou': iou, 'confusion': counts}
  results.add('val', values, split, panel)
  results.write_panel('attention', panel)
  path, pictures = results.write(protocol='one view')

  content = json.loads(path.read_text())
  assert (content['protocol'], content['digest']) == ('one view', 'abc')
  val = content['splits']['val']
  assert val['num_images'] == 3
  # NaN is null in the file, and left out of the curves.
  assert val['metrics'] == {'miou': 0.5, 'f': None}
  assert val['undefined'] == 'f: undefined, no label was counted for it'
  assert [*val['per_class']['iou']] == list(split.classes)
  assert [*val['per_class']] == ['iou']
  assert (pictures / 'val_confusion.png').exists()
  for name in ('val', 'attention'):
    picture = PIL.Image.open(pictures / f'{name}.png')
    np.testing.assert_array_equal(np.asarray(picture), panel)

  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  tags = events.Tags()
  assert tags['tensors'] or tags['scalars']
  names = {*tags['scalars'], *tags['images'], *tags['tensors']}
  assert {'val/miou', 'val/panels', 'attention/panels'} <= names
  assert {'val/confusion', f'val_iou/{split.classes[1]}'} <= names
  assert not {'val/f', 'val/iou'} & names
