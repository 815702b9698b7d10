"""Tests of costs known by hand, and of the command that reports them."""

import dataclasses
import os
import types

import jax
import jax.numpy as jnp
import pytest

from ddep import main as ddep_main
from ddep import noise
from ddep.stages import denoise
from input_pipeline import batch as batch_lib
from input_pipeline import datasets, loader, transforms
from runtime import errors
from segcore.distributed import sharding
from segcore.experiment import cli, dry_run, hosts, stage, step_timing
from segcore.models import heads, segmenter
from segcore.models.decoders import unet
from segcore.models.encoders import resnet_gn
from segcore.train import loop, optimizers, train_state
from segcore.train import update as update_lib
from tests.support import fake_data, runs

SHAPES = f'--config={runs.ROOT}/configs/ddep_shapes.py'
SMALL = runs.SMALL_NETWORK
# Before a fixture replaces it.
real_time_training_steps = step_timing.time_training_steps


def plan_of(accumulate=1, remat=False, trained=('decoder', 'heads'), fsdp=1):
  def build(remat):
    net = segmenter.Segmenter(
      resnet_gn.ResNet((1, 1), 8, 4, remat=remat),
      unet.UNetDecoder((16, 8, 8), num_groups=4, remat=remat),
      {'noise': heads.ConvHead(3)},
    )
    options = optimizers.OptimizerOptions(learning_rate=1e-3)
    update = update_lib.Update(trained, options, 50, accumulate)
    return denoise.Denoise(net, update, noise.NoiseOptions('scaled', gamma=0.9))

  return dry_run.Workload(
    build=build,
    remat=remat,
    batch_spec=batch_lib.batch_spec(16, (16, 16)),
    batch_size=16,
    num_steps=50,
    image_size=(16, 16),
    mesh=sharding.make_mesh(fsdp),
    accumulate=accumulate,
  )


@pytest.fixture(scope='module')
def whole():
  return dry_run.count_dry_run_cost(plan_of())


def test_costs_known_by_hand(whole):
  assert whole.parameters['heads'] == 3 * 3 * 8 * 3 + 3
  # Channels that come in, with those of the skip, and go out; cells. Each block
  # has two convolutions and two norms.
  blocks = ((64 + 32, 16, 4**2), (16 + 8, 8, 8**2), (8, 8, 16**2))
  assert whole.parameters['decoder'] == sum(
    9 * (i * o + o * o) + 4 * o for i, o, _ in blocks
  )
  assert whole.forward['decoder'] == sum(
    2 * cells * 9 * (i * o + o * o) for i, o, cells in blocks
  )
  assert whole.forward['heads'] == 2 * 16**2 * 9 * 8 * 3
  # The encoder is frozen; so what reads its maps, the first convolution and the
  # skips' parts of others, has one gradient only. The rest costs thrice.
  unread = 2 * 9 * (4**2 * (64 + 32) * 16 + 8**2 * 8 * 8)
  assert whole.step == {
    'encoder': 16 * whole.forward['encoder'],
    'decoder': 16 * (3 * whole.forward['decoder'] - unread),
    'heads': 16 * 3 * whole.forward['heads'],
    'other': 0,
  }
  assert whole.in_while == 0


def test_parts_of_a_batch_cost_what_the_batch_costs(whole):
  assert dry_run.count_dry_run_cost(plan_of(accumulate=2)) == whole


def test_what_a_device_keeps(whole):
  plan = plan_of(trained=segmenter.SUBMODULES)
  both = loop.train_state_spec(plan.build(False), plan.mesh, plan.batch_spec)
  size = sum(whole.parameters.values())
  # Parameters and two moments of Adam, then step, Adam's step, the schedule's
  # step and a key of two.
  assert dry_run.state_bytes_per_device(both) == 4 * (3 * size + 5)
  learning = whole.parameters['decoder'] + whole.parameters['heads']
  assert whole.state_bytes == 4 * (size + 2 * learning + 5)


