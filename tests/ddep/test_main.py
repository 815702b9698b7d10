"""The command line as a user runs it: killed, stopped, on several hosts."""

import json
import re
import shutil
import signal

import jax
import numpy as np
import PIL.Image
import pytest

from tests.support import runs


@pytest.fixture(scope='module')
def whole(discs, tmp_path_factory):
  """An uninterrupted run on one device."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  return runs.complete(discs, workdir)


def assert_same_to_the_bit(one, other):
  runs.assert_same_runs(one, other, 'finetune')
  assert runs.read_results(one) == runs.read_results(other)


def test_a_run_leaves_what_it_promises(whole):
  stage = whole / 'finetune'
  lines = runs.read_metrics(stage)
  trained = [line['step'] for line in lines if 'train/loss' in line]
  evaluated = [line['step'] for line in lines if 'val/miou' in line]
  assert trained == list(range(1, 15))
  assert evaluated == [6, 12, 14]
  saved = {int(p.name) for p in (stage / 'checkpoints').iterdir()}
  assert saved == {12, 14}
  batches = [line['ids'] for line in runs.read_metrics(stage, 'ids')]
  assert [len(ids) for ids in batches] == [4] * 14
  results = runs.read_results(whole)['val']
  trained_on = {i for ids in batches for i in ids}
  assert results['num_images'] + len(trained_on) == 16
  assert set(results['per_class']['iou']) == {'ground', 'disc'}
  assert (stage / 'parameters.txt').read_text().count('encoder/') > 5
  text = runs.read_log(whole)
  assert 'finetune: 14 steps of 4 images on 1' in text
  assert 'ETA' in text


def test_predictions_of_a_folder_are_those_of_the_evaluation(discs, whole):
  photos, out = whole.parent / 'photos', whole.parent / 'found'
  photos.mkdir()
  for path in sorted((discs / 'images').iterdir()):
    # A dot in a name is no suffix.
    (photos / 'day.1').mkdir(exist_ok=True)
    (photos / 'day.1' / path.name).write_bytes(path.read_bytes())
  (photos / 'torn.jpg').write_bytes(path.read_bytes()[:300])
  process = runs.start(
    None,
    whole,
    *('--stage=predict', f'--images={photos}', f'--out={out}', '--probs'),
  )
  assert runs.wait(process, whole) == 0, runs.read_log(whole)
  assert f'skipped: {photos}/torn.jpg' in runs.read_log(whole)
  assert '16 images predicted, 1 skipped' in runs.read_log(whole)
  trained = {
    i
    for line in runs.read_metrics(whole / 'finetune', 'ids')
    for i in line['ids']
  }
  counts = np.zeros((2, 2))
  for path in sorted((photos / 'day.1').iterdir()):
    with PIL.Image.open(out / 'labels' / 'day.1' / f'{path.stem}.png') as image:
      label = np.asarray(image)
      colors = np.asarray(image.convert('RGB'))
    with PIL.Image.open(path) as image:
      assert (image.height, image.width) == label.shape
    assert {tuple(c) for c in colors[label == 1]} <= {(0, 255, 0)}
    with np.load(out / 'probs' / 'day.1' / f'{path.stem}.npz') as file:
      probs = file['probs'].astype(np.float32)
    np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=2e-3)
    sure = np.abs(probs[..., 0] - probs[..., 1]) > 1e-2
    np.testing.assert_array_equal(probs.argmax(-1)[sure], label[sure])
    assert (out / 'overlays' / 'day.1' / f'{path.stem}.png').exists()
    if path.stem not in {i.split('/')[-1] for i in trained}:
      with PIL.Image.open(discs / 'masks' / f'{path.stem}.png') as image:
        mask = np.asarray(image)
      for truth in (0, 1):
        for predicted in (0, 1):
          counts[truth, predicted] += np.sum(
            (mask == truth) & (label == predicted)
          )
  iou = [
    counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c])
    for c in (0, 1)
  ]
  result = runs.read_results(whole)['val']['per_class']['iou']
  np.testing.assert_allclose(iou, [result['ground'], result['disc']], atol=1e-9)
  assert (out / 'classes.txt').read_text() == 'ground #0000ff\ndisc #00ff00\n'


def test_finished_work_is_not_done_twice(discs, whole):
  before = runs.read_log(whole)
  process = runs.start(discs, whole)
  assert runs.wait(process, whole) == 0
  added = runs.read_log(whole)[len(before) :]
  assert 'finetune is finished already' in added
  assert 'steps/s' not in added


@pytest.mark.slow
def test_hidden_skips_are_hidden_from_denoising_alone(discs, tmp_path):
  workdir = tmp_path / 'run'
  recipe = ('num_steps=8', 'evaluate_every=8', 'batch_size=4')
  denoising = ('crop.size=(32, 32)', *(f'recipe.{x}' for x in recipe))
  process = runs.start(
    discs,
    workdir,
    *(f'--config.denoise.{x}' for x in denoising),
    options='init=dep,shown_skips=none',
  )
  assert runs.wait(process, workdir) == 0, runs.read_log(workdir)
  # Of the maps of strides 8, 4 and 2, its decoder reads the deepest alone.
  read = re.findall(r'^  (stride \d+) ', runs.read_log(workdir), re.MULTILINE)
  assert read == ['stride 8']
  # Still its first block joins 64 channels of stride 8 and 32 of stride 4, as
  # it does in fine-tuning.
  for stage in ('denoise', 'finetune'):
    decoder = runs.read_state(workdir / stage)['params']['decoder']
    assert decoder['block0']['conv1']['kernel'].shape == (3, 3, 64 + 32, 16)


@pytest.mark.slow
def test_another_protocol_is_reported_beside_the_first(whole):
  before = runs.read_results(whole)
  flags = ('--stage=evaluate', '--config.evaluate.protocol.flip=True')
  process = runs.start(None, whole, *flags)
  assert runs.wait(process, whole) == 0, runs.read_log(whole)
  folder = whole / 'evaluate-protocol.flip=True'
  results = json.loads((folder / 'results.json').read_text())
  assert 'flip' in results['protocol']
  assert results['splits']['val']['num_images'] == before['val']['num_images']
  assert runs.read_results(whole) == before


@pytest.mark.slow
def test_sigkill_in_a_save_and_in_an_evaluation_changes_nothing(
  discs, whole, tmp_path
):
  workdir = tmp_path / 'run'
  stage = workdir / 'finetune'
  # The journal has step 6 before that step is evaluated.
  for due in (
    runs.checkpoint_half_written(stage, 4),
    runs.step_logged(stage, 6),
  ):
    assert runs.signal_when(runs.start(discs, workdir), due), 'ended unkilled'
    assert not (stage / 'DONE.json').exists()
  runs.complete(discs, workdir)
  assert_same_to_the_bit(whole, workdir)


@pytest.fixture(scope='module')
def stopped(discs, tmp_path_factory):
  """A run that got SIGTERM after step 3, with its exit status."""
  workdir = tmp_path_factory.mktemp('stopped') / 'run'
  process = runs.start(discs, workdir)
  due = runs.step_logged(workdir / 'finetune', 3)
  assert runs.signal_when(process, due, signal.SIGTERM)
  return workdir, process.returncode


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(stopped):
  workdir, status = stopped
  stage = workdir / 'finetune'
  assert status == 75, runs.read_log(workdir)
  saved = max(int(p.name) for p in (stage / 'checkpoints').iterdir())
  assert runs.read_metrics(stage)[-1]['step'] == saved
  assert f'saved at step {saved}; run the same command' in runs.read_log(
    workdir
  )


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_uninterrupted_one(
  discs, whole, stopped, tmp_path
):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped[0], workdir)
  runs.complete(discs, workdir)
  assert_same_to_the_bit(whole, workdir)


PROTOCOL = (
  '--config.evaluate.protocol.scales=(0.75, 1.0)',
  '--config.evaluate.protocol.flip=True',
  # Adam makes steps of one size, also of gradients that differ by rounding.
  # Long steps let rounding grow: discs are flat, so that many activations are
  # near the kink of a ReLU or as large as their neighbors.
  '--config.finetune.recipe.optimizer.name=sgd',
  '--config.finetune.recipe.optimizer.learning_rate=0.002',
)


@pytest.fixture(scope='module')
def one_of_4(discs, tmp_path_factory):
  """An uninterrupted run on 4 devices of one host."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  alone = runs.start(discs, workdir, *PROTOCOL, devices=4)
  assert runs.wait(alone, workdir) == 0, runs.read_log(workdir)
  return workdir


