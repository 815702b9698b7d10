"""The training loop, with a method that has one number as its state."""

import dataclasses
import json
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from input_pipeline import batch as batch_lib
from input_pipeline import loader
from runtime import errors, progress
from segcore.distributed import sharding
from segcore.train import (
  callbacks,
  loop,
  operation_options,
  run_log,
  tensorboard,
  train_state,
)
from segcore.train import workspace as workspace_lib
from segcore.weights import checkpoint_reader


@dataclasses.dataclass(frozen=True)
class SumMethod:
  """Sums its images; a loss term is NaN at step `nan_at`."""

  nan_at: int = 1000

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
      batch_lib.batch_images_to_symmetric(batch['image'])
    )
    term = jnp.where(step == self.nan_at, jnp.nan, 1.0)
    metrics = {'loss': total + term, 'term': term, 'other': jnp.zeros(())}
    return state.replace(step=step, params={'sum': total}), metrics

  def predict(self, state, images):
    return images


def make_record(i):
  return {'image': np.full((2, 2, 3), i, np.uint8), 'id': np.bytes_(f'{i}')}


def training(num_steps=11, nan_at=1000, **fields):
  records = [make_record(i) for i in range(24)]
  stream = loader.Stream(records, lambda record, rng: record)
  return loop.TrainingSpec(
    method=SumMethod(nan_at),
    loader=loader.Loader({'': stream}, 8, seed=0),
    num_steps=num_steps,
    seed=0,
    **fields,
  )


def run(directory, spec, **fields):
  operation = operation_options.OperationOptions(
    **{'log_every': 3, 'save_every': 4, **fields}
  )
  workspace = workspace_lib.Workspace(directory, {}, 'digest')
  return loop.run_training_loop(
    spec, workspace, operation, sharding.make_mesh()
  )


