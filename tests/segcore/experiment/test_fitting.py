"""Crops named 'fitted' are chosen from the data before a run starts."""

import json

import pytest

from ddep import main as ddep_main
from segcore.experiment import config_file, fitting
from tests.support import runs
from u2pl import main as u2pl_main


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return runs.make_folder(tmp_path_factory.mktemp('fitting') / 'discs')


def load(source, name='ddep_folder', options=''):
  config = config_file.load_config(
    f'{runs.ROOT}/configs/{name}.py:source={source},ignore=255,'
    f'network=small+unet,encoder=random,{options}'
  )
  config.data_dir = f'{source.parent}/records'
  config.lock()
  return config


def test_every_crop_of_a_run_is_chosen_once(source, tmp_path, capsys):
  config = load(source)
  fitted = fitting.fit_config_crops(config, tmp_path)
  crop = fitted.finetune.crop
  # Images of 41 to 43 x 46 to 47 pixels, discs of an eighth of them.
  assert crop.to_dict() == {
    'name': 'inception',
    'size': (48, 48),
    'area': (0.4, 1.0),
    'aspect': (0.75, 4 / 3),
    'antialias': True,
  }
  assert fitted.denoise.crop == crop
  lines = capsys.readouterr().out.splitlines()
  [line] = [line for line in lines if line.startswith('crops of ')]
  assert line.startswith(
    'crops of denoise, finetune: 48x48 pixels of 0.4 to 1 of an image, chosen '
    'for images of 42x4'
  )
  assert 'size=HEIGHTxWIDTH' in lines[lines.index(line) + 1]
  # The config itself is left as it is, and builds too: for a dry run.
  assert config.finetune.crop.name == 'fitted'
  stages = ddep_main.PROGRAM.build(config)
  assert stages['finetune'].size == (112, 112)
  assert 'the data decide the size of crops: 112x112 is assumed' in (
    stages['finetune'].dry_run(False, None)
  )


def test_evaluation_is_at_the_scale_of_training(source, tmp_path):
  for name, program, stage in (
    ('ddep_folder', ddep_main.PROGRAM, 'finetune'),
    ('u2pl_folder', u2pl_main.PROGRAM, 'train'),
  ):
    options = 'size=40x60,crop=0.1-0.4'
    fitted = fitting.fit_config_crops(load(source, name, options), tmp_path)
    assert (fitted[stage].crop.size, fitted[stage].crop.area) == (
      (40, 60),
      (0.1, 0.4),
    )
    assert program.build(fitted)['evaluate'].protocol.short_side == 80


def test_a_started_stage_keeps_its_crop_without_its_data(source, tmp_path):
  crop = {
    **{'name': 'inception', 'size': [64, 32], 'area': [0.2, 0.5]},
    **{'aspect': [0.3, 0.6], 'antialias': True},
  }
  for name in ('denoise', 'finetune'):
    (tmp_path / name).mkdir()
    settings = {'settings': {name: {'crop': crop}}, 'needs': {}}
    (tmp_path / name / 'settings.json').write_text(json.dumps(settings))
  config = load(source.parent / 'gone')
  fitted = fitting.fit_config_crops(config, tmp_path)
  assert fitted.denoise.crop.size == fitted.finetune.crop.size == (64, 32)
  assert fitted.finetune.crop.area == (0.2, 0.5)


def test_configs_with_crops_of_their_own_are_returned_as_they_are(tmp_path):
  config = config_file.load_config(f'{runs.ROOT}/configs/ddep_shapes.py')
  assert fitting.fit_config_crops(config, tmp_path) is config


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('size=96', 'size=96: expected HEIGHTxWIDTH, as 96x144'),
    ('crop=all', 'crop=all: expected LEAST-LARGEST, as 0.4-1'),
  ],
)
def test_options_of_another_form_are_refused(source, options, message):
  with pytest.raises(Exception, match=message):
    load(source, 'ddep_folder', options)
