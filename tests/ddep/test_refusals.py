"""What the data itself contradicts is refused before the first step."""

import json
import shutil

import pytest

from ddep import main as ddep_main
from input_pipeline import datasets
from runtime import errors, json_files
from segcore.experiment import (
  cli,
  command,
  config_file,
  hosts,
  input_checks,
  stage,
)
from tests.support import runs

CONFIG = f'--config={runs.ROOT}/configs/ddep_folder.py'
# Most tests build all stages of an experiment.
pytestmark = pytest.mark.usefixtures('equal_networks_checked_once')


@pytest.fixture
def source(tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, '_start_alone', lambda: None)
  return runs.make_folder(tmp_path / 'discs', count=8)


def error_of(capsys, source, options, *arguments):
  status = cli.run_command_line(
    ddep_main.PROGRAM,
    [
      'main',
      f'{CONFIG}:source={source},ignore=255,val_fraction=0.4,{options}',
      f'--config.data_dir={source.parent}/records',
      f'--workdir={source.parent}/run',
      *arguments,
    ],
  )
  err = capsys.readouterr().err
  assert status == 2, err
  lines = [line for line in err.splitlines() if line.startswith('error: ')]
  assert len(lines) == 1, err
  return lines[0]


def test_more_labels_than_images(capsys, source):
  message = error_of(capsys, source, 'init=dep,labels=100')
  assert 'labels: expected at most the ' in message
  assert 'got 100' in message
  assert not (source.parent / 'run' / 'denoise' / 'checkpoints').exists()


def test_all_that_is_missing_is_said_at_once(capsys, monkeypatch, tmp_path):
  monkeypatch.setattr(hosts, '_start_alone', lambda: None)
  monkeypatch.setenv('SEG_DATA_DIR', str(tmp_path / 'data'))
  config = f'{runs.ROOT}/configs/ddep_pascal.py:encoder={tmp_path}/w.npz'
  status = cli.run_command_line(
    ddep_main.PROGRAM,
    [
      'main',
      f'--config={config}',
      f'--config.data_dir={tmp_path}/records',
      f'--workdir={tmp_path}/run',
      # The same stages, smaller.
      '--config.network.encoder.num_layers=1',
      '--config.network.encoder.blocks=(1,1,1)',
    ],
  )
  err = capsys.readouterr().err
  assert status == 2
  assert err.count('\n') == 4  # A line each, and the advice.
  for part in (
    f'error: config.denoise.start.path: {tmp_path}/w.npz does not exist',
    f'got {tmp_path}/data/imagenet, which does not exist: give the folder of',
    f'got {tmp_path}/data/pascal_context, which does not exist: give the',
    'VOCtrainval_03-May-2010.tar',
    'to run it now, on generated images, add the option tiny',
  ):
    assert part in err
  assert err.count('data/imagenet,') == 1
  assert not list((tmp_path / 'run').rglob('*.json'))


def test_what_finished_stages_have_read_is_not_asked_for(tmp_path, source):
  config = config_file.load_config(
    f'{runs.ROOT}/configs/ddep_folder.py:source={source},ignore=255,'
    'val_fraction=0.4,labels=2,tiny'
  )
  config.data_dir = str(tmp_path / 'records')
  config.denoise.start.path = f'{tmp_path}/w.npz'
  config.denoise.start.take = ('encoder',)
  config.stages = ('denoise', 'finetune', 'evaluate')
  stages = tuple(ddep_main.PROGRAM.build(config).values())
  with pytest.raises(errors.MissingInput, match='w.npz does not exist'):
    input_checks.check_stage_inputs(stages, tmp_path)
  json_files.write_json(tmp_path / 'denoise' / 'DONE.json', {})
  input_checks.check_stage_inputs(stages, tmp_path)


def test_a_split_that_is_not_there(capsys, source):
  message = error_of(
    capsys, source, 'init=dep', "--config.evaluate.splits=('test',)"
  )
  assert 'split: expected one of ' in message
  assert "got 'test'" in message


def place(source, workdir, *flags):
  """Places the stages of a command line; trains nothing."""
  config = command.parse_command(
    [
      'main',
      f'{CONFIG}:source={source},ignore=255,val_fraction=0.4,labels=2,tiny',
      f'--config.data_dir={workdir}/records',
      *flags,
    ]
  ).config
  stages = ddep_main.PROGRAM.build_stages(config)
  return stages, stage.place_stages(stages, workdir)


