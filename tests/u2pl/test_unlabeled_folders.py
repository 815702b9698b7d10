"""Unlabeled images of a user: those without a mask, or another folder."""

import shutil

import cv2
import numpy as np
import pytest

from runtime import errors
from segcore.experiment import config_file
from tests.support import runs
from u2pl import main as u2pl_main


def train_stage(source, options, **learn):
  config = config_file.load_config(
    f'{runs.ROOT}/configs/u2pl_folder.py:source={source},ignore=255,'
    f'val_fraction=0.4,{options}'
  )
  config.train.learn.update(learn)
  config.data_dir = f'{source.parent}/records'
  return u2pl_main.PROGRAM.build(config)['train']


def unlabeled_ids(source, options, **learn):
  stage = train_stage(source, options, **learn)
  labeled = stage.context.labeled(stage.options, 'train')
  return labeled.ids(), stage._open_unlabeled().ids()


@pytest.fixture
def source(tmp_path):
  return runs.make_folder(tmp_path / 'discs', count=8)


def test_images_without_a_mask_are_unlabeled(source):
  for name in ('01', '06'):
    (source / 'masks' / f'{name}.png').unlink()
  labeled, unlabeled = unlabeled_ids(source, 'unlabeled=same')
  assert unlabeled == ['01', '06']
  assert not {'01', '06'} & set(labeled)


def test_labeled_images_may_be_unlabeled_ones_too(source):
  options = 'labels=2,system=pseudoseg'
  labeled, without = unlabeled_ids(source, options)
  assert len(labeled) == 2 and not {*without} & {*labeled}
  also_labeled, both = unlabeled_ids(source, options, includes_labeled=True)
  assert also_labeled == labeled
  assert {*both} == {*without, *labeled}


def test_another_folder_is_compared_by_content(source):
  """A photograph of the same name is another one, a copy is not."""
  more = source / 'more'
  more.mkdir()
  for name in ('00', 'new'):
    pixels = np.random.default_rng(len(name)).integers(0, 255, (40, 50, 3))
    cv2.imwrite(str(more / f'{name}.jpg'), pixels.astype(np.uint8))
  for i in range(8):
    shutil.copy(source / f'images/{i:02}.jpg', more / f'copy{i}.jpg')
  labeled, unlabeled = unlabeled_ids(source, 'unlabeled=more')
  assert len(labeled) >= 4
  assert unlabeled == ['00', 'new']


def test_no_image_without_a_mask_is_named(source):
  with pytest.raises(errors.UserError, match='got a mask for each: leave unl'):
    unlabeled_ids(source, 'unlabeled=same')
