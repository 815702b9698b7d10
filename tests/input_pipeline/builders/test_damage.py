"""Every kind of damage is reported in one line, with file and remedy."""

import pytest

from input_pipeline import datasets, prepare
from input_pipeline.sources import archives
from tests.support import (
  damage,
  damaged_archives,  # noqa: F401  Registers its kinds of damage.
)
from tests.support import healthy_sources as sources


@pytest.mark.parametrize('kind', damage.KINDS)
def test_damage_is_reported_in_one_line(
  kind, before, tmp_path, monkeypatch, capfd
):
  name, apply_damage, file, words, limits = damage.KINDS[kind]
  for limit, value in limits.items():
    monkeypatch.setattr(archives, limit, value)
  source = tmp_path / 'source'
  sources.HEALTHY[name](source)
  named = source / file
  source = apply_damage(source) or source
  arguments = sources.arguments_of(name, source, before.data_dir)
  line = sources.refusal(capfd, arguments)
  for word in (str(named), *words):
    assert word in line
  message = line.replace(str(tmp_path), '')
  assert damage.REMEDY.search(message), message
  assert sources.refusal(capfd, [*arguments, '--check']) == line
  before.check()


@pytest.mark.parametrize('name', sources.HEALTHY)
def test_undamaged_sources_pass(name, tmp_path, capfd):
  sources.HEALTHY[name](tmp_path / 'source')
  arguments = sources.arguments_of(name, tmp_path / 'source', tmp_path / 'data')
  assert prepare.main([*arguments, '--check']) == 0
  assert 'error: ' not in ''.join(capfd.readouterr())


def test_bad_files_can_be_skipped(before, tmp_path, capfd):
  """The folder has a file, or two, of every kind of damage."""
  source = tmp_path / 'source'
  sources.write_folder(source)
  bad = []
  for kind, case in damage.KINDS.items():
    if damage.SKIP not in case.words:
      continue
    sources.write_folder(tmp_path / kind)
    case.damage(tmp_path / kind)
    for folder in ('images', 'masks'):
      for file in sorted((tmp_path / kind / folder).iterdir()):
        if file.stem not in ('a', 'c'):
          name = f'{folder}/{kind}{file.name.removeprefix("b")}'
          file.rename(source / name)
          if name.startswith(case.file.partition('/')[0]):
            bad.append(str(source / name))
  assert len(bad) > 20

  arguments = sources.arguments_of(sources.FOLDER, source, before.data_dir)
  assert prepare.main([*arguments, '--on_bad_example=skip']) == 0
  out, err = capfd.readouterr()
  assert 'error: ' not in out + err
  assert f'{len(bad)} files are skipped:\n' in out
  for name in bad:
    assert f'\n  {name.encode(errors="backslashreplace").decode()}: ' in out
  options = sources.options_of(sources.FOLDER, source, on_bad_example='skip')
  split = datasets.open_dataset_split(options, 'train', str(before.data_dir))
  assert split.ids() == ['a', 'b', 'c']
  before.check()


def test_a_split_must_keep_an_image(before, tmp_path, capfd):
  source = tmp_path / 'source'
  sources.write_folder(source)
  for name in ('a', 'b', 'c'):
    sources.truncate(source / f'images/{name}.jpg', 0.7)
  arguments = sources.arguments_of(sources.FOLDER, source, before.data_dir)
  line = sources.refusal(capfd, [*arguments, '--on_bad_example=skip'])
  assert "no image of split 'train' is usable; " in line
  assert f'{source}/images/a.jpg: cannot be decoded' in line
  before.check()


@pytest.mark.parametrize('skip', [False, True], ids=['error', 'skip'])
def test_files_that_become_bad_later_are_reported(
  skip, before, tmp_path, capfd
):
  source = tmp_path / 'source'
  sources.write_folder(source)
  arguments = sources.arguments_of(sources.FOLDER, source, before.data_dir)
  if skip:
    arguments.append('--on_bad_example=skip')
  assert prepare.main(arguments) == 0
  sources.write(source / 'images/d.jpg', sources.jpeg())
  if skip:
    capfd.readouterr()
    assert prepare.main(arguments) == 0
    assert f'\n  {source}/images/d.jpg: has no mask' in capfd.readouterr().out
  else:
    line = sources.refusal(capfd, arguments)
    assert f'{source}/images/d.jpg: has no mask' in line
  before.check()