def test_the_same_files_elsewhere_are_the_same_settings(
  source, tmp_path, monkeypatch
):
  list_file = tmp_path / 'labeled.txt'
  list_file.write_text('02\n03\n')
  listed = f'--config.finetune.subset.list={list_file}'
  stages, placed = place(source, tmp_path, listed)
  for each in stages:
    placed[each.name].prepare()
  built = ddep_main.PROGRAM.build(
    command.parse_command(
      [
        'main',
        f'{CONFIG}:source={source},ignore=255,val_fraction=0.4,labels=2,tiny',
        f'--config.data_dir={tmp_path}/records',
        listed,
      ]
    ).config
  )
  for name in ('denoise', 'finetune'):
    content = built[name].content()
    json_files.write_json(tmp_path / name / stage.CONTENT_FILE, content)
  # A copy has other times of modification, and another name here.
  copy = tmp_path / 'a copy'
  shutil.copytree(source, copy, copy_function=shutil.copyfile)
  (tmp_path / 'second.txt').write_text('03.jpg\n02.jpg\n')
  monkeypatch.chdir(tmp_path)
  for spelled, names in (
    (f'{source}/', listed),
    ('discs', listed),
    (copy, listed),
    ('./a copy/.', '--config.finetune.subset.list=second.txt'),
  ):
    _, other = place(spelled, tmp_path, names)
    assert other == placed
  # Another mask, or image, is other data.
  shutil.copy(copy / 'masks' / '00.png', copy / 'masks' / '06.png')
  with pytest.raises(
    errors.UserError, match='/denoise was made with other'
  ) as e:
    place(copy, tmp_path, listed)
  assert f'data.source: {source} -> {copy}' in str(e.value)
  assert 'which hold other files): choose another --workdir' in str(e.value)
  finetune = built['finetune']
  last = finetune.context.open(finetune.options.data, 'train').ids()[-1]
  (tmp_path / 'second.txt').write_text(f'03\n{last}\n')
  with pytest.raises(
    errors.UserError, match='/finetune was made with .*second'
  ):
    place('discs', tmp_path, '--config.finetune.subset.list=second.txt')
  # For predictions it need not be there.
  stage.place_stages(stages, tmp_path, compares_content=False)


def test_data_is_opened_once(source, tmp_path, monkeypatch):
  opened = []
  open_split = datasets.open_dataset_split
  monkeypatch.setattr(
    datasets,
    'open_dataset_split',
    lambda *args: opened.append(args[:2]) or open_split(*args),
  )
  config = command.parse_command(
    [
      'main',
      f'{CONFIG}:source={source},ignore=255,val_fraction=0.4,labels=2,tiny',
      f'--config.data_dir={tmp_path}/records',
    ]
  ).config
  stages = tuple(ddep_main.PROGRAM.build(config).values())
  for _ in range(2):
    input_checks.check_stage_inputs(stages, tmp_path)
  assert sorted(split for _, split in opened) == ['train', 'val']


def test_a_longer_training_continues_where_its_past_is_the_same(
  source, tmp_path
):
  def refuse(*flags):
    config = command.parse_command(
      [
        'main',
        f'{CONFIG}:source={source},ignore=255,tiny',
        '--config.finetune.recipe.num_steps=90',
        *flags,
      ]
    ).config
    finetune = ddep_main.PROGRAM.build(config)['finetune']
    return finetune.extension().refuse(tmp_path, 60)

  constant = '--config.finetune.recipe.optimizer.schedule=constant'
  assert refuse(constant) == ''
  message = refuse()
  assert 'a cosine schedule over 90 steps differs from the first' in message
  # What the message says to do.
  for part in (
    "--config.stages=\"('finetune', 'evaluate')\"",
    f'--config.finetune.start.path={tmp_path}',
    "--config.finetune.start.take=\"('encoder', 'decoder', 'heads/logits')\"",
  ):
    assert part in message


def test_softmax_where_images_have_several_classes(capsys, source):
  message = error_of(
    capsys,
    source,
    'init=none',
    "--config.stages=('classify',)",
    '--config.classify.kind=softmax',
  )
  expected = "config.classify.kind: expected 'sigmoid', got 'softmax': image"
  assert expected in message
  assert 'has 2 tags' in message


def test_bad_files_are_named(capsys, source):
  masks = source / 'masks'
  (masks / '03.png').unlink()
  assert '03' in error_of(capsys, source, 'init=none')
  shutil.copy(masks / '02.png', masks / '03.png')
  (source / 'classes.txt').write_text('ground\n')
  assert 'expected values 0, 255 (ignored), got ' in error_of(
    capsys, source, 'init=none'
  )


def test_a_folder_that_changed_under_a_run(capsys, source):
  started = source.parent / 'run' / 'finetune'
  started.mkdir(parents=True)
  (started / 'labeled_ids.json').write_text(json.dumps(['gone']))
  message = error_of(capsys, source, 'init=none')
  assert 'the choice of labeled images changed since' in message


def test_an_image_that_is_labeled_and_held_out(capsys, source):
  for split, names in (('train', '0123'), ('val', '4567')):
    for kind, suffix in (('images', 'jpg'), ('masks', 'png')):
      folder = source / kind / split
      folder.mkdir()
      for name in names:
        (source / kind / f'0{name}.{suffix}').rename(
          folder / f'0{name}.{suffix}'
        )
  # The same bytes under another name.
  for kind, suffix in (('images', 'jpg'), ('masks', 'png')):
    shutil.copy(
      source / kind / 'val' / f'06.{suffix}',
      source / kind / 'train' / f'99.{suffix}',
    )
  folders = (
    '--config.finetune.data.images=images/{split}',
    '--config.finetune.data.masks=masks/{split}',
    '--config.finetune.data.val_fraction=0.0',
  )
  message = error_of(capsys, source, 'init=none', *folders)
  assert 'share images by their content: train/99 is val/06' in message
  (source / 'images' / 'train' / '99.jpg').unlink()
  (source / 'masks' / 'train' / '99.png').unlink()
  listed = source / 'labeled.txt'
  listed.write_text('02\n77\n')
  # Nothing was made with the settings that were refused.
  message = error_of(capsys, source, f'init=none,list={listed}', *folders)
  assert "got '77' in " in message
  assert 'which names no image of the split' in message
