"""Systems beside U2PL's own: published settings, options, refusals."""

import pytest

from segcore.models.encoders import resnet
from tests.configs import loading
from tests.configs.u2pl_settings import rates
from u2pl import main as u2pl_main
from u2pl.semi import systems

pytestmark = pytest.mark.usefixtures('networks_checked_once')

SYSTEMS = ('cps', 'cps_cutmix', 'unimatch', 'unimatch_v2')
AEL = ('ael', 'u2pl_ael')


# Steps, side of crops, batch, rate of the encoder and of all else: the lists of
# the authors have 9,920 unlabeled images of VOC, and 2,789 of Cityscapes.
@pytest.mark.parametrize(
  ('name', 'argument', 'steps', 'side', 'batch', 'encoder', 'others'),
  [
    ('u2pl_voc', 'cps', 39_680, 512, 8, 2.5e-3, 2.5e-3),
    ('u2pl_voc', 'cps_cutmix', 39_680, 512, 8, 2.5e-3, 2.5e-3),
    ('u2pl_voc', 'pseudoseg', 30_030, 513, 64, 7e-3, 7e-3),
    ('u2pl_cityscapes', 'mt_mse', 44_544, 800, 8, 2.5e-3, 2.5e-3),
    ('u2pl_voc', 'unimatch', 99_200, 321, 8, 1e-3, 1e-2),
    ('u2pl_voc', 'unimatch_v2', 37_200, 518, 16, 5e-6, 2e-4),
    ('u2pl_cityscapes', 'cps', 44_544, 800, 8, 2.5e-3, 2.5e-3),
    ('u2pl_cityscapes', 'unimatch', 83_520, 801, 8, 5e-3, 5e-3),
    ('u2pl_cityscapes', 'unimatch_v2', 62_640, 798, 8, 5e-6, 2e-4),
    ('u2pl_voc', 'ael', 49_600, 513, 16, 1.25e-3, 1.25e-2),
    ('u2pl_cityscapes', 'ael', 34_800, 769, 16, 1.25e-3, 1.25e-2),
    ('u2pl_cityscapes', 'u2pl_ael', 34_800, 769, 16, 1.25e-3, 1.25e-2),
  ],
)
def test_recipes_are_as_published(
  name, argument, steps, side, batch, encoder, others
):
  lists = 'partition=blender,labels=662,' if name == 'u2pl_voc' else ''
  config = loading.load(name, f'{lists}system={argument}')
  recipe = config.train.recipe
  assert (recipe.num_steps, recipe.batch_size) == (steps, batch)
  assert config.train.crop.size == (side, side)
  assert rates(config) == {
    'encoder': encoder,
    'decoder': others,
    'heads': others,
  }
  optimizer = recipe.optimizer
  assert (optimizer.schedule, optimizer.poly_power) == ('poly', 0.9)
  is_adam = argument == 'unimatch_v2'
  assert (optimizer.name, optimizer.weight_decay) == (
    ('adam', 0.01) if is_adam else ('sgd', 1e-4)
  )
  undecayed = [group[0] for group in optimizer.groups if group[2] == 0]
  decays_kernels = argument in ('cps', 'cps_cutmix', 'pseudoseg', 'mt_mse')
  assert undecayed == (['(^|/)(bias|scale)$'] if decays_kernels else [])


