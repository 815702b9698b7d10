"""That the foundation carries methods of more kinds than supervised ones.

Two fakes (see `fake_methods`) go through the real loader, loop, checkpoints,
stages and evaluation, on 8 devices.
"""

import collections
import dataclasses
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import loader, transforms
from runtime import errors, metrics_file
from segcore.distributed import sharding
from segcore.eval import inference, metrics, protocols
from segcore.train import train_state
from segcore.weights import checkpoint_reader
from tests.support import fake_data, fake_network
from tests.support import fake_methods as fakes
from tests.support.evaluation import SIZES, evaluator
from tests.support.fake_stages import Experiment, k_means
from tests.support.meshes import mesh_of

NAMES = tuple(fakes.METHODS)


def assert_same(actual, expected):
  """Equal to the bit, leaf by leaf."""
  jax.tree_util.tree_map_with_path(
    lambda path, a, b: np.testing.assert_array_equal(
      np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path)
    ),
    actual,
    expected,
  )


def assert_close(actual, expected, tolerance=1e-5):
  jax.tree_util.tree_map_with_path(
    lambda path, a, b: np.testing.assert_allclose(
      np.asarray(a),
      np.asarray(b),
      rtol=tolerance,
      atol=tolerance,
      err_msg=jax.tree_util.keystr(path),
    ),
    actual,
    expected,
  )


