"""DDeP's experiments: stages, starts, noise, steps and sizes."""

import pytest

from ddep import main as ddep_main
from segcore.experiment import stage
from tests.configs import loading

PAPER = ['ddep_ade20k', 'ddep_cityscapes', 'ddep_pascal']
SMALL = ['ddep_camvid', 'ddep_folder', 'ddep_shapes']


def graph(config):
  return [(s.name, s.needs) for s in ddep_main.PROGRAM.build_stages(config)]


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    (
      'init=ddep',
      [
        ('classify', ()),
        ('denoise', ('classify',)),
        ('finetune', ('denoise',)),
        ('evaluate', ('finetune',)),
      ],
    ),
    (
      'init=dep',
      [
        ('denoise', ()),
        ('finetune', ('denoise',)),
        ('evaluate', ('finetune',)),
      ],
    ),
    (
      'init=supervised',
      [
        ('classify', ()),
        ('finetune', ('classify',)),
        ('evaluate', ('finetune',)),
      ],
    ),
    ('init=none', [('finetune', ()), ('evaluate', ('finetune',))]),
  ],
)
def test_inits_wire_the_stages(argument, expected):
  assert graph(loading.load('ddep_shapes', argument)) == expected
  camvid = loading.load('ddep_camvid', f'{argument},encoder=random')
  assert graph(camvid) == expected


def test_how_many_images_are_evaluated_at_once_is_no_setting():
  config = loading.load('ddep_shapes', 'init=none')
  before = stage.settings_by_stage(ddep_main.PROGRAM.build_stages(config))
  config.evaluate.batch_size = 8
  assert (
    stage.settings_by_stage(ddep_main.PROGRAM.build_stages(config)) == before
  )
  config.evaluate.protocol.flip = True
  assert (
    stage.settings_by_stage(ddep_main.PROGRAM.build_stages(config)) != before
  )


def test_what_learns_in_denoising_is_ddep_or_dep():
  assert loading.load('ddep_shapes').denoise.trained == ('decoder', 'heads')
  dep = loading.load('ddep_shapes', 'init=dep').denoise
  assert dep.trained == ('encoder', 'decoder', 'heads')
  assert dep.start.path == ''


def test_an_encoder_from_elsewhere_replaces_the_classification(tmp_path):
  config = loading.load('ddep_camvid', f'init=ddep,encoder={tmp_path}')
  assert graph(config) == [
    ('denoise', ()),
    ('finetune', ('denoise',)),
    ('evaluate', ('finetune',)),
  ]
  assert config.denoise.start.path == str(tmp_path)
  assert config.denoise.start.take == ('encoder',)


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('argument', ['', 'tiny', 'init=none', 'seed=3'])
def test_configs_build(name, argument):
  options = [argument] if argument else []
  if name == 'ddep_folder':
    options.append('source=/photographs,ignore=255')
  config = loading.load(name, ','.join(options))
  stages = ddep_main.PROGRAM.build_stages(config)
  assert stages[-1].name == 'evaluate'
  if argument == 'tiny':
    assert config.finetune.recipe.num_steps == 60
  if argument == 'seed=3':
    tuning = config.finetune
    assert (tuning.recipe.seed, tuning.subset.seed) == (3, 3)
    assert config.denoise.recipe.seed == config.classify.recipe.seed == 0


def test_an_encoder_that_nothing_starts_from_is_refused():
  for argument in ('init=dep,encoder=runs/x', 'init=none,encoder=runs/x'):
    with pytest.raises(ValueError, match='encoder=runs/x: nothing starts from'):
      loading.load('ddep_camvid', argument)


def test_labels_or_fraction():
  assert loading.load('ddep_shapes').finetune.subset.labels == 100
  tenth = loading.load('ddep_shapes', 'fraction=0.1').finetune.subset
  assert (tenth.labels, tenth.fraction) == (0, 0.1)
  fifty = loading.load('ddep_shapes', 'labels=50').finetune.subset
  assert (fifty.labels, fifty.fraction) == (50, 1.0)