@pytest.fixture(autouse=True)
def times(monkeypatch):
  """Takes the place of real steps, whose times are known."""
  timed = []

  def time_training_steps(trained, mesh, spec, first_step):
    timed.append(first_step)
    return step_timing.StepTimes(24.0, 0.25)

  monkeypatch.setattr(step_timing, 'time_training_steps', time_training_steps)
  return timed


def test_three_steps_are_timed(whole, monkeypatch, times):
  monkeypatch.setattr(dry_run, 'count_dry_run_cost', lambda plan: whole)
  plan = dataclasses.replace(plan_of(), num_steps=30_000, first_step=7)
  line = [*dry_run.report_dry_run(plan, False)][-1]
  assert line == (
    'timed here on 8 x cpu: 0.25 s a step, 24s of compiling; all 30,000 steps '
    '2h05m, without evaluations and waiting for data'
  )
  assert times == [7]
  # A CPU does not try what takes it minutes.
  large = whole._replace(step={**whole.step, 'other': 10**12})
  monkeypatch.setattr(dry_run, 'count_dry_run_cost', lambda plan: large)
  line = [*dry_run.report_dry_run(plan, False)][-1]
  assert line == 'not timed here: 1e+12 FLOPs a step take a CPU minutes'
  assert times == [7]


def test_steps_that_do_not_fit_are_said(whole, monkeypatch):
  def fail(*arguments):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 3 GB')

  monkeypatch.setattr(dry_run, 'count_dry_run_cost', lambda plan: whole)
  monkeypatch.setattr(step_timing, 'time_training_steps', fail)
  line = [*dry_run.report_dry_run(plan_of(), False)][-1]
  assert line.startswith('this does not fit into memory: more devices')


class Counting:
  """A method whose state is its step."""

  def __init__(self):
    self.steps = []

  def init(self, rng, batch_spec, loaded):
    step = jnp.zeros((), jnp.int32)
    return train_state.TrainState(step, {}, {}, (), rng)

  def train_step(self, state, batch):
    jax.debug.callback(lambda step: self.steps.append(int(step)), state.step)
    total = sum(jnp.sum(x.astype(jnp.float32)) for x in batch.values())
    return state.replace(step=state.step + 1), {'loss': total}

  def predict(self, state, images):
    return images


def test_real_steps_are_timed_after_a_warm_up():
  counting, spec = Counting(), batch_lib.batch_spec(8, (2, 2), label=True)
  timed = real_time_training_steps(counting, sharding.make_mesh(), spec, 40)
  jax.effects_barrier()
  assert sorted({*counting.steps}) == [40, 41, 42, 43]
  assert 0 < timed.step < timed.compiling


def test_the_report_says_what_was_counted(monkeypatch, whole):
  monkeypatch.setattr(dry_run, 'count_dry_run_cost', lambda plan: whole)
  text = '\n'.join(
    dry_run.report_dry_run(plan_of(accumulate=2, remat=True), False)
  )
  assert '50 steps of 16 images of 16x16 (8 devices x 2 parts x 1)' in text
  assert ': 800 images seen' in text
  assert f'{whole.parameters["encoder"]:,}' in text
  step = sum(whole.step.values())
  assert f'{step / 16 / 1e6:,.1f}' in text
  assert f'{50 * step:.3g} FLOPs in all' in text
  assert '8 chips' in text and '989 TFLOP/s' in text
  assert 'XLA' not in text


def test_xla_says_its_own_figures(whole):
  plan = plan_of()
  compiled = dry_run.compile_dry_run_step(plan, remat=False)
  # A device has two images. XLA leaves out padded taps, which on maps of 2 to
  # 16 cells are many, and adds norms and noise.
  nominal = sum(whole.step.values()) / 8
  assert 0.6 * nominal < compiled.operations < 2 * nominal
  images = 2 * 16 * 16 * 3
  assert compiled.arguments > whole.state_bytes + images
  assert compiled.arguments < whole.state_bytes + images + 100
  assert compiled.peak >= compiled.arguments + compiled.temporaries