def test_epochs_of_cps_follow_the_number_of_labels():
  for labels, epochs in ((186, 128), (372, 137), (744, 160), (1488, 240)):
    train = loading.load('u2pl_cityscapes', f'system=cps,labels={labels}').train
    assert train.recipe.num_steps == epochs * ((2975 - labels) // 8)
  # Of another number those of the nearest one; an option decides.
  train = loading.load('u2pl_cityscapes', 'system=cps,labels=200,epochs=3')
  assert train.train.recipe.num_steps == 3 * (2775 // 8)


def test_losses_are_as_published():
  learn = {
    (name, system): loading.load(f'u2pl_{name}', f'system={system}').train.learn
    for name in ('voc', 'cityscapes')
    for system in SYSTEMS
  }
  weights = {key: block.weight for key, block in learn.items()}
  assert [weights['voc', s] for s in SYSTEMS] == [1.5, 1.0, 1.0, 1.0]
  assert [weights['cityscapes', s] for s in SYSTEMS] == [6.0, 5.0, 1.0, 1.0]
  kinds = {
    block.supervised.kind for key, block in learn.items() if key[0] == 'voc'
  }
  assert kinds == {'ce'}
  hard = [learn['cityscapes', s].supervised for s in SYSTEMS]
  assert {block.kind for block in hard} == {'ohem'}
  assert [b.kept_per_image for b in hard] == [50_000] * 2 + [100_000] * 2
  assert learn['voc', 'unimatch'].confidence == 0.95
  assert learn['cityscapes', 'unimatch'].confidence == 0.0
  assert learn['cityscapes', 'unimatch_v2'].confidence == 0.95
  colors = learn['voc', 'unimatch'].views.color
  assert (colors.jitter, colors.gray, colors.blur) == (0.8, 0.2, 0.5)
  assert (colors.contrast, colors.hue) == (0.5, 0.25)
  teacher = learn['voc', 'unimatch_v2'].teacher
  assert (teacher.decay, teacher.copy_epochs) == (0.996, 0)
  assert teacher.statistics == 'ema'


def test_ael_is_as_published():
  voc, cityscapes, contrastive = (
    loading.load(*arguments).train
    for arguments in (
      ('u2pl_voc', 'system=ael'),
      ('u2pl_cityscapes', 'system=ael'),
      ('u2pl_cityscapes', 'system=u2pl_ael,pd=on,mp=on,sce=on'),
    )
  )
  for block in (voc, cityscapes, contrastive):
    assert (block.learn.supervised.kind, block.learn.supervised.auxiliary) == (
      ('ohem', 0.4)
    )
    assert block.crop.balanced and block.crop.fill == 'paper'
  built = u2pl_main.PROGRAM.build(loading.load('u2pl_voc', 'system=ael'))
  learn = built['train'].options.learn
  assert (learn.confidence, learn.paste.num_draws) == (0.7, 1)
  assert (learn.boxes.component, learn.boxes.image) == (0.03, 0.03)
  assert learn.paste.excluded == (0,)
  built = u2pl_main.PROGRAM.build(
    loading.load('u2pl_cityscapes', 'system=u2pl_ael,pd=on,mp=on,sce=on')
  )
  learn = built['train'].options.learn
  assert (learn.confidence, learn.paste.num_draws) == (0.0, 3)
  assert (learn.boxes.component, learn.boxes.image) == (0.005, 0.01)
  assert learn.paste.excluded == (0, 1, 2, 8, 10)
  assert (learn.denoise, learn.reverse) == ('raw', 0.1)
  assert learn.prototype_momentum == 0.999
  assert (learn.contrast.weight, learn.contrast_start) == (0.1, 20)
  teacher = learn.teacher
  assert (teacher.decay, teacher.copy_epochs) == (0.99, 0)
  assert teacher.statistics == 'own'


def test_inference_is_as_published():
  for system, window, stride, average in (
    ('cps', 800, 534, 'logits'),
    ('unimatch', 801, 534, 'probs'),
    ('unimatch_v2', 798, 532, 'probs'),
    ('ael', 769, 513, 'probs'),
    ('u2pl_ael', 769, 513, 'logits'),
  ):
    protocol = loading.load('u2pl_cityscapes', f'system={system}').evaluate
    assert protocol.protocol.window == (window, window)
    assert protocol.protocol.stride == (stride, stride)
    assert protocol.protocol.average == average
  whole = loading.load('u2pl_voc', 'system=unimatch').evaluate
  assert (whole.protocol.tiling, whole.which) == ('whole', 'best')


@pytest.mark.parametrize(
  ('name', 'system'),
  [
    *((name, s) for name in ('u2pl_voc', 'u2pl_shapes') for s in SYSTEMS + AEL),
    ('u2pl_voc', 'cct,batch=8'),  # of 8 devices
    ('u2pl_shapes', 'cct'),
    ('u2pl_voc', 'gct,implementation=cps'),
    ('u2pl_shapes', 'gct'),
    ('u2pl_shapes', 'mt_mse'),
    ('u2pl_shapes', 'cps_cutmix,pair=self'),
    ('u2pl_voc', 'pseudoseg'),
    ('u2pl_shapes', 'pseudoseg'),
    ('u2pl_voc', 'pc2seg'),
    ('u2pl_shapes', 'pc2seg'),
  ],
)
def test_each_system_builds(name, system):
  for argument in ('', ',tiny'):
    config = loading.load(name, f'system={system}{argument}')
    stage = u2pl_main.PROGRAM.build(config)['train']
    method = stage.method(stage.context, 5)
    assert type(method) is systems.METHODS[type(stage.options.learn)]
    stage.check()


def test_scales_are_those_that_the_authors_list():
  for argument, scales in (
    ('system=cps', (0.5, 0.75, 1.0, 1.5, 1.75, 2.0)),
    ('system=cps,scales=uniform', (0.5, 2.0)),
    ('system=unimatch', (0.5, 2.0)),
    ('system=cct,scales=uniform', (0.5, 2.0)),
    ('system=cct,implementation=cps', (0.5, 0.75, 1.0, 1.5, 1.75, 2.0)),
  ):
    assert loading.load('u2pl_voc', argument).train.crop.scales == scales
  crop = loading.load('u2pl_voc', 'system=cct').train.crop
  assert (crop.name, crop.long_side) == ('long_side', (200, 800))


def test_unlabeled_images_of_pseudoseg_are_all_images():
  for system, steps in (('pseudoseg', 165), ('cps', (10_582 - 92) // 8)):
    train = loading.load('u2pl_voc', f'system={system}').train
    assert train.learn.get('includes_labeled', False) == (system == 'pseudoseg')
    assert train.steps_per_epoch == steps


def test_gct_starts_from_weights_of_coco():
  config = loading.load('u2pl_voc', 'system=gct')
  assert config.network.encoder.stem == 'plain'
  assert config.train.start.path == 'weights/resnet101_coco.pth'
  # That of the authors of CPS from ImageNet's.
  config = loading.load('u2pl_voc', 'system=gct,implementation=cps')
  assert config.train.start.path == 'weights/resnet101_deep.safetensors'


def test_options_change_what_a_system_takes():
  learn = loading.load(
    'u2pl_shapes', 'system=unimatch,confidence=0.8,gray=0.5'
  ).train.learn
  colors = learn.views.color
  assert learn.confidence == 0.8
  assert (colors.gray, colors.jitter, colors.blur) == (0.5, 0.8, 0.5)
  learn = loading.load('u2pl_shapes', 'system=unimatch_v2,ema=0.9').train.learn
  assert (learn.teacher.decay, learn.teacher.statistics) == (0.9, 'ema')


def test_ranks_of_negatives_need_contrast():
  with pytest.raises(
    ValueError, match='low_rank=2: system=pseudoseg has no contr'
  ):
    loading.load('u2pl_folder', 'source=x,low_rank=2')
  block = loading.load('u2pl_folder', 'source=x,system=u2pl,low_rank=2').train
  assert block.learn.contrast.low_rank == 2


def test_a_plain_vit_is_refused_where_none_is_published():
  with pytest.raises(ValueError, match='network=vit_b14: expected it with'):
    loading.load('u2pl_voc', 'system=mt,network=vit_b14')


def test_the_network_of_unimatch_is_light():
  network = loading.load('u2pl_voc', 'system=unimatch').network
  assert network.encoder.output_stride == 16
  decoder = network.decoder
  assert (decoder.dilations, decoder.low_width) == ((6, 12, 18), 48)
  assert (decoder.fuse_kernel, decoder.dropout_rate) == (1, 0.0)


def test_the_dilations_of_the_last_block_are_as_published():
  for system, expected in (('cps', [2, 4, 8]), ('unimatch', [1, 2, 2])):
    fields = {**loading.load('u2pl_voc', f'system={system}').network.encoder}
    encoder = resnet.DilatedResNet(
      **{name: value for name, value in fields.items() if name != 'name'}
    )
    _, dilations = encoder._plan()[-1]
    # Of the only 3x3 of each bottleneck.
    assert [first for first, _ in dilations] == expected


def test_settings_of_cct_are_those_of_its_authors_or_of_cps():
  own = loading.load('u2pl_voc', 'system=cct,labels=662,partition=blender')
  recipe, learn = own.train.recipe, own.train.learn
  assert (recipe.batch_size, own.train.crop.size) == (10, (320, 320))
  assert rates(own) == {'encoder': 1e-3, 'decoder': 1e-2, 'heads': 1e-2}
  assert (own.network.decoder.name, own.train.heads.kind) == ('psp', 'shuffle')
  assert (learn.annealing, learn.ramp_epochs, learn.consistency) == (0, 8, 30)
  names = 'dropout', 'feature_drop', 'noise', 'cutout', 'context', 'vat'
  assert [learn.decoders[name] for name in names] == [6, 6, 6, 6, 2, 2]
  again = loading.load(
    'u2pl_voc',
    'system=cct,implementation=cps,labels=662,partition=blender',
  )
  learn = again.train.learn
  assert again.train.recipe.num_steps == 39_680
  assert (learn.annealing, learn.ramp_epochs) == (0.99, 0)
  assert [learn.decoders[name] for name in names] == [2, 2, 2, 2, 2, 0]
  assert again.network.decoder.num_refinements == 2
  assert (again.train.heads.kind, again.train.heads.kernel) == ('conv', 1)
  listed = loading.load('u2pl_voc', 'system=cps,scales=listed').train.crop
  assert listed.scales == again.train.crop.scales
  # On Cityscapes the authors of CPS alone have results.
  city = loading.load('u2pl_cityscapes', 'system=cct')
  assert city.train.learn.annealing == 0.99
  assert city.evaluate.protocol.window == (800, 800)


def test_settings_of_gct_are_those_of_its_authors_or_of_cps():
  own = loading.load('u2pl_voc', 'system=gct,labels=662,partition=blender')
  recipe, learn = own.train.recipe, own.train.learn
  assert (recipe.batch_size, own.train.crop.size) == (2, (513, 513))
  assert recipe.num_steps == 45 * (10_582 - 662) // 2
  assert recipe.optimizer.weight_decay == 5e-4
  assert (own.network.decoder.name, learn.joint) == ('psp', True)
  assert (learn.ramp_epochs, learn.detector.schedule) == (5, 'poly')
  again = loading.load(
    'u2pl_voc',
    'system=gct,implementation=cps,labels=662,partition=blender',
  )
  learn = again.train.learn
  assert again.train.recipe.num_steps == 39_680
  assert (learn.joint, learn.ramp_epochs) == (False, 3)
  assert learn.detector.schedule == 'constant' and learn.detector.after_update
  city = loading.load('u2pl_cityscapes', 'system=gct').train.learn
  assert city.detector.learning_rate == 8e-4
  assert city.supervised.kind == 'ohem'


def test_pseudoseg_and_pc2seg_have_30_000_steps_of_64_images():
  for system in ('pseudoseg', 'pc2seg'):
    for labels in (92, 183, 366, 732, 1464):
      config = loading.load('u2pl_voc', f'system={system},labels={labels}')
      recipe = config.train.recipe
      assert recipe.batch_size == 64
      assert abs(recipe.num_steps - 30_000) < 60
    assert rates(config)['heads'] == 7e-3
    assert config.evaluate.protocol.padding_mode == 'mean'
  assert config.train.heads.representation == 128
  with pytest.raises(ValueError, match='confidence=0.5: expected one of the'):
    loading.load('u2pl_shapes', 'system=pseudoseg,confidence=0.5')
