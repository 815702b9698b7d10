"""Imports point down, and the checker of that rule sees violations of it."""

import pathlib

import pytest

from tests.support import imports

ROOT = pathlib.Path(__file__).parents[1]


def plant(root, files):
  """Writes a source tree; every folder becomes a package."""
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in (path.parent, *path.parent.parents):
      if folder.is_relative_to(root) and folder != root:
        (folder / '__init__.py').touch()
    path.write_text(text)


def test_the_source_tree_keeps_the_rules():
  assert '\n'.join(imports.check(ROOT)) == ''


def test_every_package_is_checked():
  modules = {i.source for i in imports.read(ROOT, imports.ALLOWED)}
  folders = {path.parent.name for path in ROOT.glob('*/__init__.py')}
  assert {name.partition('.')[0] for name in modules} == folders - {'tests'}


def test_a_tree_that_keeps_the_rules_passes(tmp_path):
  plant(
    tmp_path,
    {
      'runtime/errors.py': 'import json\n',
      'input_pipeline/batch.py': 'import numpy\n',
      'input_pipeline/sources/masks.py': (
        'from input_pipeline import batch\nfrom runtime import errors\n'
      ),
      'input_pipeline/datasets.py': 'import input_pipeline.sources.masks\n',
      'segcore/types.py': '',
      'segcore/ops/losses.py': 'from segcore import types\n',
      'segcore/train/loop.py': (
        'from segcore.ops import losses\nfrom segcore.train import update\n'
      ),
      'segcore/train/update.py': 'from input_pipeline import batch\n',
      'ddep/main.py': 'from segcore.train import loop\n',
      'configs/common.py': '',
      'configs/shapes.py': 'from configs import common\n',
      'launch/main.py': 'from runtime import errors\n',
      'tests/test_all.py': 'import tensorflow\nfrom ddep import main\n',
    },
  )
  assert imports.check(tmp_path) == []


@pytest.mark.parametrize(
  ('files', 'expected'),
  [
    (
      {'configs/a.py': 'from ddep import main\n', 'ddep/main.py': ''},
      'configs/a.py:1: configs.a imports ddep.main: configs may import only '
      'configs',
    ),
    (
      {'ddep/main.py': '\nimport u2pl.ema\n', 'u2pl/ema.py': ''},
      'ddep/main.py:2: ddep.main imports u2pl.ema: ddep may import only ddep, '
      'input_pipeline, runtime, segcore',
    ),
    (
      {'segcore/a.py': 'from pass_luss.main import run\n'},
      'segcore/a.py:1: segcore.a imports pass_luss.main: segcore may import '
      'only input_pipeline, runtime, segcore',
    ),
    (  # Inside a function.
      {'input_pipeline/a.py': 'def f():\n  from segcore import types\n'},
      'input_pipeline/a.py:2: input_pipeline.a imports segcore: '
      'input_pipeline may import only input_pipeline, runtime',
    ),
    (  # For type checkers only.
      {
        'runtime/a.py': (
          'from typing import TYPE_CHECKING\n'
          'if TYPE_CHECKING:\n'
          '  from input_pipeline import batch\n'
        ),
      },
      'runtime/a.py:3: runtime.a imports input_pipeline: runtime may import '
      'only runtime',
    ),
    (
      {'launch/a.py': 'import segcore.types as t\n'},
      'launch/a.py:1: launch.a imports segcore.types: launch may import only '
      'launch, runtime',
    ),
    (
      {'u2pl/a.py': 'from tests.support import runs\n'},
      'u2pl/a.py:1: u2pl.a imports tests.support: u2pl may import only '
      'input_pipeline, runtime, segcore, u2pl',
    ),
    (
      {'segcore/ops/a.py': 'from segcore.train import loop\n'},
      'segcore/ops/a.py:1: segcore.ops.a imports segcore.train: of segcore, '
      'segcore.ops may import only segcore.models, segcore.ops, segcore.types',
    ),
    (  # Relative.
      {
        'segcore/models/layers/a.py': 'from ...eval import metrics\n',
        'segcore/eval/metrics.py': '',
      },
      'segcore/models/layers/a.py:1: segcore.models.layers.a imports '
      'segcore.eval.metrics: of segcore, segcore.models may import only '
      'segcore.models, segcore.ops, segcore.types',
    ),
    (
      {
        'input_pipeline/sources/a.py': 'from input_pipeline import loader\n',
        'input_pipeline/loader.py': '',
      },
      'input_pipeline/sources/a.py:1: input_pipeline.sources.a imports '
      'input_pipeline.loader: of input_pipeline, input_pipeline.sources may '
      'import only input_pipeline.batch, input_pipeline.sources',
    ),
    (
      {
        'input_pipeline/builders/a.py': 'from input_pipeline import report\n',
        'input_pipeline/report.py': '',
      },
      'input_pipeline/builders/a.py:1: input_pipeline.builders.a imports '
      'input_pipeline.report: of input_pipeline, input_pipeline.builders may '
      'import only input_pipeline.batch, input_pipeline.builders, '
      'input_pipeline.sources',
    ),
    (
      {
        'input_pipeline/batch.py': 'from input_pipeline import views\n',
        'input_pipeline/views.py': '',
      },
      'input_pipeline/batch.py:1: input_pipeline.batch imports '
      'input_pipeline.views: of input_pipeline, input_pipeline.batch may '
      'import only no module of it',
    ),
    (
      {'segcore/a.py': 'import tensorflow as tf\n'},
      'segcore/a.py:1: segcore.a imports tensorflow: expected only tests to',
    ),
    (
      {'benchmarks/a.py': 'from tensorflow.io import gfile\n'},
      'benchmarks/a.py:1: benchmarks.a imports tensorflow.io: expected only '
      'tests to',
    ),
  ],
)
def test_a_forbidden_import_is_reported(tmp_path, files, expected):
  plant(tmp_path, files)
  assert imports.check(tmp_path) == [expected]