def test_the_report_shows_both_of_xlas_programs(monkeypatch, whole):
  monkeypatch.setattr(dry_run, 'count_dry_run_cost', lambda plan: whole)
  monkeypatch.setattr(
    dry_run,
    'compile_dry_run_step',
    lambda plan, remat: dry_run.Compiled(4e9 + 2e9 * remat, 10**8, 2**30, 9),
  )
  text = list(dry_run.report_dry_run(plan_of(remat=True), compiles=True))
  # Eight devices, 16 images.
  assert [' '.join(line.split()) for line in text[-3:]] == [
    'a device GFLOPs an image arguments temporaries peak',
    'without remat 2.000 0.10 GB 1.07 GB 0.0 MB',
    'with remat (here) 3.000 0.10 GB 1.07 GB 0.0 MB',
  ]


@pytest.mark.parametrize('keep', [(), ('label',), ('tags',)])
def test_a_batch_is_known_before_its_data(keep):
  split = fake_data.labeled_split([(20, 24)] * 9)
  records = [{**record, 'tags': [0, 2]} for record in split.records]
  decode = transforms.Decode(5, keep)
  cut = transforms.Compose((decode, transforms.RandomCrop((16, 16))))
  result = loader.Loader({'': loader.Stream(records, cut)}, 8, 3).element_spec()
  planned = batch_lib.batch_spec(
    8,
    (16, 16),
    label='label' in keep,
    num_tags=5 if 'tags' in keep else None,
  )
  assert planned == {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in result.items()
  }


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('shapes/scenes', 9),
    ('camvid', 11),
    ('voc2012', 21),
    ('pascal_context', 59),
    ('pascal_context/60', 60),
    ('ade20k', 150),
    ('cityscapes/fine', 19),
    ('gta5', 19),
    ('synthia', 19),
    ('imagenet_s/919', 920),
    ('imagenet/1k', None),
    ('image_folder', None),
    ('image_mask_folder', None),
  ],
)
def test_classes_known_without_files(name, expected, monkeypatch, tmp_path):
  monkeypatch.setenv('SEG_DATA_DIR', str(tmp_path / 'nothing'))
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'none'))
  assert (
    datasets.known_dataset_num_classes(datasets.DataOptions(name)) == expected
  )
  assert not list(tmp_path.iterdir())


def test_classes_of_no_data_set():
  with pytest.raises(errors.UserError, match=r"name: .* got 'imagenet_s/7'"):
    datasets.known_dataset_num_classes(datasets.DataOptions('imagenet_s/7'))


@pytest.fixture
def run_command(capsys, monkeypatch, tmp_path):
  """Runs a command line in an empty folder where no data is."""
  monkeypatch.setattr(hosts, '_start_alone', lambda: None)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'records'))
  monkeypatch.setenv('SEG_DATA_DIR', str(tmp_path / 'photographs'))
  monkeypatch.chdir(tmp_path)

  def run(*arguments, program=ddep_main.PROGRAM):
    status = cli.run_command_line(program, ['main', *arguments])
    assert os.listdir(tmp_path) == []
    return status, capsys.readouterr()

  return run