@pytest.fixture(scope='module')
def two_of_2(discs, tmp_path_factory):
  """The same on 2 hosts of 2 devices."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  Group(discs, workdir, 2, 2).finish([0, 0])
  return workdir


class Group:
  """A run on several hosts that have a log each."""

  def __init__(self, discs, workdir, count, devices, *arguments):
    port = runs.free_port()
    self.workdir = workdir
    self.logs = [workdir.with_suffix(f'.{i}.log') for i in range(count)]
    self.processes = [
      runs.start(
        discs,
        workdir,
        *PROTOCOL,
        *arguments,
        devices=devices,
        process=(i, count, port),
        log=log,
      )
      for i, log in enumerate(self.logs)
    ]

  def wait(self):
    """Waits for all, and returns their exit statuses."""
    return [runs.wait(p, self.logs[0]) for p in self.processes]

  def finish(self, codes):
    """Waits for all; they have to exit with these."""
    assert self.wait() == codes, self.output()

  def output(self):
    return '\n'.join(log.read_text() for log in self.logs)

  def last_errors(self):
    """Returns the last error of each process: jax may print lines after it."""
    error = re.compile(r'^error: .*$', re.MULTILINE)
    return [(error.findall(log.read_text()) or [''])[-1] for log in self.logs]


def losses_of(stage):
  return {
    line['step']: line['train/loss']
    for line in runs.read_metrics(stage)
    if 'train/loss' in line
  }


@pytest.mark.slow
def test_2_hosts_of_2_devices_equal_1_of_4(one_of_4, two_of_2):
  one, two = one_of_4, two_of_2
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    runs.read_state(one / 'finetune'),
    runs.read_state(two / 'finetune'),
  )
  # Host 0 reads the first half of every batch.
  halves = [line['ids'] for line in runs.read_metrics(two / 'finetune', 'ids')]
  wholes = [line['ids'] for line in runs.read_metrics(one / 'finetune', 'ids')]
  assert halves == [ids[:2] for ids in wholes]
  assert runs.read_results(one) == runs.read_results(two)


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'devices'), [(2, 2), (4, 1)])
def test_hosts_of_which_one_was_killed_end_as_if_not(
  discs, tmp_path, count, devices
):
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  Group(discs, whole, count, devices).finish([0] * count)
  group = Group(discs, workdir, count, devices)
  due = runs.step_logged(workdir / 'finetune', 6)
  assert runs.signal_when(group.processes[0], due)
  first, *others = group.wait()
  assert first == -signal.SIGKILL
  for status, error in zip(others, group.last_errors()[1:], strict=True):
    # Process 0 hosts jax's coordination service, whose clients abort when its
    # connection breaks: that may come before the heartbeat's own message.
    assert status in (1, -signal.SIGABRT), group.output()
    if status == 1:
      assert re.match(r'error: process 0 \(.+\) is gone', error)
  Group(discs, workdir, count, devices).finish([0] * count)
  assert_same_to_the_bit(whole, workdir)


@pytest.mark.slow
def test_4_hosts_are_killed_stopped_and_go_on_as_2(discs, one_of_4, tmp_path):
  workdir = tmp_path / 'run'
  stage = workdir / 'finetune'
  only = '--stage=finetune'
  group = Group(discs, workdir, 4, 1, only)
  assert runs.signal_when(group.processes[2], runs.step_logged(stage, 5))
  group.finish([1, 1, -signal.SIGKILL, 1])
  for i in (0, 1, 3):
    assert re.match(r'error: process 2 \(.+\) is gone', group.last_errors()[i])
  before = losses_of(stage)
  # One of them is asked to stop: all do, at one step.
  group = Group(discs, workdir, 4, 1, only)
  assert runs.signal_when(
    group.processes[3], runs.step_logged(stage, 7), signal.SIGTERM
  )
  group.finish([75] * 4)
  saved = max(int(p.name) for p in (stage / 'checkpoints').iterdir())
  assert 7 <= saved < 14
  after = losses_of(stage)
  assert max(after) == saved
  assert {step: after[step] for step in before} == before
  Group(discs, workdir, 2, 1, only).finish([0, 0])
  expected, actual = losses_of(one_of_4 / 'finetune'), losses_of(stage)
  assert actual.keys() == expected.keys()
  for step in actual:
    assert actual[step] == pytest.approx(expected[step], abs=1e-5)
  # Host 0 reads the first rows of every batch: one of 4, then two.
  lines = runs.read_metrics(one_of_4 / 'finetune', 'ids')
  ids = [line['ids'] for line in runs.read_metrics(stage, 'ids')]
  assert ids == [
    whole[: 1 if step <= saved else 2]
    for step, whole in enumerate((x['ids'] for x in lines), start=1)
  ]
