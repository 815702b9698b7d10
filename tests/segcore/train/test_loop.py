"""The loop's own duties, with a method of one number."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from input_pipeline import batch as batch_lib
from input_pipeline import loader
from runtime import errors, progress
from segcore.distributed import sharding
from segcore.train import loop, tensorboard, train_state
from segcore.train import workspace as workspace_lib
from segcore.weights import checkpoint_reader


@dataclasses.dataclass(frozen=True)
class Counts:
  """Adds up what it sees; a term breaks at the step `breaks`."""

  breaks: int = 1000

  def init(self, rng, batch_spec, loaded):
    return train_state.TrainState(
      step=jnp.zeros((), jnp.int32),
      params={'sum': jnp.zeros(())},
      batch_stats={},
      opt_state=(),
      rng=rng,
    )

  def train_step(self, state, batch):
    step = state.step + 1
    total = state.params['sum'] + jnp.sum(
      batch_lib.to_symmetric(batch['image'])
    )
    term = jnp.where(step == self.breaks, jnp.nan, 1.0)
    metrics = {'loss': total + term, 'term': term, 'other': jnp.zeros(())}
    return state.replace(step=step, params={'sum': total}), metrics

  def predict(self, state, images):
    return images


def number(i):
  return {'image': np.full((2, 2, 3), i, np.uint8), 'id': np.bytes_(f'{i}')}


def training(num_steps=11, breaks=1000, **fields):
  records = [number(i) for i in range(24)]
  stream = loader.Stream(records, lambda record, rng: record)
  return loop.TrainingSpec(
    method=Counts(breaks),
    loader=loader.Loader({'': stream}, 8, seed=0),
    num_steps=num_steps,
    seed=0,
    **fields,
  )


def run(directory, what, **fields):
  operation = loop.OperationOptions(
    **{'log_every': 3, 'save_every': 4, **fields}
  )
  place = workspace_lib.Workspace(directory, {}, 'digest')
  return loop.train(what, place, operation, sharding.make_mesh())


def metrics_lines(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def saved(directory):
  return {int(p.name) for p in (directory / 'checkpoints').iterdir()}


def test_each_step_is_a_sign_of_life(tmp_path, monkeypatch):
  signs = []
  monkeypatch.setattr(progress, 'sign', signs.append)
  run(tmp_path, training(num_steps=5))
  name = tmp_path.name
  at = [f'step {step} of {name}' for step in range(1, 6)]
  assert [sign for sign in signs if sign.startswith('step')] == at
  # Saving is waited for, on some disks for long.
  assert f'saving step 4 of {name}' in signs
  assert signs[-1] == f'all of {name} was saved'


def test_everything_happens_when_it_is_due(tmp_path):
  seen = []

  def evaluate(state):
    seen.append(int(state.step))
    return tensorboard.Summaries({'val/score': -abs(int(state.step) - 5.0)})

  what = training(
    evaluate=evaluate, evaluate_every=5, best=loop.BestMetric('val/score')
  )
  state = run(tmp_path, what)
  assert seen == [5, 10, 11]
  assert [x['step'] for x in metrics_lines(tmp_path) if 'train/loss' in x] == [
    *(3, 6, 9, 11)
  ]
  assert [
    x['step'] for x in metrics_lines(tmp_path) if 'val/score' in x
  ] == seen
  assert saved(tmp_path) == {8, 11}
  assert int(checkpoint_reader.read(tmp_path / 'best', ('step',))['step']) == 5
  # 11 batches of 8 of an endless stream of 24 numbers: three whole epochs and
  # two thirds of the fourth.
  assert int(state.step) == 11
  per_pixel = float(state.params['sum']) / 12
  epoch = sum(i / 127.5 - 1 for i in range(24))
  low = 3 * epoch + sum(i / 127.5 - 1 for i in range(16))
  high = 3 * epoch + sum(i / 127.5 - 1 for i in range(8, 24))
  assert low - 1e-3 <= per_pixel <= high + 1e-3


def test_a_term_that_breaks_is_named_and_nothing_after_is_saved(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    run(tmp_path, training(breaks=6))
  assert 'term was not finite at step 6' in str(caught.value)
  assert 'loss' not in str(caught.value).split(' was not')[0]
  assert saved(tmp_path) == {4}
  found = checkpoint_reader.read(tmp_path / 'checkpoints')
  assert np.isfinite(found['params']['sum'])
  # Mended, the run goes on from there.
  state = run(tmp_path, training())
  assert int(state.step) == 11


def test_a_request_to_stop_saves_at_once(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(
    workspace_lib.Preemption,
    'reached',
    lambda self: calls.append(1) or len(calls) == 6,
  )
  with pytest.raises(workspace_lib.Preempted, match='saved at step 6'):
    run(tmp_path, training())
  assert saved(tmp_path) == {4, 6}
  run(tmp_path, training())
  assert [x['step'] for x in metrics_lines(tmp_path)] == [3, 6, 9, 11]


def test_tensorboard_has_each_point_once_after_a_restart(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(
    workspace_lib.Preemption,
    'reached',
    lambda self: calls.append(1) or len(calls) == 7,
  )
  with pytest.raises(workspace_lib.Preempted):
    run(tmp_path, training(), log_every=1)
  run(tmp_path, training(), log_every=1)
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  steps = [point.step for point in events.Scalars('train/loss')]
  assert steps == list(range(1, 12))
  # The table of parameters, once, as text.
  (text,) = events.Tensors('parameters')
  (shown,) = text.tensor_proto.string_val
  lines = [line.split('|') for line in shown.decode().splitlines()]
  names = [line[1].strip() for line in lines if len(line) > 1]
  assert names == ['Name', 'sum']
  assert text.step == 0


def test_ids_are_recorded_for_the_steps_that_ran(tmp_path):
  run(tmp_path, training(num_steps=3), record_ids=True)
  lines = (tmp_path / 'ids.jsonl').read_text().splitlines()
  ids = [json.loads(line)['ids'] for line in lines]
  assert [len(batch) for batch in ids] == [8, 8, 8]
  assert sorted(int(i) for batch in ids for i in batch) == list(range(24))


@pytest.mark.parametrize(
  ('best', 'value', 'before', 'improves'),
  [
    (loop.BestMetric('x'), 0.5, None, True),
    (loop.BestMetric('x'), float('nan'), None, False),
    (loop.BestMetric('x'), 0.5, 0.5, False),
    (loop.BestMetric('x'), 0.6, 0.5, True),
    (loop.BestMetric('x', higher_is_better=False), 0.6, 0.5, False),
    (loop.BestMetric('x', higher_is_better=False), 0.4, 0.5, True),
  ],
)
def test_best(best, value, before, improves):
  assert best.improves(value, before) is improves


@pytest.mark.parametrize('name', ['log_every', 'save_every', 'fsdp'])
def test_impossible_operations_are_refused(name):
  with pytest.raises(ValueError, match=f'{name}: found 0, expected >= 1'):
    loop.OperationOptions(**{name: 0})


def test_a_term_that_stays_0_is_told_once():
  silent = loop.ZeroTermMonitor(first_step=100)
  told = []
  for step in range(10, 501, 10):
    values = {
      'loss': 0.0,
      'loss_contrast': 0.0,
      'loss_unsupervised': 0.0 if step % 50 else 0.1,
      'entropy': 0.0,
    }
    told += [(step, line) for line in silent.see(step, values)]
  [(step, line)] = told
  # The tenth time after step 100.
  assert step == 200
  assert 'loss_contrast was exactly 0' in line
