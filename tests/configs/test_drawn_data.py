"""The option `data` of the experiments on drawn images."""

import pytest

from ddep import main as ddep_main
from pass_luss import main as pass_main
from tests.configs import loading
from u2pl import main as u2pl_main


@pytest.mark.parametrize(
  ('option', 'name', 'single', 'side'),
  [
    ('', 'scenes', 'single', 64),
    ('data=natural', 'natural', 'natural_single', 64),
    ('data=natural_128', 'natural_128', 'natural_single_128', 96),
  ],
)
def test_data_chooses_scenes_single_objects_and_crops(
  option, name, single, side
):
  config = loading.load('ddep_shapes', option)
  stages = [config[s] for s in ('classify', 'denoise', 'finetune')]
  names = [stage.data.name for stage in stages]
  assert names == [f'shapes/{n}' for n in (single, name, name)]
  assert [stage.crop.size for stage in stages] == [(side, side)] * 3
  assert len(ddep_main.PROGRAM.build_stages(config)) == 4

  config = loading.load('u2pl_shapes', option)
  assert config.train.data.name == f'shapes/{name}'
  assert config.train.crop.size == (side, side)
  assert len(u2pl_main.PROGRAM.build_stages(config)) == 2


@pytest.mark.parametrize(
  ('option', 'name', 'side', 'view_side', 'gray'),
  [
    ('', 'single', 64, 48, 1.0),
    ('data=natural', 'natural_single', 64, 48, 0.2),
    ('data=natural_128', 'natural_single_128', 128, 96, 0.2),
  ],
)
def test_pass_sees_colors_where_they_inform(
  option, name, side, view_side, gray
):
  config = loading.load('pass_shapes', option)
  for block in (config.images, config.represent):
    assert block.data.name == f'shapes/{name}'
  for block in (config.represent, config.attend):
    assert block.large.size == (view_side, view_side)
    assert [color['gray'] for color in block.colors.large] == [gray, gray]
  assert config.finetune.crop.size == config.semi.crop.size == (side, side)
  assert config.segment.short_side == config.distance.short_side == side
  assert len(pass_main.PROGRAM.build_stages(config)) == 6


def test_unknown_data_is_refused():
  with pytest.raises(ValueError, match='expected one of scenes, natural'):
    loading.load('u2pl_shapes', 'data=nature')