@pytest.mark.parametrize('name', PAPER)
@pytest.mark.parametrize(
  ('argument', 'stages'),
  [
    ('width=3,list=x,steps=9', ('classify', 'denoise', 'finetune', 'evaluate')),
    ('init=dep,pretrain=cityscapes', ('denoise', 'finetune', 'evaluate')),
    ('network=unet,init=supervised', ('classify', 'finetune', 'evaluate')),
  ],
)
def test_tiny_needs_no_files(name, argument, stages):
  config = loading.load(name, f'{argument},tiny')
  assert tuple(s.name for s in ddep_main.PROGRAM.build_stages(config)) == stages
  assert config.denoise.data.name == config.finetune.data.name
  assert config.finetune.data.name == 'shapes/scenes'
  assert config.denoise.also == ()
  assert config.finetune.recipe.num_steps == 60
  # What the options chose is kept.
  whole = loading.load(name, argument)
  assert config.denoise.noise == whole.denoise.noise
  assert config.evaluate.protocol.scales == whole.evaluate.protocol.scales
  width = config.network.decoder.width_multiplier
  assert width == whole.network.decoder.width_multiplier
  assert config.network.encoder.name == whole.network.encoder.name


def test_a_grid_of_the_images_is_that_of_each_stage():
  stages = ddep_main.PROGRAM.build_stages(
    loading.load('ddep_shapes', 'network=transunet,init=none')
  )
  assert stages[0].settings['network'].encoder['grid'] == (4, 4)
  config = loading.load('ddep_pascal', 'tiny')
  config.denoise.crop.size = (32, 64)
  settings = stage.settings_by_stage(ddep_main.PROGRAM.build_stages(config))
  grids = {
    name: settings[name]['settings']['network']['encoder']['grid']
    for name in ('classify', 'denoise', 'finetune')
  }
  assert grids == {'classify': [4, 4], 'denoise': [2, 4], 'finetune': [4, 4]}


def test_noise_is_set_by_options():
  def noise_fields(options):
    noise = loading.load('ddep_shapes', options).denoise.noise
    return noise.kind, noise.gamma, noise.sigma, noise.gamma_range, noise.target

  none = (0.0, 0.0)
  assert noise_fields('') == ('scaled', 0.7, 0.0, none, 'eps')
  assert noise_fields('noise=simple,target=x') == (
    'simple',
    0.7,
    0.0,
    none,
    'x',
  )
  spaces = [
    loading.load('ddep_shapes', options).denoise.noise.noise_space
    for options in ('', 'noise_space=unit')
  ]
  assert spaces == ['auto', 'unit']
  assert noise_fields('gamma=0.5')[1:4] == (0.5, 0.0, none)
  assert noise_fields('sigma=0.8')[1:4] == (0.0, 0.8, none)
  assert noise_fields('gamma_range=0.9-0.95')[1:4] == (0.0, 0.0, (0.9, 0.95))
  with pytest.raises(ValueError, match='gamma_range=0.9: expected LEAST-LARG'):
    noise_fields('gamma_range=0.9')


@pytest.mark.parametrize('name', SMALL + PAPER)
def test_skips_noise_and_width_are_options(name):
  options = 'source=x,' if name in ('ddep_camvid', 'ddep_folder') else ''
  options += 'skips=coarse,width=2,gamma=0.5'
  config = loading.load(name, options)
  decoder = config.network.decoder
  assert (decoder.skips, decoder.width_multiplier) == ((16, 8), 2)
  assert config.denoise.noise.gamma == 0.5
  net = ddep_main.PROGRAM.build(config)['denoise']
  assert net.reported_metrics() == (f'{config.denoise.val_split}/*',)


@pytest.mark.parametrize('name', SMALL + PAPER)
def test_skips_are_hidden_from_denoising_alone(name):
  source = 'source=x,' if name in ('ddep_camvid', 'ddep_folder') else ''
  config = loading.load(name, f'{source}init=ddep,shown_skips=coarse')
  config.denoise.crop.size = (64, 64)
  stages = ddep_main.PROGRAM.build(config)
  denoise, finetune = stages['denoise'], stages['finetune']
  method = denoise.method(denoise.context, 0)
  assert method.segmenter.decoder.shown_skips == (16, 8)
  tuned = finetune.method(finetune.context, 2).segmenter
  assert tuned.decoder.shown_skips is True


def test_hidden_skips_need_a_unet():
  with pytest.raises(ValueError, match='shown_skips=8-3: expected all, none'):
    loading.load('ddep_shapes', 'shown_skips=8-3')
  with pytest.raises(ValueError, match='shown_skips=none: expected a network'):
    loading.load(
      'ddep_folder', 'source=x,network=efficientnet+dpt,shown_skips=none'
    )


