"""Weak supervision: rows of docs/methods/pass_wsss.md, and their numbers."""

import jax
import jax.numpy as jnp
import pytest

from configs import pass_wsss
from pass_luss import main
from tests.support import tables

STEPS = {8: 64_431 // 8, 16: 64_431 // 16}  # of an epoch, by batch size


def rows():
  return tables.read_plain('pass_wsss.md', 'pass_wsss')


def test_rows_of_the_paper():
  assert len(rows()) == 12
  folders = {}
  for name, options, folder in rows():
    config = pass_wsss.get_config(options)
    assert ('clusters' in name) == ('cluster_images' in config.stages)
    assert ('SEAM' in name) == ('classify1' not in config.stages)
    assert ('AdvCAM' in name) == (config.segment_cam.climbing is not None)
    assert [*main.PROGRAM.build(config)] == [*config.stages]
    # AdvCAM finds what SEAM has trained.
    trained = [str(config[stage]) for stage in config.stages[:-1]]
    assert folders.setdefault(folder, trained) == trained


def test_numbers_of_the_papers():
  seam = pass_wsss.get_config('').classify
  assert seam.crop.size == (448, 448) and seam.crop.long_side == (448, 768)
  assert seam.recipe.batch_size == 8
  assert seam.recipe.num_steps == 8 * STEPS[8]
  sc_cam = pass_wsss.get_config('method=sc_cam')
  assert sc_cam.segment_cam.trained_by == 'classify3'
  for i, epochs in enumerate((31, 41, 51), 1):
    block = sc_cam[f'classify{i}']
    assert block.crop.size == (224, 224) and block.crop.long_side == (256, 512)
    assert block.recipe.batch_size == 16
    assert block.recipe.num_steps == epochs * STEPS[16]
    assert block.recipe.optimizer.schedule_steps == 61 * STEPS[16]
    # Each round starts from the first encoder.
    assert block.start.path == 'weights/resnet18.pth'
  plain = pass_wsss.get_config('method=advcam,classifier=plain')
  assert plain.network.encoder.output_stride == 16
  assert not plain.network.encoder.dilates
  assert plain.classify.recipe.num_steps == 5 * STEPS[16]
  assert plain.classify.recipe.optimizer.learning_rate == 0.1
  options = main.PROGRAM.build(plain)['segment_cam'].options.climbing
  assert (options.num_steps, options.weight, options.step_size) == (27, 7, 0.08)
  assert options.accumulate == 'regions'


@pytest.mark.parametrize(
  ('options', 'stage', 'expected'),
  [
    ('method=seam', 'classify', 11_281_024),
    ('method=sc_cam', 'classify3', 11_176_512 + 512 * (50 + 500)),
  ],
)
def test_parameters_and_their_groups(options, stage, expected):
  built = main.PROGRAM.build(pass_wsss.get_config(options))[stage]
  method = built.method(built.context, 51)
  shapes = jax.eval_shape(
    method.segmenter.init, jax.random.PRNGKey(0), jnp.zeros((1, 64, 64, 3))
  )['params']
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected
  for path, _ in jax.tree_util.tree_leaves_with_path(shapes):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    rate, decay = method.update.optimizer.factors(name)
    if name.startswith('heads/'):
      assert (rate, decay) == (10, 1), name
    else:
      stays = 'bn' in name or 'root' in name or 'block1' in name
      assert (rate, decay) == ((0, 0) if stays else (1, 1)), name


@pytest.mark.parametrize(
  ('labels', 'kind', 'of_labels'),
  [('truth', 'truth', ()), ('clusters', 'clusters', ('cluster_images',))],
)
def test_stages_on_label_maps_of_training_images(labels, kind, of_labels):
  config = pass_wsss.get_config(f'method=seam,labels={labels},retrain=true')
  stages = main.PROGRAM.build(config)
  assert [*stages][-3:] == ['label_cam', 'retrain', 'segment_retrained']
  assert stages['label_cam'].needs == ('classify', 'segment_cam', *of_labels)
  assert stages['retrain'].needs == ('classify', 'label_cam')
  assert stages['segment_retrained'].needs == ('retrain',)
  for name in ('classify', 'segment_cam', 'label_cam', 'retrain'):
    assert stages[name].settings()['labels'] == kind
  assert stages['segment_retrained'].has_class_names == (kind == 'truth')
