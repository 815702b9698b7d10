"""The example that trains Mask R-CNN; all but one test need torchvision."""

import importlib
import json
import sys

import numpy as np
import PIL.Image
import pytest

MODULE = 'examples.coco_mask_rcnn'


def test_a_missing_package_is_named(monkeypatch, capsys):
  monkeypatch.delitem(sys.modules, MODULE, raising=False)
  monkeypatch.setitem(sys.modules, 'pycocotools', None)
  with pytest.raises(SystemExit, match='2'):
    importlib.import_module(MODULE)
  assert 'error: expected the package pycocotools' in capsys.readouterr().err


@pytest.fixture(scope='module')
def example():
  pytest.importorskip('torchvision')
  pytest.importorskip('pycocotools')
  return importlib.import_module(MODULE)


@pytest.fixture
def coco(tmp_path):
  """Writes images of 60x90 pixels with rectangles of two classes, as COCO."""
  for split, count in (('train2017', 5), ('val2017', 2)):
    (tmp_path / split).mkdir()
    images, objects = [], []
    for i in range(count):
      name = f'{i}.png'
      rng = np.random.default_rng(i)
      pixels = rng.integers(0, 256, (60, 90, 3), np.uint8)
      PIL.Image.fromarray(pixels).save(tmp_path / split / name)
      images.append({'id': i, 'file_name': name, 'height': 60, 'width': 90})
      for left in (5, 40) if i else ():  # The first has no objects.
        right = left + 30
        corners = [left, 10, right, 10, right, 50, left, 50]
        objects.append(
          {
            'id': len(objects) + 1,
            'image_id': i,
            'category_id': 1 if left == 5 else 3,
            'bbox': [left, 10, 30, 40],
            'area': 1200,
            'iscrowd': 0,
            'segmentation': [corners],
          }
        )
    counts = {'size': [60, 90], 'counts': [0, 5400]}
    crowd = {'id': 99, 'image_id': 0, 'category_id': 1, 'iscrowd': 1}
    crowd |= {'bbox': [0, 0, 90, 60], 'area': 5400, 'segmentation': counts}
    content = {
      'images': images,
      'annotations': [*objects, crowd],
      'categories': [{'id': 1, 'name': 'a'}, {'id': 3, 'name': 'c'}],
    }
    path = tmp_path / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
  return tmp_path


def resnet_state(depth):
  import torchvision

  model = getattr(torchvision.models, f'resnet{depth}')(weights=None)
  arrays = {k: v.numpy() for k, v in model.state_dict().items()}
  return {k: v for k, v in arrays.items() if not k.startswith('fc.')}


def arguments(folder, *flags):
  return [
    *(str(folder / 'w.npz'), str(folder), str(folder / 'out')),
    *('--steps=2', '--batch=2', '--workers=0'),
    *('--short_sides', '64', '--long_side=96', *flags),
  ]


def test_two_steps_train_the_whole_encoder_and_are_evaluated(
  example, coco, capsys
):
  import torch

  state = resnet_state(50)
  np.savez(coco / 'w.npz', **state)
  assert example.main(arguments(coco)) == 0
  printed = capsys.readouterr().out
  assert 'step 2: loss ' in printed and 'loss_mask' in printed
  results = json.loads((coco / 'out' / 'results.json').read_text())
  assert [*results] == ['mask', 'box']
  for values in results.values():
    assert [*values] == ['AP', 'AP50', 'AP75']
    assert all(0 <= value <= 1 for value in values.values())
  saved = torch.load(coco / 'out' / 'checkpoint.pth', weights_only=True)
  trained = {
    name.removeprefix('backbone.body.'): value.numpy()
    for name, value in saved['model'].items()
    if name.startswith('backbone.body.')
  }
  assert set(trained) == set(state)
  # Kernels, norms and running statistics of the first and the last stage.
  for name in state:
    if name.startswith(('conv1', 'bn1', 'layer4')):
      assert not np.array_equal(trained[name], state[name]), name
  # A finished run is evaluated alone.
  assert example.main(arguments(coco)) == 0
  assert 'step' not in capsys.readouterr().out


def test_the_schedule_is_that_of_the_papers(example):
  import torch

  model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
  optimizer, schedule = example.build_optimizer(model, 90_000, 0.02)
  factor = schedule.lr_lambdas[0]
  assert [factor(i) for i in (0, 999, 1_000, 59_999)] == pytest.approx(
    [0.001, 0.999001, 1, 1]
  )
  assert [factor(i) for i in (60_000, 79_999, 80_000)] == pytest.approx(
    [0.1, 0.1, 0.01]
  )
  decays = [group['weight_decay'] for group in optimizer.param_groups]
  assert decays == [1e-4, 0.0]
  defaults = example.parse_arguments(['a', 'b', 'c'])
  assert (defaults.steps, defaults.batch) == (90_000, 16)
  assert defaults.short_sides == [640, 672, 704, 736, 768, 800]
  assert defaults.long_side == 1333


def break_nothing(folder):
  del folder


def break_weights(folder):
  (folder / 'w.npz').write_bytes(b'no archive')


def break_network(folder):
  np.savez(folder / 'w.npz', **resnet_state(18))


def remove_weights(folder):
  (folder / 'w.npz').unlink()


def remove_annotations(folder):
  (folder / 'annotations' / 'instances_val2017.json').unlink()


def break_annotations(folder):
  (folder / 'annotations' / 'instances_val2017.json').write_text('[]')


def remove_image(folder):
  (folder / 'train2017' / '3.png').unlink()


@pytest.mark.parametrize(
  ('change', 'flags', 'message'),
  [
    (remove_weights, [], 'w.npz: expected weights as .safetensors or .npz'),
    (break_weights, [], 'w.npz: expected weights as .safetensors or .npz'),
    (
      break_network,
      [],
      "expected the 318 arrays of torchvision's ResNet-50 without fc, got ",
    ),
    (remove_annotations, [], 'instances_val2017.json: expected a file'),
    (break_annotations, [], 'expected instances in the format of COCO'),
    (remove_image, [], 'got 1 fewer, as 3.png'),
    (break_nothing, ['--batch=8'], 'expected at most the 4 images'),
  ],
)
def test_what_a_user_can_cause_is_one_line(
  example, coco, capsys, change, flags, message
):
  np.savez(coco / 'w.npz', **resnet_state(50))
  change(coco)
  assert example.main(arguments(coco, *flags)) == 2
  text = capsys.readouterr().err
  assert message in text and text.count('\n') == 1
