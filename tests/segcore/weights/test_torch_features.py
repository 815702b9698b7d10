"""Features of an encoder here and, exported, in torchvision, if it is there."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from segcore.models import segmenter
from segcore.models.encoders import resnet
from segcore.weights import export_torch, load

torch = pytest.importorskip('torch')
torchvision = pytest.importorskip('torchvision')

NETWORKS = {
  'resnet18': {'blocks': (2, 2, 2, 2), 'unit': 'basic'},
  'resnet50': {'blocks': (3, 4, 6, 3)},
}
LAYERS = ('layer1', 'layer2', 'layer3', 'layer4')
SIZES = ((64, 64), (97, 129))


def draw_images(size):
  rng = np.random.default_rng(sum(size))
  return rng.integers(0, 256, (2, *size, 3)).astype(np.float32)


def to_torch(images):
  """Normalizes images as the exported file says."""
  mean, std = (
    np.fromstring(export_torch.INPUT[name], np.float32, sep=',')
    for name in ('mean', 'std')
  )
  x = (images / 255 - mean) / std
  return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))


@pytest.fixture(scope='module', params=NETWORKS)
def pair(request, tmp_path_factory):
  """Returns the network here, its variables, and that of torchvision.

  Both read the file that was exported from drawn weights.
  """
  torch.manual_seed(0)
  build = getattr(torchvision.models, request.param)
  drawn = build(weights=None)
  for module in drawn.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      torch.nn.init.normal_(module.weight, 0.5, 0.1)
      torch.nn.init.normal_(module.bias, 0.0, 0.3)
      torch.nn.init.normal_(module.running_mean, 0.0, 0.3)
      torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
  folder = tmp_path_factory.mktemp(request.param)
  np.savez(
    folder / 'drawn.npz',
    **{k: v.numpy() for k, v in drawn.state_dict().items()},
  )
  path = folder / 'encoder.safetensors'
  export_torch.write_encoder(folder / 'drawn.npz', path, 'torchvision')

  theirs = build(weights=None)
  theirs.fc = torch.nn.Identity()
  state = {
    k: torch.from_numpy(v) for k, v in safetensors.numpy.load_file(path).items()
  }
  theirs.load_state_dict(state, strict=True)
  encoder = resnet.DilatedResNet(
    stem='plain', output_stride=32, zero_init=False, **NETWORKS[request.param]
  )
  ours = segmenter.Segmenter(encoder, None, {})
  variables = load.load_weight_parts(path, ('encoder',), ours, (1, 64, 64, 3))
  return ours, variables, theirs


def features_of(ours, variables, images):
  function = jax.jit(lambda x: ours.apply(variables, x, method='features'))
  maps = function(images / 127.5 - 1)['encoder'].maps[1:]
  return [np.asarray(each.array).transpose(0, 3, 1, 2) for each in maps]


def torch_features_of(theirs, x):
  extract = torchvision.models._utils.IntermediateLayerGetter(
    theirs.eval(), {name: name for name in LAYERS}
  )
  with torch.no_grad():
    return [each.numpy() for each in extract(x).values()]


def relative_difference(actual, expected):
  return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize('size', SIZES)
def test_features_are_those_of_torchvision(pair, size):
  ours, variables, theirs = pair
  images = draw_images(size)
  actual = features_of(ours, variables, images)
  expected = torch_features_of(theirs, to_torch(images))
  for one, other in zip(actual, expected, strict=True):
    assert relative_difference(one, other) <= 1e-5
  # Another order of colors, or of columns, is seen.
  for changed in (images[..., ::-1], images[:, :, ::-1]):
    other = torch_features_of(theirs, to_torch(changed.copy()))[-1]
    assert relative_difference(actual[-1], other) > 1e-3


def test_running_statistics_are_those_of_torchvision(pair):
  ours, variables, theirs = pair
  images = draw_images((97, 129))
  before = {k: v.clone().numpy() for k, v in theirs.state_dict().items()}
  with torch.no_grad():
    theirs.train()(to_torch(images))
  after = {k: v.clone().numpy() for k, v in theirs.state_dict().items()}
  theirs.load_state_dict({k: torch.from_numpy(v) for k, v in before.items()})

  @jax.jit
  def train_pass(x):
    _, changed = ours.apply(
      variables, x, train=True, method='features', mutable=['batch_stats']
    )
    return changed

  changed = train_pass(images / 127.5 - 1)
  state = export_torch.make_torchvision_state_dict(
    {'params': variables['params'], **changed}
  )
  # Cells of the norms: each count is that of its stage.
  sides = {'bn1': (49, 65), 'layer1': (25, 33), 'layer2': (13, 17)}
  sides |= {'layer3': (7, 9), 'layer4': (4, 5)}
  for stage, (height, width) in sides.items():
    # The last norm of a stage has its resolution.
    mean = max(
      n
      for n in state
      if n.startswith(stage)
      and n.endswith('running_mean')
      and 'downsample' not in n
    )
    np.testing.assert_allclose(state[mean], after[mean], rtol=1e-3, atol=1e-4)
    var, n = mean.replace('mean', 'var'), 2 * height * width
    ours_share, theirs_share = (
      each[var] - 0.9 * before[var] for each in (state, after)
    )
    np.testing.assert_allclose(
      ours_share * n / (n - 1), theirs_share, rtol=1e-3, atol=1e-4
    )