def metrics_lines(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def saved_steps(directory):
  return {int(p.name) for p in (directory / 'checkpoints').iterdir()}


def test_each_step_is_recorded_as_activity(tmp_path, monkeypatch):
  activities = []
  monkeypatch.setattr(progress, 'record_activity', activities.append)
  run(tmp_path, training(num_steps=5))
  name = tmp_path.name
  steps = [f'step {step} of {name}' for step in range(1, 6)]
  assert [text for text in activities if text.startswith('step')] == steps
  # Saving may take long on some disks.
  assert f'saving step 4 of {name}' in activities
  assert activities[-1] == f'all states of {name} were saved'


def test_callbacks_run_when_they_are_due(tmp_path):
  evaluated = []

  def evaluate(state):
    evaluated.append(int(state.step))
    return tensorboard.Summaries({'val/score': -abs(int(state.step) - 5.0)})

  spec = training(
    evaluate=evaluate, evaluate_every=5, best=loop.BestMetric('val/score')
  )
  state = run(tmp_path, spec)
  assert evaluated == [5, 10, 11]
  lines = metrics_lines(tmp_path)
  logged = [line['step'] for line in lines if 'train/loss' in line]
  assert logged == [3, 6, 9, 11]
  assert [
    x['step'] for x in metrics_lines(tmp_path) if 'val/score' in x
  ] == evaluated
  assert saved_steps(tmp_path) == {8, 11}
  assert (
    int(
      checkpoint_reader.read_checkpoint_fields(tmp_path / 'best', ('step',))[
        'step'
      ]
    )
    == 5
  )
  # 11 batches of 8 of an endless stream of 24 numbers: three whole epochs and
  # two thirds of the fourth.
  assert int(state.step) == 11
  per_pixel = float(state.params['sum']) / 12
  epoch = sum(i / 127.5 - 1 for i in range(24))
  low = 3 * epoch + sum(i / 127.5 - 1 for i in range(16))
  high = 3 * epoch + sum(i / 127.5 - 1 for i in range(8, 24))
  assert low - 1e-3 <= per_pixel <= high + 1e-3


def test_the_report_of_an_evaluation_is_printed_after_the_last_step(
  tmp_path, capsys
):
  def evaluate(state):
    return tensorboard.Summaries(
      {'val/score': 1.0},
      curves={'val_iou/car': 0.5},
      report=[f'classes at step {int(state.step)}'],
    )

  run(tmp_path, training(evaluate=evaluate, evaluate_every=5))
  out = capsys.readouterr().out
  assert 'classes at step 11' in out and 'classes at step 10' not in out
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  tags = sorted(events.Tags()['scalars'])
  assert {'train/loss', 'val_iou/car', 'val/score'} <= set(tags)
  # TensorBoard sorts by name: the losses are above the speeds.
  assert tags.index('train/loss') < tags.index('wall_clock/goodput')
  lines = metrics_lines(tmp_path)
  assert not any('val_iou/car' in line for line in lines)


def test_nonfinite_term_is_named_and_no_later_state_is_saved(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    run(tmp_path, training(nan_at=6))
  assert 'term was not finite at step 6' in str(caught.value)
  assert 'loss' not in str(caught.value).split(' was not')[0]
  assert saved_steps(tmp_path) == {4}
  state = checkpoint_reader.read_checkpoint_fields(tmp_path / 'checkpoints')
  assert np.isfinite(state['params']['sum'])
  # Without the error, the run resumes from there.
  state = run(tmp_path, training())
  assert int(state.step) == 11


def preempt_after(monkeypatch, num_checks):
  """Requests a stop when the loop has asked for one so often."""
  calls = []
  monkeypatch.setattr(
    workspace_lib.Preemption,
    'reached',
    lambda self: calls.append(1) or len(calls) == num_checks,
  )


def test_preemption_saves_at_once(tmp_path, monkeypatch):
  preempt_after(monkeypatch, 6)
  with pytest.raises(workspace_lib.Preempted, match='saved at step 6'):
    run(tmp_path, training())
  assert saved_steps(tmp_path) == {4, 6}
  run(tmp_path, training())
  assert [x['step'] for x in metrics_lines(tmp_path)] == [3, 6, 9, 11]


def test_a_finished_training_continues_with_more_steps(tmp_path):
  run(tmp_path / 'short', training(num_steps=5))
  longer = run(tmp_path / 'short', training(num_steps=11))
  whole = run(tmp_path / 'whole', training(num_steps=11))
  assert longer.params == whole.params
  steps = [x['step'] for x in metrics_lines(tmp_path / 'short')]
  # Step 5 was the last one.
  assert steps == [3, 5, 6, 9, 11]


def test_ctrl_c_saves_the_step_at_which_it_is_noticed(tmp_path, capsys):
  """The step after a second of waiting, in which the signal is handled."""

  def evaluate(state):
    if int(state.step) == 6:
      signal.raise_signal(signal.SIGINT)
      time.sleep(1.0)
    return tensorboard.Summaries({})

  spec = training(evaluate=evaluate, evaluate_every=2)
  with pytest.raises(workspace_lib.Preempted, match='saved at step 7'):
    run(tmp_path, spec)
  assert saved_steps(tmp_path) == {4, 7}
  assert 'stopping after this step, which is saved' in capsys.readouterr().out
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoints_are_saved_by_minutes_too(tmp_path, monkeypatch):
  seconds = [0.0]
  monkeypatch.setattr(callbacks.time, 'monotonic', lambda: seconds[0])

  def evaluate(state):
    seconds[0] += 25.0
    return tensorboard.Summaries({})

  # It is 75 s after step 4, which is evaluated until 100 s and saved; a minute
  # later, at 175 s, step 8 is done.
  spec = training(evaluate=evaluate, evaluate_every=1)
  run(tmp_path, spec, save_every=100, save_minutes=1.0)
  assert saved_steps(tmp_path) == {8, 11}
  # With several hosts, host 0 decides, after steps that are logged.
  timer = callbacks.IntervalTimer(1.0, compare_every=4)
  seconds[0] += 61
  monkeypatch.setattr(callbacks.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    callbacks.collectives, 'broadcast_from_host_0', lambda value: not value
  )
  assert [timer.is_over(step) for step in (3, 4, 5)] == [False, False, False]
  timer.restart()
  assert [timer.is_over(step) for step in (7, 8)] == [False, True]
  assert not callbacks.IntervalTimer(0.0, 1).is_over(8)


def test_compiling_and_the_first_steps_are_printed(tmp_path, capsys):
  run(tmp_path, training(), log_every=11)
  lines = capsys.readouterr().out.splitlines()
  first = [line.split('  ')[0].split()[-1] for line in lines if 'loss' in line]
  assert first == ['1/11', '2/11', '3/11', '11/11']
  assert 'compiling the training step, about a minute' in lines[1]
  # The file has the steps of the interval only.
  assert [x['step'] for x in metrics_lines(tmp_path)] == [11]


def test_tensorboard_has_each_point_once_after_a_restart(tmp_path, monkeypatch):
  preempt_after(monkeypatch, 7)
  with pytest.raises(workspace_lib.Preempted):
    run(tmp_path, training(), log_every=1)
  run(tmp_path, training(), log_every=1)
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  steps = [point.step for point in events.Scalars('train/loss')]
  assert steps == list(range(1, 12))
  # The table of parameters, once, as text.
  (text,) = events.Tensors('parameters')
  (content,) = text.tensor_proto.string_val
  lines = [line.split('|') for line in content.decode().splitlines()]
  names = [line[1].strip() for line in lines if len(line) > 1]
  assert names == ['Name', 'sum']
  assert text.step == 0


def test_ids_of_each_step_are_recorded(tmp_path):
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
def test_best_metric_improves(best, value, before, improves):
  assert best.improves(value, before) is improves


@pytest.mark.parametrize('name', ['log_every', 'save_every', 'fsdp'])
def test_invalid_operation_options_are_refused(name):
  with pytest.raises(ValueError, match=f'{name}: expected 1 or more, got 0'):
    operation_options.OperationOptions(**{name: 0})


def test_term_that_is_always_zero_is_warned_of_once():
  monitor = run_log.ZeroTermMonitor(zero_terms_until=100)
  warnings = []
  for step in range(10, 501, 10):
    values = {
      'loss': 0.0,
      'loss_contrast': 0.0,
      'loss_unsupervised': 0.0 if step % 50 else 0.1,
      'entropy': 0.0,
    }
    warnings += [(step, text) for text in monitor.update(step, values)]
  [(step, text)] = warnings
  # The tenth log after step 100.
  assert step == 200
  assert 'loss_contrast was exactly 0' in text


def test_a_part_that_is_refreshed_is_refreshed_again_after_a_kill(tmp_path):
  """Before the first step of each interval, from the state alone."""
  calls = []

  def compute(state):
    calls.append(int(state.step))
    total = jax.jit(lambda x: 2 * x + 1)(state.params['sum'])
    return state.replace(params={'sum': total})

  refresh = callbacks.Refresh(first=4, every=2, compute=compute)
  whole = run(tmp_path / 'whole', training(num_steps=9, refresh=refresh))
  assert calls == [4, 6, 8]
  calls.clear()
  # Step 4 is saved before the refresh.
  run(tmp_path / 'killed', training(num_steps=4, refresh=refresh))
  resumed = run(tmp_path / 'killed', training(num_steps=9, refresh=refresh))
  assert calls == [4, 6, 8]
  np.testing.assert_array_equal(resumed.params['sum'], whole.params['sum'])
