"""The objectives that PASS is compared with: their settings, and refusals."""

import numpy as np
import pytest

from configs import luss_objectives
from pass_luss import main
from pass_luss.pretrain.objectives import simsiam
from runtime import errors, options
from segcore.train import optimizers
from tests.configs import loading
from tests.transcriptions import luss_comparators

NAMES = [*luss_objectives.TITLES]
EPOCH = 1503  # steps of 256 of the 384,862 images of ImageNet-S 300


def represent(name, argument, config='pass_imagenet_s300'):
  """Returns the block of pretraining by an objective."""
  text = f'objective={name},protocol=distance{argument and ","}{argument}'
  return loading.load(config, text).represent


def optimizer_of(block):
  return options.build_options(
    optimizers.OptimizerOptions, block.recipe.optimizer, 'optimizer'
  )


@pytest.mark.parametrize('name', NAMES)
def test_settings_of_a_batch_of_256(name):
  """§2, by hand: 100 epochs of 1,503 steps on ImageNet-S 300."""
  block = represent(name, '')
  optimizer = optimizer_of(block)
  assert block.recipe.batch_size == 256
  extra = 256 if name == 'adco' else 0  # to fill 65,536 negatives
  assert block.recipe.num_steps == 100 * EPOCH + extra
  expected = {  # area, rate, decay, adaptation, warm-up
    'supervised': (0.08, 0.1, 1e-4, 'none', 0),
    'simclr': (0.08, 0.3, 1e-6, 'lars', 10 * EPOCH),
    'moco': (0.2, 0.03, 1e-4, 'none', 0),
    'byol': (0.08, 0.45, 1e-6, 'lars', 10 * EPOCH),
    'simsiam': (0.2, 0.05, 1e-4, 'none', 0),
    'densecl': (0.2, 0.03, 1e-4, 'none', 0),
    'pcl': (0.2, 0.03, 1e-4, 'none', 0),
    'adco': (0.2, 0.03, 1e-4, 'none', 256),
  }[name]
  assert (
    block.large.area[0],
    optimizer.learning_rate,
    optimizer.weight_decay,
    optimizer.adaptation,
    optimizer.warmup_steps,
  ) == expected
  assert (optimizer.name, optimizer.momentum) == ('sgd', 0.9)
  assert optimizer.weight_decay_mode == 'l2'
  assert block.large.count == (1 if name == 'supervised' else 2)
  learn = block.learn
  assert learn.clusters is None and learn.alignment is None
  assert [n for n in NAMES if learn[n] is not None] == [name]
  assert block.colors.red_deviation == 0.229


def test_augmentations():
  weak = {
    'jitter': 0.8,
    'brightness': 0.4,
    'contrast': 0.4,
    'saturation': 0.4,
    'hue': 0.1,
    'gray': 0.2,
    'blur': 0.5,
  }
  for name in ('moco', 'simsiam', 'densecl', 'pcl', 'adco'):
    assert represent(name, '').colors.large == (weak, weak)
  strong = {**dict.fromkeys(list(weak)[:4], 0.8), 'hue': 0.2, 'gray': 0.2}
  strong['blur'] = 0.5
  assert represent('simclr', '').colors.large == (strong, strong)
  first, second = represent('byol', '').colors.large
  assert first == {**weak, 'saturation': 0.2, 'blur': 1.0}
  assert second == {**first, 'blur': 0.1, 'solarize': 0.2}
  assert represent('supervised', '').colors.large == ({}, {})


def test_schedules_by_epochs():
  for name, final, first in (('moco', 0.0, 0), ('adco', 6e-4, 256)):
    block = represent(name, '')
    steps = np.array([0, EPOCH - 1, EPOCH, 50 * EPOCH + 7, 100 * EPOCH - 1])
    rate = optimizers.learning_rate_schedule(
      optimizer_of(block), block.recipe.num_steps
    )
    expected = [
      luss_comparators.epoch_cosine(step, EPOCH, 100, 0.03, final)
      for step in steps
    ]
    np.testing.assert_allclose(rate(steps + first), expected, rtol=1e-4)
  supervised = optimizer_of(represent('supervised', ''))
  assert supervised.milestones == (30 * EPOCH, 60 * EPOCH, 90 * EPOCH)
  predictor = optimizer_of(represent('simsiam', '')).constant_rate
  assert predictor == simsiam.PREDICTOR
  simclr, byol = (optimizer_of(represent(n, '')) for n in ('simclr', 'byol'))
  assert (simclr.momentum_of, byol.momentum_of) == ('updates', 'gradients')
  assert simclr.adaptation_eps == byol.adaptation_eps == 0.0


