"""What a run says about its labels."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline import datasets, splits
from segcore.distributed import sharding
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import reporting
from segcore.models import network_options
from segcore.ops import class_weights
from segcore.train import operation_options
from segcore.train import workspace as workspace_lib
from tests.support import fake_data, messages


def split_of(*labels, num_classes=4):
  image = np.zeros((2, 3, 3))
  examples = [
    fake_data.make_record(i, image, np.array(label, np.int16), num_classes)
    for i, label in enumerate(labels)
  ]
  return fake_data.make_split(examples, num_classes)


ALL = [[0, 1, 2], [3, 3, -1]]


@pytest.mark.parametrize(
  ('labels', 'unseen'),
  [
    ([ALL], []),
    ([[[0] * 3] * 2, ALL], []),
    ([[[0, 1, -1], [0, 0, 0]], [[1] * 3] * 2], [2, 3]),
    ([[[-1] * 3] * 2], [0, 1, 2, 3]),
  ],
)
def test_classes_that_no_labeled_image_shows_are_named(capsys, labels, unseen):
  split = split_of(*labels)
  data_lib.warn_of_unseen_classes(split)
  out = capsys.readouterr().out
  if not unseen:
    assert out == ''
  else:
    names = ', '.join(repr(split.classes[i]) for i in unseen)
    assert out == (
      f'warning: no labeled image of {split.name} shows {names}: choose other '
      'labeled images, or more\n'
    )


def test_a_class_of_no_image_at_all_is_told_apart(capsys):
  split = split_of([[0, 0, 1], [1, 1, 1]])
  data_lib.warn_of_unseen_classes(split, absent=(3,))
  assert capsys.readouterr().out == (
    f"warning: no labeled image of {split.name} shows 'class3': nor does any "
    f'other image of the split\nwarning: no labeled image of {split.name} '
    "shows 'class2': choose other labeled images, or more\n"
  )


def test_class_weights_are_those_of_the_labeled_masks(tmp_path, capsys):
  split = split_of(ALL, [[0, 0, 0], [0, 1, -1]])
  workspace = workspace_lib.Workspace(tmp_path, {}, 'digest')
  options = class_weights.LossClassWeightOptions('median')
  weights = data_lib.stage_class_weights(workspace, split, options)
  # Pixels 5, 2, 1, 2: the median is 2.
  assert weights == (0.6325, 1.0, 1.4142, 1.0)
  assert capsys.readouterr().out == (
    'class weights (median): from 0.6325 (class0) to 1.4142 (class2)\n'
  )
  assert json.loads((tmp_path / 'class_weights.json').read_text()) == {
    f'class{i}': weight for i, weight in enumerate(weights)
  }
  refused = messages.message_of(
    data_lib.stage_class_weights,
    workspace,
    split.select(np.array([0])),
    options,
  )
  assert refused.startswith(f'the class weights changed since {tmp_path} was')


def test_without_class_weights_nothing_is_written(tmp_path, capsys):
  workspace = workspace_lib.Workspace(tmp_path, {}, 'digest')
  options = class_weights.LossClassWeightOptions()
  assert data_lib.stage_class_weights(workspace, split_of(ALL), options) is None
  assert not [*tmp_path.iterdir()] and not capsys.readouterr().out


def context_and_block(split, **subset):
  data = datasets.DataOptions('shapes/scenes')
  context = context_lib.Context(
    network_options.NetworkOptions({'name': 'vit'}),
    '',
    operation_options.OperationOptions(),
    sharding.make_mesh(),
    opened={(data, 'train'): split},
  )
  block = data_lib.LabeledData(data=data, subset=splits.Subset(**subset))
  return context, block


def test_labeled_images_cover_the_classes_of_all_masks():
  split = split_of(
    *([[[0] * 3] * 2] * 6), [[1, 0, 0], [0, 0, 0]], [[2, 2, 2], [-1, 0, 0]]
  )
  shared, block = context_and_block(split, labels=2, cover=True)
  labeled = shared.labeled(block, 'finetune')
  assert labeled.ids() == ['image06', 'image07']
  assert shared.absent_classes(block, 'finetune') == (3,)
  alone = dataclasses.replace(block, subset=splits.Subset(2))
  assert shared.absent_classes(alone, 'finetune') == ()


@pytest.mark.parametrize('held_out', [0, 3])
def test_images_that_are_not_labeled_are_a_split_of_their_own(held_out):
  split = split_of(*([ALL] * 10))
  context, block = context_and_block(split, labels=4, held_out=held_out)
  parts = [context.evaluated(block, 'train', 'finetune')]
  parts.append(context.evaluated(block, 'not_labeled', 'finetune'))
  if held_out:
    parts.append(context.evaluated(block, 'held_out', 'finetune'))
  assert [len(part) for part in parts[:2]] == [4, 6 - held_out]
  ids = [name for part in parts for name in part.ids()]
  assert sorted(ids) == split.ids()


def test_without_images_that_are_not_labeled_their_split_is_refused():
  context, block = context_and_block(split_of(*([ALL] * 4)), labels=4)
  assert messages.message_of(
    context.evaluated, block, 'not_labeled', 'evaluate'
  ).startswith(
    "split 'not_labeled': expected images of 'train' that are neither labeled "
    'nor held out, got none: label fewer of the 4 images'
  )


def test_without_a_counted_label_no_state_is_the_best(tmp_path):
  stage = SimpleNamespace(
    options=SimpleNamespace(which='best'),
    path='config.evaluate',
    trained_by='finetune',
    labeled_data=SimpleNamespace(val_split='val'),
  )
  read = reporting.EvaluateStage._read_state
  assert messages.message_of(read, stage, tmp_path) == (
    "config.evaluate.which: expected 'last', as finetune has kept no best "
    "state (no label of val was counted), got 'best'"
  )