@pytest.mark.parametrize(
  ('init', 'stages'),
  [
    ('ddep', ['classify', 'denoise', 'finetune', 'evaluate']),
    ('dep', ['denoise', 'finetune', 'evaluate']),
    ('supervised', ['classify', 'finetune', 'evaluate']),
    ('none', ['finetune', 'evaluate']),
  ],
)
def test_a_dry_run_of_every_init(run_command, monkeypatch, whole, init, stages):
  if init != 'ddep':  # Which has all stages: the others need not be counted.
    monkeypatch.setattr(dry_run, 'count_dry_run_cost', lambda plan: whole)
  status, printed = run_command(
    f'{SHAPES}:init={init},tiny', '--dry_run', *SMALL
  )
  assert status == 0, printed.err
  lines = printed.out.splitlines()
  assert [line for line in lines if line and line[0] != ' '] == stages
  steps = [line.strip() for line in lines if 'images seen' in line]
  sizes = {'classify': 32, 'denoise': 16, 'finetune': 8}
  assert [line.split(' images')[0] for line in steps] == [
    f'60 steps of {sizes[name]}' for name in stages[:-1]
  ]
  assert '  test, val, train: whole image, single scale' in lines
  assert 'done' not in printed.out
  if init == 'ddep':
    # Nine classes, known without a scene being drawn; a classifier has no
    # decoder, and reads 64 channels.
    rows = [line.split() for line in lines if line.startswith('  parameters ')]
    assert [row[2] for row in rows] == ['-', '19,712', '19,712']
    assert [row[3] for row in rows] == [
      f'{64 * 9 + 9}',
      f'{9 * 8 * 3 + 3}',
      f'{9 * 8 * 9 + 9}',
    ]


def test_a_dry_run_of_one_stage(run_command):
  arguments = (f'{SHAPES}:tiny', '--dry_run', *SMALL)
  _, printed = run_command(*arguments, '--stage=evaluate')
  assert printed.out.split()[0] == 'evaluate'
  assert 'denoise' not in printed.out
  status, printed = run_command(*arguments, '--stage=evalute')
  assert status == 2
  assert '--stage: expected one of classify' in printed.err


def test_an_unknown_number_of_classes_is_assumed(
  run_command, monkeypatch, whole
):
  monkeypatch.setattr(dry_run, 'count_dry_run_cost', lambda plan: whole)
  runs_folder = f'--config={runs.ROOT}/configs/ddep_folder.py'
  status, printed = run_command(
    f'{runs_folder}:source=/photographs,ignore=255,init=none,tiny',
    '--dry_run',
    *SMALL,
  )
  assert status == 0, printed.err
  assert 'image_mask_folder tell its classes: 21 are assumed' in printed.out


def test_the_classes_of_a_list_are_counted(tmp_path):
  source = runs.make_folder(tmp_path / 'discs', count=2)
  options = datasets.DataOptions(
    'image_mask_folder', str(source), 'images', 'masks', 'classes.txt', '255'
  )
  assert datasets.known_dataset_num_classes(options) == 2
  (source / 'classes.txt').write_text('ground\ndisc\nvoid\n')
  ignored = dataclasses.replace(options, ignore='2')
  assert datasets.known_dataset_num_classes(ignored) == 2
  (source / 'classes.txt').unlink()
  assert datasets.known_dataset_num_classes(options) is None


def test_a_stage_without_an_estimate_runs_nothing(run_command):
  def refuse(place):
    raise AssertionError(place)

  status, printed = run_command(
    SHAPES,
    '--dry_run',
    program=types.SimpleNamespace(
      build_stages=lambda config: [stage.Stage('features', {}, refuse)],
      load_model=lambda: None,
    ),
  )
  assert status == 0
  assert printed.out.split('\n')[1:] == [
    'features',
    '  no cost is estimated for this stage',
    '',
  ]


def test_there_is_no_dry_run_of_predictions(run_command):
  for flag in ('--dry_run', '--dry_run_xla'):
    status, printed = run_command(SHAPES, '--stage=predict', flag)
    assert status == 2
    assert '--dry_run is for training, not for --stage=predict' in printed.err


def test_large_leaves_count_by_their_share():
  mesh = sharding.make_mesh(fsdp=4)
  shapes = {
    'large': jax.ShapeDtypeStruct((3, 512, 1024), jnp.float32),
    'small': jax.ShapeDtypeStruct((10, 4), jnp.bfloat16),
  }
  placed = jax.tree.map(
    lambda x, s: x.update(sharding=s),
    shapes,
    sharding.state_shardings(mesh, shapes),
  )
  assert dry_run.state_bytes_per_device(placed) == 4 * 3 * 512 * 256 + 80