@pytest.mark.parametrize(
  ('name', 'batch_size', 'epochs', 'rate'),
  [
    ('simclr', 4096, 100, 4.8),
    ('moco', 256, 200, 0.03),
    ('byol', 4096, 100, 7.2),
    ('simsiam', 512, 100, 0.1),
    ('densecl', 256, 200, 0.03),
    ('pcl', 256, 200, 0.03),
    ('adco', 256, 200, 0.03),
  ],
)
def test_settings_of_the_authors(name, batch_size, epochs, rate):
  block = represent(name, 'setting=official')
  optimizer = optimizer_of(block)
  extra = 256 if name == 'adco' else 0
  assert block.recipe.batch_size == batch_size
  assert block.recipe.num_steps == epochs * (384_862 // batch_size) + extra
  assert optimizer.learning_rate == pytest.approx(rate)
  if name == 'simclr':
    assert (block.learn.simclr.head, block.learn.simclr.combine_views) == (
      *('released', 'sum'),
    )
    assert optimizer.weight_decay == 1e-4
  if name == 'adco':
    assert block.learn.adco.variant == 'plain'
  own = name if name in ('simclr', 'byol') else 'torchvision'
  plain = represent(name, '')
  for each, rules in ((block, own), (plain, 'torchvision')):
    assert each.colors.rules == each.large.rules == rules
    assert each.large.antialias == (rules == 'torchvision')


def view_sizes(block):
  return [
    (each['name'], each['count'], each['size'][0], each['area'])
    for each in block.smaller
  ]


def test_multi_crop_of_adco():
  """§2.4: five queries; smaller images have views in proportion."""
  for setting in ('luss', 'official'):
    block = represent('adco', f'adco=multi_crop,setting={setting}')
    assert block.learn.adco.variant == 'multi_crop'
    assert (block.large.count, block.large.size) == (2, (224, 224))
    assert block.large.area == (0.2, 1.0)
    assert view_sizes(block) == [
      ('smaller1', 1, 192, (0.172, 0.86)),
      ('smaller2', 1, 160, (0.143, 0.715)),
      ('smaller3', 1, 128, (0.114, 0.571)),
      ('smaller4', 1, 96, (0.086, 0.429)),
    ]
    assert block.colors.small.to_dict().items() >= block.colors.large[0].items()
  block = represent('adco', 'adco=multi_crop', 'pass_shapes')
  assert view_sizes(block) == [
    ('smaller1', 1, 40, (0.43, 0.86)),
    ('smaller2', 1, 36, (0.357, 0.715)),
    ('smaller3', 1, 28, (0.285, 0.571)),
    ('smaller4', 1, 20, (0.214, 0.429)),
  ]
  for config in ('pass_shapes', 'pass_imagenet_s50'):
    loaded = loading.load(config, 'objective=adco,adco=multi_crop,tiny')
    stage = main.PROGRAM.build(loaded)['represent']
    spec = stage.batch_spec(2)
    assert spec['views_smaller4'].shape[1:] == (1, 20, 20, 3)
    stage.check()
  assert represent('adco', '').smaller == ()


def test_sizes_of_data_sets():
  names = [f'pass_imagenet_s{size}' for size in (50, 300, 919)]
  moco, pcl, adco, supervised = (
    [represent(method, '', name) for name in names]
    for method in ('moco', 'pcl', 'adco', 'supervised')
  )
  assert [b.learn.moco.queue for b in moco] == [16_384, 65_536, 65_536]
  assert [b.recipe.num_steps for b in moco] == [
    *(200 * 251, 100 * 1503, 100 * 5004)
  ]
  fields = [b.learn.pcl for b in pcl]
  assert [(f.clusters, f.negatives, f.queue) for f in fields] == [
    ((1_250, 2_500, 5_000), 1_024, 1_024),
    ((7_500, 15_000, 30_000), 4_096, 4_096),
    ((25_000, 50_000, 100_000), 16_384, 16_384),
  ]
  assert [(f.from_step, f.every, f.num_images) for f in fields] == [
    (20 * 251, 251, 64_431),
    (20 * 1503, 1503, 384_862),
    (20 * 5004, 5004, 1_281_167),
  ]
  tables = [b.learn.adco for b in adco]
  assert [(t.negatives, t.temperature) for t in tables] == [
    *((8_192, 0.14), (65_536, 0.12), (65_536, 0.12))
  ]
  assert [t.negative_temperature for t in tables] == [0.03, 0.02, 0.02]
  assert optimizer_of(adco[0]).learning_rate == 0.04
  classes = [b.learn.supervised for b in supervised]
  assert [(c.num_classes, c.first_class) for c in classes] == [
    *((50, 1), (300, 1), (1000, 0))
  ]


@pytest.mark.parametrize('name', NAMES)
def test_every_config_has_every_objective(name):
  """Whole experiments, tiny ones, and P2P and D2S added."""
  for config in ('pass_shapes', 'pass_imagenet_s300', 'pass_imagenet_s919'):
    for argument in ('', 'tiny'):
      loaded = loading.load(config, f'objective={name},{argument}')
      main.PROGRAM.build(loaded)
      assert loaded.stages == (
        *('represent', 'cluster', 'label', 'finetune', 'segment'),
      )
      assert loaded.cluster.kind == 'image'
      zero_init = loaded.network.encoder.zero_init
      assert zero_init == (name == 'simsiam')
  added = f'objective={name},p2p=regression,d2s=3,tiny'
  loaded = loading.load('pass_shapes', added)
  main.PROGRAM.build(loaded)
  assert loaded.stages[1] == 'attend'
  learn = loaded.represent.learn
  assert learn.alignment.kind == 'regression'
  assert learn.clusters is not None and learn.shallow.stages == (3,)
  assert loaded.represent.large.count == 2


def test_stages_of_an_objective_fit_their_networks():
  loaded = loading.load('pass_shapes', 'objective=densecl,p2p=regression')
  stages = main.PROGRAM.build_stages(loaded)
  assert [s.name for s in stages][:2] == ['represent', 'cluster']


def test_attention_of_an_encoder_without_prototypes():
  """Its projection is trained with it, on the frozen encoder."""
  for argument, take, frozen in (
    ('objective=moco,cluster=attended', ('encoder',), 0),
    ('objective=moco,d2s=3', ('encoder', 'heads/clusters'), 1),
  ):
    config = loading.load('pass_shapes', argument)
    stages = main.PROGRAM.build(config)
    attend = stages['attend']
    assert attend.inputs().start.take == take
    optimizer = attend.method(attend.context).update.optimizer
    assert len(optimizer.groups) == frozen
    assert (
      'projection of its own' in stages['label']._describe_protocol()
    ) == (not frozen)


def test_more_classes_of_natural_shapes():
  block = represent('supervised', 'data=natural', 'pass_shapes')
  assert block.learn.supervised.num_classes == 10


def test_submissions_name_the_objective():
  config = loading.load('pass_imagenet_s300', 'objective=moco')
  assert config.segment_semi.about.name == 'MoCo v2'


@pytest.mark.parametrize(
  ('argument', 'is_fresh', 'message'),
  [
    (
      'objective=moco,cluster=attended',
      False,
      "'attend' needs represent.learn",
    ),
    ('', True, 'attend.fresh_projection: expected False, as represent.learn'),
  ],
)
def test_attention_that_does_not_fit_the_encoder(argument, is_fresh, message):
  config = loading.load('pass_shapes', argument)
  config.attend.fresh_projection = is_fresh
  with pytest.raises(errors.UserError, match=message):
    main.PROGRAM.build(config)


@pytest.mark.parametrize(
  ('argument', 'fields', 'message'),
  [
    ('', {'large.count': 3}, "large: expected 2 views named 'large', got 3"),
    ('objective=supervised', {'large.count': 2}, 'large: expected 1 views'),
    ('', {'recipe.accumulate': 2}, 'recipe.accumulate: expected 1, got 2'),
    (
      'objective=moco',
      {'learn.moco.queue': 100},
      'learn.moco.queue: expected a multiple of the batch',
    ),
    (
      'objective=adco',
      {'learn.adco.variant': 'multi_crop'},
      'smaller: expected one or more groups, .* got 0',
    ),
    (
      'objective=adco,adco=multi_crop',
      {'learn.adco.variant': 'plain'},
      r'smaller: expected \(\), as only the variant multi_crop .* got 4',
    ),
    (
      'objective=adco,adco=multi_crop,p2p=regression',
      {},
      'alignment: expected None with adco.variant=multi_crop',
    ),
    (
      'objective=adco,adco=multi_crop,d2s=3',
      {},
      'clusters: expected None with adco.variant=multi_crop',
    ),
  ],
)
def test_pretraining_that_does_not_fit(argument, fields, message):
  config = loading.load('pass_imagenet_s300', argument)
  for path, value in fields.items():
    config.represent.update_from_flattened_dict({path: value})
  with pytest.raises(errors.UserError, match=message):
    main.PROGRAM.build(config)


def test_another_number_of_classes_is_refused():
  config = loading.load('pass_shapes', 'objective=supervised')
  config.represent.learn.supervised.num_classes = 5
  stage = main.PROGRAM.build(config)['represent']
  with pytest.raises(
    errors.UserError, match='num_classes: expected 8, the classes of .* got 5'
  ):
    stage.check_data()
