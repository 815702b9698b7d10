"""Examples run as their docstrings say."""

import cv2
import numpy as np
import pytest

from examples import demo
from input_pipeline import datasets


def test_the_demo_draws_a_folder_that_is_a_data_set(tmp_path, monkeypatch):
  monkeypatch.setattr(demo, 'NUM_IMAGES', {'train': 3, 'val': 2})
  demo.draw_folder(tmp_path / 'drawn')
  masks = sorted((tmp_path / 'drawn' / 'masks').glob('*/*.png'))
  assert len(masks) == 5
  assert all(cv2.imread(str(m), -1).shape == (128, 128) for m in masks)
  options = datasets.DataOptions(
    'image_mask_folder',
    source=str(tmp_path / 'drawn'),
    images='images/{split}',
    masks='masks/{split}',
    classes='classes.txt',
  )
  builder = datasets.dataset_builder(options, str(tmp_path / 'records'))
  assert {k: len(v.examples) for k, v in builder.listings().items()} == {
    'train': 3,
    'val': 2,
  }
  assert max(np.max(cv2.imread(str(m), -1)) for m in masks) <= 10


def test_the_demo_takes_photographs_that_are_there(tmp_path, monkeypatch):
  (tmp_path / 'ccp').mkdir()
  monkeypatch.setenv('SEG_DATA_DIR', str(tmp_path))
  assert demo.find_source(tmp_path / 'demo') == tmp_path / 'ccp'


def test_the_demo_runs_a_study_of_both_starts(tmp_path, monkeypatch):
  started = []
  monkeypatch.setattr(demo.cli, 'run_study_command', started.append)
  demo.main([f'--source={tmp_path}', '--labels=7', '--steps=20'])
  (arguments,) = started
  assert '--vary=encoder=random,auto' in arguments
  assert '--vary=labels=7' in arguments
  assert '--config.train.recipe.num_steps=20' in arguments


def test_a_misspelt_flag_of_the_demo_is_refused():
  with pytest.raises(SystemExit):
    demo.main(['--lables=3'])
