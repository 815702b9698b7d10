"""Clusters of pixels and masks: rows of the page, and numbers of the papers."""

import jax
import jax.numpy as jnp
import pytest

from configs import pass_dense
from pass_luss import main
from tests.support import tables

EPOCH = 64_431 // 128


def rows():
  return tables.read_plain('pass_dense.md', 'pass_dense')


def test_rows_of_the_paper():
  assert len(rows()) == len({folder for *_, folder in rows()}) == 6
  for name, options, _ in rows():
    config = pass_dense.get_config(options)
    assert [*main.PROGRAM.build(config)] == [*config.stages]
    kind = 'masks' if 'MaskContrast' in name else 'pixels'
    assert config.stages[-1] == f'segment_{kind}'
    start = config[f'represent_{kind}'].start
    if 'supervised' in name:
      assert start.path == 'weights/resnet18.pth'
    elif 'scratch' in name:
      assert not start
    else:
      assert start.path == config.stages[0] == 'represent'
      assert 'moco' in config.represent.learn


@pytest.mark.parametrize('method', ['mdc', 'picie', 'picie_h'])
def test_numbers_of_clusters_of_pixels(method):
  config = pass_dense.get_config(f'method={method}')
  stage = main.PROGRAM.build(config)['represent_pixels']
  block = stage.options
  assert (block.base_side, block.side) == (640, 320)
  kmeans = block.kmeans
  assert kmeans.batch_size == (128 if method == 'mdc' else 256)
  assert (kmeans.initial_batches, kmeans.iterations) == (20, 20)
  recipe = block.recipe
  assert (recipe.batch_size, recipe.num_steps) == (128, 10 * EPOCH)
  optimizer = recipe.optimizer
  assert (optimizer.name, optimizer.learning_rate) == ('adam', 1e-4)
  assert not optimizer.weight_decay and not optimizer.clip_norm
  assert optimizer.milestones == ((20 * EPOCH,) if method == 'mdc' else ())
  trained = stage.method(stage.context, 51)
  counts = [spec.count for spec in trained.specs]
  assert counts == {'mdc': [51], 'picie': 2 * [51]}.get(
    method, 2 * [51] + 2 * [100]
  )
  shapes = jax.eval_shape(
    trained.segmenter.init, jax.random.PRNGKey(0), jnp.zeros((1, 64, 64, 3))
  )['params']
  assert sum(x.size for x in jax.tree.leaves(shapes)) == (
    11_176_512 + (64 + 128 + 256 + 512) * 128 + 4 * 128 + 51 * 129
  )


def test_numbers_of_maskcontrast():
  config = pass_dense.get_config('method=maskcontrast')
  stages = main.PROGRAM.build(config)
  block = stages['represent_masks'].options
  learn = block.learn
  assert (learn.temperature, learn.decay, learn.queue) == (0.5, 0.999, 256)
  assert (learn.size, learn.width, learn.dilations) == (32, 256, (12, 24, 36))
  assert (block.large.size, block.large.area) == ((224, 224), (0.2, 1.0))
  colors = block.colors.large[0]
  assert (colors.jitter, colors.gray, colors.blur) == (0.8, 0.2, 0.0)
  assert (colors.brightness, colors.contrast) == (0.4, 0.4)
  assert (colors.saturation, colors.hue) == (0.4, 0.1)
  recipe = block.recipe
  assert (recipe.batch_size, recipe.num_steps) == (128, 40 * EPOCH)
  optimizer = recipe.optimizer
  assert (optimizer.learning_rate, optimizer.momentum) == (0.004, 0.9)
  assert (optimizer.weight_decay, optimizer.poly_power) == (1e-4, 0.9)
  assert optimizer.schedule_interval == EPOCH
  encoder = (
    stages['represent_masks']
    .method(stages['represent_masks'].context)
    .segmenter.encoder
  )
  assert encoder.output_stride == 8
  masks = stages['cluster_masks']
  assert masks.inputs().splits[0].split == 'train'
  config.cluster_masks.split = 'val'
  masks = main.PROGRAM.build(config)['cluster_masks']
  assert masks.inputs().splits[0].split == 'val'
  masks = stages['salient_masks'].options
  assert (masks.threshold, masks.min_share) == (0.5, 0.01)
  # Layers 3 and 4 dilate as torchvision's.
  deep = pass_dense.get_config('method=maskcontrast,data=s300')
  assert deep.network.encoder.multi_grid == (1, 1, 1)


@pytest.mark.parametrize(
  ('options', 'is_supervised'),
  [
    ('start=imagenet', True),
    ('start=imagenet,recipe=unsupervised', False),
    ('encoder=x', False),
    ('encoder=x,recipe=supervised', True),
    ('start=imagenet,tiny', False),
  ],
)
def test_recipes_of_maskcontrast(options, is_supervised):
  config = pass_dense.get_config(f'method=maskcontrast,{options}')
  stage = main.PROGRAM.build(config)['represent_masks']
  trained = stage.method(stage.context)
  frozen = ('conv_root', 'bn_root', 'block1', 'block2')
  assert trained.update.optimizer.groups == (
    tuple((f'^encoder/{name}/', 0.0, 0.0) for name in frozen)
    if is_supervised
    else ()
  )
  recipe = stage.options.recipe
  if 'tiny' not in options:
    batch_size = 64 if is_supervised else 128
    assert recipe.batch_size == batch_size
    assert recipe.num_steps == 40 * (64_431 // batch_size)
    assert recipe.optimizer.schedule_interval == 64_431 // batch_size
    assert stage.options.learn.queue == 2 * batch_size


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('method=mdc,recipe=supervised', 'recipe=supervised: expected none with'),
    ('method=mdc,saliency=rc', 'saliency=rc: expected none with method=mdc'),
    ('encoder=x,start=random', 'start=random: expected none with encoder=x'),
  ],
)
def test_options_that_do_not_fit(options, message):
  with pytest.raises(ValueError, match=message):
    pass_dense.get_config(options)
