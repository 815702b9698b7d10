"""Exported networks predict the same label maps without this code base."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from runtime import errors
from segcore.distributed import sharding
from segcore.eval import export, inference, predict, protocols, short_side
from segcore.experiment import command
from segcore.models import heads, segmenter
from segcore.models.decoders import deeplabv3plus
from segcore.models.encoders import resnet
from segcore.models.layers import resize
from segcore.train import method, train_state
from tests.support import runs, tiny_networks

HEADS = {'logits': heads.ConvHead(3)}
DEEP = {'logits': heads.ConvHead(3, stride=None)}


def dilated():
  encoder = resnet.DilatedResNet(
    blocks=(1, 1, 1, 1), width=8, output_stride=8, multi_grid=(1,)
  )
  decoder = deeplabv3plus.DeepLabV3Plus(width=8, dilations=(2, 3))
  return segmenter.Segmenter(encoder, decoder, DEEP)


def random_model(net, predictor):
  """Builds a network with random parameters, whose scores vary over cells."""
  scores = method.HeadScores(net)
  shapes = jax.eval_shape(
    net.init, jax.random.PRNGKey(0), jnp.zeros((1, 64, 64, 3))
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name in ('scale', 'var'):
      return np.ones(leaf.shape, leaf.dtype)
    return (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

  variables = jax.tree_util.tree_map_with_path(draw, dict(shapes))
  return predict.Model(
    state=train_state.inference_train_state(variables, sharding.make_mesh()),
    predictor=predictor(scores),
    classes=('a', 'b', 'c'),
    palette=((0, 0, 0), (255, 0, 0), (0, 255, 0)),
    batch_size=8,
    mesh=sharding.make_mesh(),
  )


def label_maps(multiple, **protocol):
  return lambda scores: inference.LabelMaps(
    scores, 3, protocols.ProtocolOptions(**protocol), multiple
  )


def predict_labels(model, image):
  """Predicts the label map by the network itself."""
  predictor, size = model.predictor, image.shape[:2]
  inputs = predictor.prepare([image], predictor.group(size))
  labels = predictor(jax.device_get(model.state), inputs)
  return np.asarray(labels)[0, : size[0], : size[1]]


def smooth_image(size, seed=0):
  """Draws smooth colors, so that predicted classes form areas."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (5, 6, 3), np.uint8)
  return np.asarray(PIL.Image.fromarray(small).resize(size[::-1]))


@pytest.mark.parametrize(
  ('net', 'predictor'),
  [
    (tiny_networks.small_unet(HEADS), label_maps(8)),
    (tiny_networks.hybrid(HEADS), label_maps(16)),
    pytest.param(
      dilated(), label_maps(1, size_multiple=32), marks=pytest.mark.slow
    ),
    (
      segmenter.Segmenter(
        resnet.DilatedResNet((1, 1, 1, 1), 8, 'plain', 16),
        None,
        {'logits': heads.ConvHead(3, reads='encoder', stride=None)},
      ),
      lambda scores: short_side.LabelMaps(scores, short_side=48),
    ),
    (tiny_networks.small_unet(HEADS), label_maps(8, short_side=24)),
  ],
  ids=['unet', 'vit', 'deeplab', 'pass', 'short_side'],
)
def test_program_predicts_images_of_any_size(net, predictor):
  model = random_model(net, predictor)
  program = export.build_exported_program(model).call
  image = smooth_image((41, 67))
  labels = np.asarray(program(image[None]))
  assert (labels.dtype, labels.shape) == (np.int16, (1, 41, 67))
  expected = predict_labels(model, image)
  assert len(np.unique(expected)) > 1
  assert np.mean(labels[0] == expected) > 0.998


def test_several_views_need_an_input_size(tmp_path):
  net = tiny_networks.small_unet(HEADS)
  model = random_model(
    net, label_maps(8, scales=(0.5, 1.0), flip=True, average='probs')
  )
  with pytest.raises(errors.UserError, match='scales 0.5, 1.0') as caught:
    export.build_exported_program(model)
  assert '--export_size=HxW' in str(caught.value)
  program = export.build_exported_program(model, (40, 64)).call
  image = smooth_image((40, 64))
  labels = np.asarray(program(image[None]))[0]
  assert np.mean(labels == predict_labels(model, image)) > 0.998
  # Images of other sizes are resized to it, and their labels back.
  larger = np.repeat(np.repeat(image, 2, 0), 2, 1)
  larger_labels = np.asarray(program(larger[None]))[0]
  assert larger_labels.shape == (80, 128)
  expected = np.repeat(np.repeat(labels, 2, 0), 2, 1)
  assert np.mean(larger_labels == expected) > 0.95


