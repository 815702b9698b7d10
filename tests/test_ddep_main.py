"""The command line as a user runs it: killed, stopped, on several hosts."""

import signal

import jax
import numpy as np
import PIL.Image
import pytest

from tests import runs


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return runs.make_folder(tmp_path_factory.mktemp('data') / 'discs')


@pytest.fixture(scope='module')
def whole(source, tmp_path_factory):
  """An uninterrupted run on one device."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  process = runs.start(source, workdir)
  assert runs.finish(process, workdir) == 0, runs.text_of(workdir)
  return workdir


def assert_same_to_the_bit(one, other):
  jax.tree.map(
    np.testing.assert_array_equal,
    runs.state_of(one / 'finetune'),
    runs.state_of(other / 'finetune'),
  )
  for name in ('metrics', 'ids'):
    assert runs.journal_of(one / 'finetune', name) == runs.journal_of(
      other / 'finetune', name
    )
  assert runs.results_of(one) == runs.results_of(other)


def test_a_run_leaves_what_it_promises(whole):
  stage = whole / 'finetune'
  lines = runs.journal_of(stage)
  trained = [line['step'] for line in lines if 'train/loss' in line]
  evaluated = [line['step'] for line in lines if 'val/miou' in line]
  assert trained == list(range(1, 15))
  assert evaluated == [6, 12, 14]
  saved = {int(p.name) for p in (stage / 'checkpoints').iterdir()}
  assert saved == {12, 14}
  batches = [line['ids'] for line in runs.journal_of(stage, 'ids')]
  assert [len(ids) for ids in batches] == [4] * 14
  results = runs.results_of(whole)['val']
  trained_on = {i for ids in batches for i in ids}
  assert results['num_images'] + len(trained_on) == 16
  assert set(results['per_class']['iou']) == {'ground', 'disc'}
  assert (stage / 'parameters.txt').read_text().count('encoder/') > 5
  text = runs.text_of(whole)
  assert 'finetune: 14 steps of 4 images on 1' in text
  assert 'ETA' in text


def test_predictions_of_a_folder_are_those_of_the_evaluation(source, whole):
  photos, out = whole.parent / 'photos', whole.parent / 'found'
  photos.mkdir()
  for path in sorted((source / 'images').iterdir()):
    # A dot in a name is no suffix.
    (photos / 'day.1').mkdir(exist_ok=True)
    (photos / 'day.1' / path.name).write_bytes(path.read_bytes())
  (photos / 'torn.jpg').write_bytes(path.read_bytes()[:300])
  process = runs.start(
    source,
    whole,
    *('--stage=predict', f'--images={photos}', f'--out={out}', '--probs'),
  )
  assert runs.finish(process, whole) == 0, runs.text_of(whole)
  assert f'skipped: {photos}/torn.jpg' in runs.text_of(whole)
  assert '16 images predicted, 1 skipped' in runs.text_of(whole)
  trained = {
    i
    for line in runs.journal_of(whole / 'finetune', 'ids')
    for i in line['ids']
  }
  counts = np.zeros((2, 2))
  for path in sorted((photos / 'day.1').iterdir()):
    with PIL.Image.open(out / 'labels' / 'day.1' / f'{path.stem}.png') as image:
      label = np.asarray(image)
      colours = np.asarray(image.convert('RGB'))
    with PIL.Image.open(path) as image:
      assert (image.height, image.width) == label.shape
    assert {tuple(c) for c in colours[label == 1]} <= {(128, 0, 0)}
    with np.load(out / 'probs' / 'day.1' / f'{path.stem}.npz') as file:
      probs = file['probs'].astype(np.float32)
    np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=2e-3)
    sure = np.abs(probs[..., 0] - probs[..., 1]) > 1e-2
    np.testing.assert_array_equal(probs.argmax(-1)[sure], label[sure])
    assert (out / 'overlays' / 'day.1' / f'{path.stem}.png').exists()
    if path.stem not in {i.split('/')[-1] for i in trained}:
      with PIL.Image.open(source / 'masks' / f'{path.stem}.png') as image:
        mask = np.asarray(image)
      for truth in (0, 1):
        for guess in (0, 1):
          counts[truth, guess] += np.sum((mask == truth) & (label == guess))
  iou = [
    counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c])
    for c in (0, 1)
  ]
  found = runs.results_of(whole)['val']['per_class']['iou']
  np.testing.assert_allclose(iou, [found['ground'], found['disc']], atol=1e-9)
  assert (out / 'classes.txt').read_text() == 'ground #000000\ndisc #800000\n'


def test_finished_work_is_not_done_twice(source, whole):
  before = runs.text_of(whole)
  process = runs.start(source, whole)
  assert runs.finish(process, whole) == 0
  added = runs.text_of(whole)[len(before) :]
  assert 'finetune is finished already' in added
  assert 'steps/s' not in added


def test_sigkill_in_a_save_and_in_an_evaluation_changes_nothing(
  source, whole, tmp_path
):
  workdir = tmp_path / 'run'
  stage = workdir / 'finetune'
  # The journal has step 6 before that step is evaluated.
  for due in (runs.saving(stage, 4), runs.logged(stage, 6)):
    assert runs.stop_when(runs.start(source, workdir), due), 'ended unkilled'
    assert not (stage / 'DONE.json').exists()
  process = runs.start(source, workdir)
  assert runs.finish(process, workdir) == 0, runs.text_of(workdir)
  assert_same_to_the_bit(whole, workdir)


def test_sigterm_saves_and_exits_75(source, whole, tmp_path):
  workdir = tmp_path / 'run'
  stage = workdir / 'finetune'
  process = runs.start(source, workdir)
  assert runs.stop_when(process, runs.logged(stage, 3), signal.SIGTERM)
  assert process.returncode == 75, runs.text_of(workdir)
  saved = max(int(p.name) for p in (stage / 'checkpoints').iterdir())
  assert runs.journal_of(stage)[-1]['step'] == saved
  assert f'saved at step {saved}; run the same command' in runs.text_of(workdir)
  process = runs.start(source, workdir)
  assert runs.finish(process, workdir) == 0, runs.text_of(workdir)
  assert_same_to_the_bit(whole, workdir)


def test_2_hosts_of_2_devices_equal_1_of_4(source, tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  protocol = (
    '--config.evaluate.protocol.scales=(0.75, 1.0)',
    '--config.evaluate.protocol.flip=True',
    # Adam makes steps of one size, also of gradients that differ by rounding.
    '--config.finetune.recipe.optimizer.name=sgd',
    '--config.finetune.recipe.optimizer.learning_rate=0.05',
  )
  alone = runs.start(source, one, *protocol, devices=4)
  assert runs.finish(alone, one) == 0, runs.text_of(one)
  port = runs.free_port()
  hosts = [
    runs.start(source, two, *protocol, devices=2, process=(i, 2, port))
    for i in range(2)
  ]
  for host in hosts:
    assert runs.finish(host, two) == 0, runs.text_of(two)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    runs.state_of(one / 'finetune'),
    runs.state_of(two / 'finetune'),
  )
  # Host 0 reads the first half of every batch.
  halves = [line['ids'] for line in runs.journal_of(two / 'finetune', 'ids')]
  wholes = [line['ids'] for line in runs.journal_of(one / 'finetune', 'ids')]
  assert halves == [ids[:2] for ids in wholes]
  assert runs.results_of(one) == runs.results_of(two)