def test_steps_of_the_paper():
  def recipes(name, options=''):
    config = loading.load(name, options)
    return config.denoise.recipe, config.finetune.recipe

  # 100 · 12,743,321 / 512 and 100 · 4,998 / 32, rounded up.
  pretraining, tuning = recipes('ddep_pascal')
  assert (pretraining.num_steps, tuning.num_steps) == (2_488_930, 15_619)
  assert tuning.optimizer.warmup_steps == 156
  assert (tuning.optimizer.learning_rate, pretraining.batch_size) == (1e-4, 512)
  # 0.1 · 4,998 is 499.8; 100 epochs of 500 images are too short.
  assert recipes('ddep_pascal', 'fraction=0.1')[1].num_steps == 4_000
  assert recipes('ddep_pascal', 'fraction=0.1,min_steps=0')[1].num_steps == 1563
  assert recipes('ddep_ade20k', 'epochs=50')[1].num_steps == 31_579
  assert recipes('ddep_cityscapes', 'labels=744,steps=7')[1].num_steps == 7
  # 10,582 images are 20.67 batches.
  voc = recipes('ddep_ade20k', 'pretrain=voc,pretrain_epochs=3')[0]
  assert voc.num_steps == 63
  rates = {
    width: recipes('ddep_ade20k', f'width={width}')[0].optimizer.learning_rate
    for width in (1, 2, 3)
  }
  assert rates == {1: 6e-5, 2: 1e-4, 3: 6e-5}
  l2 = recipes('ddep_ade20k', 'wd_mode=l2,weight_decay=3e-5,lr=1e-5')[1]
  assert l2.optimizer.weight_decay_mode == 'l2'
  assert (l2.optimizer.weight_decay, l2.optimizer.learning_rate) == (3e-5, 1e-5)
  with pytest.raises(ValueError, match='list=x: expected steps'):
    recipes('ddep_ade20k', 'list=x')


def test_weights_of_the_paper():
  ddep = loading.load('ddep_pascal')
  assert ddep.stages == ('denoise', 'finetune', 'evaluate')
  assert ddep.denoise.start.path == 'weights/R50+ViT-B_16.npz'
  supervised = loading.load('ddep_pascal', 'init=supervised,network=unet')
  assert supervised.finetune.start.path == 'weights/BiT-M-R50x1.npz'
  other = loading.load('ddep_pascal', 'encoder=elsewhere.npz')
  assert other.denoise.start.path == 'elsewhere.npz'
  for argument in ('init=dep', 'init=none'):
    config = loading.load('ddep_pascal', argument)
    assert 'weights' not in str(config.denoise.start) + str(
      config.finetune.start
    )


@pytest.mark.parametrize(
  ('unlabeled', 'expected'),
  [
    ('same', ('image_mask_folder', 'images', 'unlabeled', 'unlabeled')),
    ('more', ('image_folder', 'more', 'error', 'train')),
  ],
)
def test_unlabeled_photographs_are_denoised_too(unlabeled, expected):
  config = loading.load('ddep_folder', f'source=x,unlabeled={unlabeled}')
  [also] = config.denoise.also
  assert (
    *(also['data']['name'], also['data']['images']),
    *(also['data'].get('without_mask', 'error'), also['split']),
  ) == expected
  without_mask = 'unlabeled' if unlabeled == 'same' else 'error'
  assert config.denoise.data.without_mask == without_mask
  assert config.finetune.data.without_mask == without_mask
  assert (
    ddep_main.PROGRAM.build(config)['denoise'].options.also[0].split
    == (expected[-1])
  )


def test_unlabeled_photographs_need_denoising():
  with pytest.raises(ValueError, match='unlabeled=more: expected init=ddep or'):
    loading.load('ddep_folder', 'source=x,init=none,unlabeled=more')
  # Images without a mask are left out, so that runs compare.
  config = loading.load('ddep_folder', 'source=x,init=none,unlabeled=same')
  assert config.finetune.data.without_mask == 'unlabeled'


def test_options_of_a_folder_define_how_its_files_are_read():
  options = 'follow_exif,image_depth=12,max_megapixels=400,mask_codes=values'
  config = loading.load('ddep_folder', f'source=x,unlabeled=more,{options}')
  data = ddep_main.PROGRAM.build(config)['finetune'].options.data
  assert (
    *(data.follow_exif, data.image_depth, data.max_megapixels),
    data.mask_codes,
  ) == (True, 12, 400, 'values')
  [also] = config.denoise.also
  assert also['data']['follow_exif'] is True
  assert also['data']['image_depth'] == 12