def test_resizing_with_symbolic_sizes():
  def resized(x, like, align):
    matrix = resize.bilinear_resize_matrix(x.shape[0], like.shape[0], align)
    return jnp.matmul(matrix, x, precision='highest')

  for align in (False, True):
    a, b = jax.export.symbolic_shape('a, b')
    shapes = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in (a, b)]
    call = jax.export.export(jax.jit(lambda x, y, a=align: resized(x, y, a)))(
      *shapes
    ).call
    x = np.random.default_rng(0).random(7).astype(np.float32)
    for new in (1, 3, 7, 12):
      np.testing.assert_allclose(
        call(x, np.zeros(new, np.float32)),
        resize.bilinear_resize_matrix(7, new, align) @ x,
        rtol=1e-6,
      )


@pytest.mark.parametrize('size', [(20, 31), (60, 55), (41, 90)])
def test_antialiased_resizing_equals_pillow(size):
  image = np.random.default_rng(1).integers(0, 256, (41, 50, 3), np.uint8)
  images = jnp.asarray(image)[None]
  resized = np.asarray(resize.resize_antialiased_uint8(images, size))[0]
  bilinear = PIL.Image.Resampling.BILINEAR
  expected = np.asarray(PIL.Image.fromarray(image).resize(size[::-1], bilinear))
  difference = np.abs(resized.astype(int) - expected)
  assert difference.max() <= 1
  # Pillow's weights are rounded, which decides how ties are rounded.
  assert np.mean(difference > 0) < 0.03


@pytest.fixture(scope='module')
def exported_run(tmp_path_factory):
  """Trains a short run and exports it; returns its data and folder."""
  root = tmp_path_factory.mktemp('export')
  source, workdir = runs.make_folder(root / 'discs'), root / 'run'
  for arguments in ((), ('--stage=export',)):
    # Long enough to predict both classes.
    more = (
      '--config.finetune.recipe.num_steps=60',
      '--config.finetune.recipe.evaluate_every=60',
      '--config.finetune.recipe.optimizer.learning_rate=0.02',
      '--config.operation.log_every=20',
      '--config.operation.save_every=60',
      # Resizing to a short side rounds a few values otherwise than Pillow.
      '--config.evaluate.training_scale=False',
      *arguments,
    )
    runs.complete(source, workdir, *more)
  assert 'it agrees with the network on 100.00%' in runs.read_log(workdir)
  return source, workdir


def miou(confusion):
  """Computes the mean IoU over the classes that occur."""
  union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
  return np.mean((np.diag(confusion) / np.maximum(union, 1))[union > 0])


@pytest.mark.slow
def test_example_segments_without_this_code(exported_run, tmp_path):
  source, workdir = exported_run
  alone = tmp_path / 'elsewhere'
  shutil.copytree(workdir / 'export', alone / 'model')
  example = runs.ROOT / 'examples' / 'segment_exported.py'
  shutil.copy(example, alone)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  environment['XLA_FLAGS'] = ''
  results = json.loads((workdir / 'evaluate' / 'results.json').read_text())
  labeled = json.loads((workdir / 'finetune/labeled_ids.json').read_text())
  (alone / 'images').mkdir()
  ids = [p.stem for p in (source / 'masks').iterdir()]
  val = [name for name in ids if name not in labeled]
  for name in val:
    shutil.copy(source / 'images' / f'{name}.jpg', alone / 'images')
  blocked = """
import runpy, sys
sys.argv = ['x', 'model', 'images', 'labels']
runpy.run_path('segment_exported.py', run_name='__main__')
ours = ('segcore', 'ddep', 'u2pl', 'pass_luss', 'input_pipeline', 'flax')
assert not [name for name in sys.modules if name.split('.')[0] in ours]
"""
  done = subprocess.run(
    [sys.executable, '-I', '-c', blocked],
    cwd=alone,
    env=environment,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('.jpg ground') == len(val)
  confusion = np.zeros(4, int)
  for name in val:
    truth = np.asarray(PIL.Image.open(source / 'masks' / f'{name}.png'))
    labels = np.asarray(PIL.Image.open(alone / 'labels' / f'{name}.png'))
    assert labels.shape == truth.shape
    pairs = 2 * truth[truth < 2].astype(int) + labels[truth < 2]
    confusion += np.bincount(pairs, minlength=4)
  reported = results['splits']['val']
  assert len(val) == reported['num_images'] == 4
  matrix = confusion.reshape(2, 2)
  assert np.diag(matrix).min() > 0
  assert miou(matrix) == pytest.approx(reported['metrics']['miou'], abs=1e-9)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--stage=export,evaluate'], '--stage: expected export alone, got'),
    (['--stage=export', '--dry_run'], '--dry_run is for training'),
    (
      ['--stage=export', '--export_size=5'],
      '--export_size: expected HEIGHTxWIDTH such as 512x512, got 5',
    ),
    (['--export_size=5x5'], '--export_size is for --stage=export'),
  ],
)
def test_invalid_export_flags_are_refused(arguments, message):
  config = f'--config={runs.ROOT}/configs/ddep_shapes.py'
  with pytest.raises(errors.UserError, match=message):
    command.parse_command(['main', config, *arguments])
