"""The one shape of network: an encoder, a decoder and named heads.

segmenter = Segmenter(
  HybridViT(), UNetDecoder(), {'noise': ConvHead(3), 'logits': ConvHead(59)}
)
segmenter.apply(variables, images, heads=('logits',))['logits']
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.core
import flax.linen as nn
from jaxtyping import Array, Float

from segcore.models import features as features_lib

SUBMODULES = ('encoder', 'decoder', 'heads')


def _parts(train: bool | tuple[str, ...]) -> tuple[str, ...]:
  """The parts in training mode."""
  if isinstance(train, bool):
    return SUBMODULES if train else ()
  for part in train:
    if part not in SUBMODULES:
      raise ValueError(f'train={part!r} is none of {", ".join(SUBMODULES)}')
  return train


class Heads(nn.Module):
  """Modules by name, with their parameters under just these names."""

  modules: Mapping[str, nn.Module]

  preserve_adopted_names = True  # Else flax would call them 'modules_NAME'.

  def __post_init__(self) -> None:
    if self.parent is None:
      self.modules = flax.core.FrozenDict(
        {
          name: head.clone(parent=None, name=name)
          for name, head in self.modules.items()
        }
      )
    super().__post_init__()

  def __call__(
    self, maps: Mapping[str, Array], train: bool = False
  ) -> dict[str, Any]:
    """Applies the heads named by the keys to the maps given for them."""
    return {name: self.modules[name](x, train) for name, x in maps.items()}

  def call_method(self, name: str, method: str, *arguments: Any) -> Any:
    """Calls a method of one head, for training that needs its parts."""
    return getattr(self.modules[name], method)(*arguments)


class Segmenter(nn.Module):
  """Encoder, decoder and heads; parameters stand under just these names.

  Any parts fit together that keep to this: the encoder maps (images, train) to
  `Features`, the decoder (features, condition, train) to `Features`; a head
  says in `reads`, `stride` and `stage` which map it wants and maps (map, train)
  to an array. Batch statistics and dropout streams are flax's own.

  Attributes:
    encoder: from images in [-1, 1].
    decoder: None where all heads read the encoder.
    heads: by name; the names are the caller's ('logits', 'noise', 'rep').
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
    """Whether the decoder reads a noise level of each image."""
    return getattr(self.decoder, 'conditional', False)

  def __call__(
    self,
    images: Float[Array, 'B H W 3'],
    *,
    heads: Sequence[str] | None = None,
    train: bool | tuple[str, ...] = False,
    condition: Float[Array, 'B'] | None = None,
  ) -> dict[str, Array]:
    """The results of the heads asked for; what none of them reads is not run.

    Args:
      images: in [-1, 1].
      heads: their names; all of them by default, as for `init`.
      train: the parts whose dropout and batch statistics are those of
        training; True for all of them.
      condition: the noise level of each image, for a conditional decoder.
    """
    names = tuple(self.heads.modules) if heads is None else tuple(heads)
    for name in names:
      self._check(name)
    decode = any(self.heads.modules[name].reads == 'decoder' for name in names)
    found = self.features(
      images, decode=decode, train=train, condition=condition
    )
    maps = {name: self._map(name, found) for name in names}
    return self.heads(maps, 'heads' in _parts(train))

  def features(
    self,
    images: Float[Array, 'B H W 3'],
    *,
    decode: bool = True,
    train: bool | tuple[str, ...] = False,
    condition: Float[Array, 'B'] | None = None,
  ) -> dict[str, features_lib.Features]:
    """The maps themselves: of the 'encoder' and, if it is run, the 'decoder'.

    Used as `segmenter.apply(variables, images, method='features')`.
    """
    train = _parts(train)
    found = {'encoder': self.encoder(images, 'encoder' in train)}
    if decode and self.decoder is not None:
      found['decoder'] = self.decoder(
        found['encoder'], condition, 'decoder' in train
      )
    elif condition is not None:
      raise ValueError('a condition was given, but no decoder runs to read it')
    return found

  def _check(self, name: str) -> None:
    if name not in self.heads.modules:
      raise ValueError(
        f'no head named {name!r}; there are {", ".join(self.heads.modules)}'
      )
    reads = self.heads.modules[name].reads
    if reads not in ('encoder', 'decoder'):
      raise ValueError(
        f'head {name!r} reads {reads!r}, which is neither encoder nor decoder'
      )
    if reads == 'decoder' and self.decoder is None:
      raise ValueError(f'head {name!r} reads the decoder, but there is none')

  def _map(
    self, name: str, found: Mapping[str, features_lib.Features]
  ) -> Float[Array, 'B h w D']:
    head = self.heads.modules[name]
    maps = found[head.reads]
    try:
      if head.map_name:
        return maps.by_name(head.map_name).array
      if head.stride is None:
        return maps.deepest.array
      return maps.at_stride(head.stride).array
    except ValueError as error:
      raise ValueError(f'head {name!r} of the {head.reads}: {error}') from None
