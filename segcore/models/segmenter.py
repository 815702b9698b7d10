"""The segmentation network: an encoder, a decoder and named heads.

segmenter = Segmenter(
  HybridViT(), UNetDecoder(), {'noise': ConvHead(3), 'logits': ConvHead(59)}
)
segmenter.apply(variables, images, heads=('logits',))['logits']
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.core
import flax.linen as nn
from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models.layers import resize

SUBMODULES = ('encoder', 'decoder', 'heads')
# Changes the encoder's maps; it may also add rows.
Perturbation = Callable[[features_lib.Features], features_lib.Features]


def _training_submodules(train: bool | tuple[str, ...]) -> tuple[str, ...]:
  """Returns the names of the submodules in training mode."""
  if isinstance(train, bool):
    return SUBMODULES if train else ()
  for name in train:
    if name not in SUBMODULES:
      raise ValueError(
        f'train: expected names among {", ".join(SUBMODULES)}, got {name!r}'
      )
  return train


class Heads(nn.Module):
  """Head modules by name, whose parameters have the same names."""

  modules: Mapping[str, nn.Module]

  preserve_adopted_names = True  # Else flax calls them 'modules_NAME'.

  def __post_init__(self) -> None:
    if self.parent is None:
      # Frozen, since flax hashes modules, as static arguments of jit.
      self.modules = flax.core.FrozenDict(
        {
          name: head.clone(parent=None, name=name)
          for name, head in self.modules.items()
        }
      )
    super().__post_init__()

  def __call__(
    self,
    maps: Mapping[str, Any],
    train: bool = False,
    size: resize.Size | None = None,
  ) -> dict[str, Any]:
    """Applies the heads named by the keys to the maps given for them.

    Args:
      maps: map, or attention, that each head reads, by the name of the head.
      train: whether heads run in training mode.
      size: height and width of the images, for heads that predict pixels.
    """
    outputs = {}
    for name, x in maps.items():
      head = self.modules[name]
      needs_size = getattr(head, 'predicts_pixels', False)
      outputs[name] = head(x, train, size) if needs_size else head(x, train)
    return outputs

  def call_method(self, name: str, method: str, *arguments: Any) -> Any:
    """Calls a method of one head, for trainings that use its layers."""
    return getattr(self.modules[name], method)(*arguments)


class Segmenter(nn.Module):
  """An encoder, a decoder and heads; parameters are under these three names.

  Any modules fit together that have these signatures: the encoder maps
  (images, train) to `Features`, the decoder (features, condition, train) to
  `Features`, and a head maps (map, train) to an array; its fields `reads`,
  `stride` and `map_name` select the map (or the encoder's attention), and
  `nearest`, where it has it, allows
  for another stride; one with `predicts_pixels` is called with the size of the
  images, too, and one with `num_maps` with a tuple of the last maps. Batch
  statistics and dropout work as everywhere in flax.

  Attributes:
    encoder: module that encodes images in [-1, 1].
    decoder: module that decodes the encoder's maps; None where all heads read
      the encoder.
    heads: head modules by names of the caller's choice ('logits', 'noise',
      'rep').
  """

  encoder: nn.Module
  decoder: nn.Module | None
  heads: Mapping[str, nn.Module] | Heads

  def __post_init__(self) -> None:
    if not isinstance(self.heads, Heads):
      self.heads = Heads(self.heads, parent=None)
    super().__post_init__()

  @property
  def conditional(self) -> bool:
    """Returns whether the decoder is conditioned on a noise level."""
    return getattr(self.decoder, 'conditional', False)

  @property
  def size_multiple(self) -> int:
    """Returns the number of pixels of which image sides must be multiples."""
    multiple = self.encoder.size_multiple
    if getattr(self.decoder, 'doubles_maps', False):
      # Other encoders have the stride of their last map as size multiple.
      stride = getattr(self.encoder, 'output_stride', 1)
      multiple = math.lcm(multiple, stride)
    return multiple

  @property
  def frozen_parameters(self) -> tuple[str, ...]:
    """Returns the paths of the modules that the encoder freezes."""
    names = getattr(self.encoder, 'frozen_parameters', ())
    # The empty name is the encoder itself.
    return tuple(f'encoder/{name}'.rstrip('/') for name in names)

  def __call__(
    self,
    images: Float[Array, 'B H W 3'],
    *,
    heads: Sequence[str] | None = None,
    train: bool | tuple[str, ...] = False,
    condition: Float[Array, 'B'] | None = None,
    perturb: Perturbation | None = None,
  ) -> dict[str, Any]:
    """Computes the outputs of heads; the decoder runs only if one reads it.

    Args:
      images: images in [-1, 1].
      heads: names of the heads to compute; None for all, as in `init`.
      train: the submodules whose dropout and batch statistics are those of
        training; True for all three.
      condition: the noise level of each image, for a conditional decoder.
      perturb: function applied to the encoder's maps before the decoder; heads
        of the encoder read the maps without it.
    """
    names = tuple(self.heads.modules) if heads is None else tuple(heads)
    for name in names:
      self._check_head(name)
    decode = any(self.heads.modules[name].reads == 'decoder' for name in names)
    features = self.features(
      images, decode=decode, train=train, condition=condition, perturb=perturb
    )
    return self.apply_heads(names, features, images.shape[1:3], train)

  def features(
    self,
    images: Float[Array, 'B H W 3'],
    *,
    decode: bool = True,
    train: bool | tuple[str, ...] = False,
    condition: Float[Array, 'B'] | None = None,
    perturb: Perturbation | None = None,
  ) -> dict[str, features_lib.Features]:
    """Computes the maps of 'encoder' and, if it runs, 'decoder'.

    Called by `segmenter.apply(variables, images, method='features')`.

    Args:
      images: images in [-1, 1].
      decode: whether the decoder runs, if there is one.
      train: whether the network runs in training mode, as in `__call__`.
      condition: noise level of each image, as in `__call__`.
      perturb: function applied to the maps that the decoder reads.
    """
    train = _training_submodules(train)
    features = {'encoder': self.encoder(images, 'encoder' in train)}
    if decode and self.decoder is not None:
      maps = features['encoder']
      features['decoder'] = self.decoder(
        perturb(maps) if perturb else maps, condition, 'decoder' in train
      )
    elif condition is not None:
      raise ValueError('condition: expected None where no decoder runs')
    return features

  def apply_heads(
    self,
    names: Sequence[str],
    features: Mapping[str, features_lib.Features],
    size: resize.Size,
    train: bool | tuple[str, ...] = False,
  ) -> dict[str, Any]:
    """Computes the outputs of heads from the maps of encoder and decoder.

    Args:
      names: names of the heads.
      features: maps as `features` returns them.
      size: height and width of the images.
      train: whether the heads run in training mode, as in `__call__`.
    """
    maps = {
      name: self._attention(name, features['encoder'])
      if self.heads.modules[name].reads == 'attention'
      else self.head_map(name, features)
      for name in names
    }
    return self.heads(maps, 'heads' in _training_submodules(train), size)

  def deepest_map(
    self, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w D']:
    """Computes the deepest map of the encoder, in evaluation mode.

    Called by `segmenter.apply(variables, images, method='deepest_map')`.

    Args:
      images: images in [-1, 1].
    """
    return self.features(images, decode=False)['encoder'].deepest.array

  def head_map(
    self, name: str, features: Mapping[str, features_lib.Features]
  ) -> Float[Array, 'B h w D'] | tuple[Float[Array, 'B ...'], ...]:
    """Returns the map that a head reads, or the last `num_maps`, deepest first.

    Args:
      name: name of the head.
      features: maps as `features` returns them.

    Raises:
      MissingMapError: there is no such map.
    """
    head = self.heads.modules[name]
    maps = features[head.reads]
    if num_maps := getattr(head, 'num_maps', 0):
      return tuple(each.array for each in maps.maps[::-1][:num_maps])
    try:
      if head.map_name is not None:
        return maps.by_name(head.map_name).array
      if head.stride is None:
        return maps.deepest.array
      if getattr(head, 'nearest', False):
        return maps.near_stride(head.stride).array
      return maps.at_stride(head.stride).array
    except features_lib.MissingMapError as error:
      advice = ''
      if head.reads == 'decoder' and head.map_name is None:
        advice = (
          f'a decoder unet ends at stride {head.stride} with output_stride='
          f'{head.stride}'
        )
      raise features_lib.MissingMapError(
        f'head {name!r} of the {head.reads}: {error}', advice
      ) from None

  def _attention(
    self, name: str, maps: features_lib.Features
  ) -> tuple[features_lib.Attention, ...]:
    """Returns queries and keys of the encoder's last stage, for a head."""
    if not maps.attention:
      raise features_lib.MissingMapError(
        f'head {name!r}: expected an encoder with attention between the cells '
        'of its last map, got one without',
        'choose an encoder mit',
      )
    return maps.attention

  def _check_head(self, name: str) -> None:
    if name not in self.heads.modules:
      raise ValueError(
        f'no head named {name!r}; there are {", ".join(self.heads.modules)}'
      )
    reads = self.heads.modules[name].reads
    if reads not in ('encoder', 'decoder', 'attention'):
      raise ValueError(
        f'head {name!r}: expected reads to be encoder, decoder or attention, '
        f'got {reads!r}'
      )
    if reads == 'decoder' and self.decoder is None:
      raise ValueError(f'head {name!r} reads the decoder, but there is none')