def differs(a, b) -> bool:
  return any(
    np.any(np.asarray(x) != np.asarray(y))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Uninterrupted runs on 8 devices: folder and last state by name."""
  results = {}
  for name in NAMES:
    folder = tmp_path_factory.mktemp(name)
    results[name] = folder, fakes.train(name, folder, mesh_of())
  return results


@dataclasses.dataclass
class ByHand:
  """A fake on one device, step by step."""

  method: object
  batches: list
  first: train_state.TrainState
  step: object


@pytest.fixture(scope='module')
def by_hand():
  results = {}
  for name, (make, batches) in fakes.METHODS.items():
    fake, source = make(), batches()
    spec = source.element_spec()
    init = jax.jit(lambda rng, fake=fake, spec=spec: fake.init(rng, spec, None))
    with source.start(0) as read:
      first = [
        loader.drop_host_only_keys(next(read)) for _ in range(fakes.NUM_STEPS)
      ]
    state = init(jax.random.PRNGKey(5))
    results[name] = ByHand(fake, first, state, jax.jit(fake.train_step))
  return results


# 8 devices equal 1.


@pytest.mark.slow
def test_two_stream_on_8_devices_equals_1(whole, by_hand):
  run = by_hand['two_stream']
  state = run.first
  for batch in run.batches:
    state, _ = run.step(state, batch)
  assert int(state.step) == fakes.NUM_STEPS
  # Parameters, both statistics, teacher, optimizer, bank, pointers, counts:
  # single precision, and eight steps in which rounding may grow.
  assert_close(whole['two_stream'][1], state)
  # The run has reached what it is to show.
  assert state.bank.count.tolist() == [12] * fake_data.NUM_CLASSES
  assert differs(state.params, state.teacher_params)
  assert differs(state.batch_stats, state.teacher_batch_stats)


# The bank and the queue are what lists would be.


def test_bank_is_a_deque(by_hand):
  run = by_hand['two_stream']
  teacher_forward = jax.jit(run.method.teacher_forward)
  state = run.first
  expected = [
    collections.deque(maxlen=run.method.capacity)
    for _ in range(fake_data.NUM_CLASSES)
  ]
  pushed = np.zeros(fake_data.NUM_CLASSES, int)
  for step, batch in enumerate(run.batches):
    if step >= run.method.warmup:
      _, labels, rows, _ = jax.device_get(teacher_forward(state, batch))
      for class_id, bank in enumerate(expected):
        mine = rows[labels == class_id][: run.method.limit]
        bank.extend(mine)
        pushed[class_id] += len(mine)
    state, _ = run.step(state, batch)
    bank = jax.device_get(state.bank)
    for class_id, rows in enumerate(expected):
      assert bank.count[class_id] == len(rows)
      assert bank.pointer[class_id] == pushed[class_id] % run.method.capacity
      # From the oldest to the newest.
      oldest = bank.pointer[class_id] - len(rows)
      order = (oldest + np.arange(len(rows))) % run.method.capacity
      np.testing.assert_allclose(
        bank.rows[class_id, order],
        np.reshape(rows, (-1, bank.rows.shape[-1])),
        atol=1e-5,
      )
  assert np.all(pushed > run.method.capacity)  # All rings went round.


def test_warmup_sees_labeled_images_only(by_hand):
  run = by_hand['two_stream']
  state = run.first
  for step, batch in enumerate(run.batches[: run.method.warmup + 1]):
    other = {
      **batch,
      'unlabeled': {
        **batch['unlabeled'],
        'image': 255 - batch['unlabeled']['image'],
      },
    }
    after, _ = run.step(state, batch)
    changed, _ = run.step(state, other)
    if step < run.method.warmup:
      assert_same(changed, after)
      assert not after.bank.rows.any()
      assert not after.bank.count.any()
      assert_same(after.teacher_params, after.params)
    else:
      assert differs(changed.params, after.params)
      assert differs(changed.teacher_batch_stats, after.teacher_batch_stats)
      assert differs(changed.bank.rows, after.bank.rows)
    state = after


def test_prediction_is_the_students_then_the_teachers(by_hand):
  run = by_hand['two_stream']
  predict = jax.jit(run.method.predict)

  @jax.jit
  def apply(params, batch_stats, images):
    variables = {'params': params, 'batch_stats': batch_stats}
    return run.method.segmenter.apply(variables, images, heads=('logits',))

  images = jax.random.normal(jax.random.PRNGKey(0), (2, 16, 16, 3))
  state = run.first
  for batch in run.batches[:4]:
    state, _ = run.step(state, batch)
  teacher = apply(state.teacher_params, state.teacher_batch_stats, images)
  student = apply(state.params, state.batch_stats, images)
  assert differs(teacher, student)
  assert_close(predict(state, images), teacher['logits'])
  warming = state.replace(step=jnp.int32(run.method.warmup))
  assert_close(predict(warming, images), student['logits'])


def test_queue_is_a_list_with_the_newest_first(by_hand):
  run = by_hand['multi_view']
  embed = jax.jit(
    lambda state, batch: run.method.embed(
      fakes.normalized(state.params), state.batch_stats, batch
    )[0]
  )
  state, expected = run.first, ([], [])
  for batch in run.batches:
    actual = np.asarray(embed(state, batch))
    for view, rows in enumerate(expected):
      rows[:0] = list(actual[:, view])
      del rows[run.method.length :]
    state, _ = run.step(state, batch)
    assert int(state.count) == len(expected[0])
    for view, rows in enumerate(expected):
      filled = np.asarray(state.queue[view])
      np.testing.assert_allclose(filled[: len(rows)], rows, atol=1e-5)
      assert not filled[len(rows) :].any()
  # 8 batches of 8 went through 20 places.
  assert len(expected[0]) == run.method.length == 20


def test_queue_is_used_once_it_is_full(by_hand):
  run = by_hand['multi_view']
  state = run.first
  for step, batch in enumerate(run.batches[:4]):
    other = state.replace(queue=jnp.roll(state.queue, 1, axis=-1) + 0.5)
    _, values = run.step(state, batch)
    _, changed = run.step(other, batch)
    full = step * fake_data.BATCH_SIZE >= run.method.length
    assert differs(values, changed) == full
    state, _ = run.step(state, batch)


# A run that was stopped ends as if nothing had happened.


@pytest.mark.slow
def test_a_lost_batch_is_no_loss(whole, tmp_path):
  with pytest.raises(ConnectionError, match='batch 7 is lost'):
    fakes.train('two_stream', tmp_path, mesh_of(), fails_at=7)
  # Two batches are on their way ahead: step 6 is the first that misses one.
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['3']
  folder, expected = whole['two_stream']
  assert_same(fakes.train('two_stream', tmp_path, mesh_of()), expected)
  assert_same_metrics(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [1, 4])
def test_a_run_on_8_devices_goes_on_with_fewer(num_devices, whole, tmp_path):
  folder, expected = whole['two_stream']
  shutil.copytree(folder / 'checkpoints' / '6', tmp_path / 'checkpoints' / '6')
  mesh = mesh_of(num_devices)
  actual = fakes.train('two_stream', tmp_path, mesh)
  assert_close(actual, expected)
  for leaf in jax.tree.leaves(actual):
    assert leaf.sharding == sharding.replicated_sharding(mesh)


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """Folders of runs that were killed after step 5, by name."""
  folders = {name: tmp_path_factory.mktemp(f'killed_{name}') for name in NAMES}
  # With two batches ahead, step 5 is the last that does without batch 7.
  program = [sys.executable, '-m', 'tests.support.fake_methods', '--hangs_at=7']
  processes = [
    subprocess.Popen(
      [*program, name, folder],
      cwd=pathlib.Path(__file__).parents[3],
      stdout=subprocess.DEVNULL,
    )
    for name, folder in folders.items()
  ]
  try:
    deadline = time.monotonic() + 60
    for process, folder in zip(processes, folders.values(), strict=True):
      while not is_saved_and_at_step_5(folder):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
  finally:
    for process in processes:
      process.kill()
  assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2
  return folders


def is_saved_and_at_step_5(folder):
  path = folder / 'metrics.jsonl'
  return (
    path.exists()
    and '"step": 5' in path.read_text()
    and (folder / 'checkpoints' / '3').exists()
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_killed_run_ends_as_an_uninterrupted_one(name, killed, whole):
  folder = killed[name]
  assert [p.name for p in (folder / 'checkpoints').iterdir()] == ['3']
  assert_same(fakes.train(name, folder, mesh_of()), whole[name][1])
  assert_same_metrics(folder, whole[name][0])


def assert_same_metrics(folder, expected):
  lines = metrics_file.read_metrics_file(folder / 'metrics.jsonl')
  assert lines == metrics_file.read_metrics_file(expected / 'metrics.jsonl')
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  """An experiment that was interrupted in the middle and run again."""
  workdir = tmp_path_factory.mktemp('experiment')
  broken = Experiment(breaks='cluster')
  with pytest.raises(KeyboardInterrupt):
    broken.run(workdir)
  assert broken.log == ['represent', 'cluster']
  again = Experiment()
  again.run(workdir)
  return workdir, again


def test_three_stages_run_once_each(experiment):
  workdir, first = experiment
  assert first.log == ['cluster', 'segment']
  again = Experiment()
  again.run(workdir)
  assert again.log == []


@pytest.mark.slow
def test_clusters_are_of_embeddings_of_single_images(experiment, whole):
  workdir, first = experiment
  with np.load(workdir / 'cluster' / 'clusters.npz') as file:
    results = {name: file[name] for name in file.files}
  assert results['ids'].tolist() == [f'image{i:02}' for i in range(10)]
  state = jax.device_get(whole['multi_view'][1])
  decode = transforms.Decode(1, keep=())
  images = np.stack([decode(r)['image'] for r in first.split.records])
  predictor = inference.ImageScores(fakes.multi_view(), fake_network.STRIDE)
  rows = predictor(state, {'images': images})
  centers, nearest = k_means(np.asarray(rows), 4)
  np.testing.assert_allclose(results['centers'], centers, atol=1e-5)
  np.testing.assert_array_equal(results['nearest'], nearest)


@pytest.mark.slow
def test_a_stage_starts_from_the_weights_of_another(experiment, whole):
  _, first = experiment
  source = whole['multi_view'][1]
  assert_same(first.loaded['params']['encoder'], source.params['encoder'])
  # Training gave nothing back to what it had started from, although every
  # array of the state is overwritten in place.
  fake, spec = fakes.two_stream(), first.batches.element_spec()
  state = jax.jit(lambda rng, loaded: fake.init(rng, spec, loaded))(
    jax.random.PRNGKey(5), first.loaded
  )
  assert_same(state.params['encoder'], source.params['encoder'])
  assert_same(state.batch_stats['encoder'], source.batch_stats['encoder'])
  assert_same(state.teacher_params, state.params)
  assert differs(first.state.params['encoder'], source.params['encoder'])


def test_changed_clusters_are_not_built_upon(experiment, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(experiment[0], workdir)
  (workdir / 'segment' / 'DONE.json').unlink()
  output = workdir / 'cluster' / 'clusters.npz'
  output.write_bytes(output.read_bytes()[:-1] + b'x')
  again = Experiment()
  with pytest.raises(errors.UserError) as caught:
    again.run(workdir)
  message = str(caught.value)
  assert message.startswith(f'{output} is missing or changed')
  assert f'remove {workdir / "cluster"} to run the stage again' in message
  assert '\n' not in message
  assert again.log == []


@pytest.mark.slow
def test_other_fields_of_a_state_can_be_read(whole):
  folder, state = whole['two_stream']
  names = ('teacher_params', 'teacher_batch_stats')
  result = checkpoint_reader.read_checkpoint_fields(
    folder / 'checkpoints', names
  )
  assert_same(result['teacher_params'], state.teacher_params)
  assert_same(result['teacher_batch_stats'], state.teacher_batch_stats)


def label_maps(fake, num_classes=fake_data.NUM_CLASSES):
  options = protocols.ProtocolOptions()
  return inference.LabelMaps(fake, num_classes, options, fake_network.STRIDE)


def test_evaluation_is_a_slow_loop_over_images(by_hand):
  split = fake_data.labeled_split(SIZES)
  state, mesh = by_hand['two_stream'].first, mesh_of()
  predictor = label_maps(fakes.two_stream())
  matrix = metrics.ConfusionMatrix.empty(fake_data.NUM_CLASSES)
  placed = jax.device_put(state, sharding.replicated_sharding(mesh))
  values = evaluator(split, predictor, matrix, mesh)(placed).values

  decode = transforms.Decode(fake_data.NUM_CLASSES)
  shared, either = np.zeros((2, fake_data.NUM_CLASSES))
  for record in split.records:
    example = decode(record)
    image, label = example['image'], example['label']
    height, width = label.shape
    padding = (
      (0, -height % fake_network.STRIDE),
      (0, -width % fake_network.STRIDE),
      (0, 0),
    )
    padded = np.pad(image, padding, mode='symmetric')
    maps = predictor(state, {'images': padded[None], 'views': [None]})
    result = np.asarray(maps)[0, :height, :width]
    for c in range(fake_data.NUM_CLASSES):
      truth, predicted = label == c, (result == c) & (label >= 0)
      shared[c] += np.sum(truth & predicted)
      either[c] += np.sum(truth | predicted)
  np.testing.assert_allclose(values['iou'], shared / either, atol=1e-4)
  assert values['miou'] == pytest.approx(np.mean(shared / either), abs=1e-4)
  assert np.sum(shared > 0) >= 3  # Most classes are found, and by chance.