def test_a_cycle_of_modules_is_reported(tmp_path):
  plant(
    tmp_path,
    {
      'u2pl/a.py': 'from u2pl import b\n',
      'u2pl/b.py': 'def f():\n  import u2pl.c\n',
      'u2pl/c.py': 'from . import a, d\n',
      'u2pl/d.py': '',
    },
  )
  rule = (
    'which imports it back, directly or not: modules of u2pl must not import '
    'each other in a cycle'
  )
  assert imports.check(tmp_path) == [
    f'u2pl/a.py:1: u2pl.a imports u2pl.b, {rule}',
    f'u2pl/b.py:2: u2pl.b imports u2pl.c, {rule}',
    f'u2pl/c.py:1: u2pl.c imports u2pl.a, {rule}',
  ]


@pytest.mark.parametrize('package', ['segcore', 'input_pipeline'])
def test_a_cycle_of_subpackages_is_reported(tmp_path, package):
  plant(
    tmp_path,
    {
      f'{package}/train/loop.py': f'from {package}.eval import metrics\n',
      f'{package}/train/types.py': '',
      f'{package}/eval/metrics.py': '',
      f'{package}/eval/gather.py': f'from {package}.train import types\n',
    },
  )
  rule = (
    f'which imports it back, directly or not: subpackages of {package} must '
    'not import each other in a cycle'
  )
  assert imports.check(tmp_path) == [
    f'{package}/eval/gather.py:1: {package}.eval.gather imports '
    f'{package}.train.types, {rule}',
    f'{package}/train/loop.py:1: {package}.train.loop imports '
    f'{package}.eval.metrics, {rule}',
  ]


def test_only_layered_packages_may_not_have_cycles_of_subpackages(tmp_path):
  plant(
    tmp_path,
    {
      'u2pl/semi/a.py': 'from u2pl.weak import b\n',
      'u2pl/semi/c.py': '',
      'u2pl/weak/b.py': 'from u2pl.semi import c\n',
    },
  )
  assert imports.check(tmp_path) == []
