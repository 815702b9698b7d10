"""Base of the decoders that cannot be conditioned on a noise level."""

from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models import network_part


class UnconditionalDecoder(network_part.NetworkPart):
  """A decoder with the signature of all decoders that refuses a condition.

  A subclass computes its maps in `decode`.
  """

  def __call__(
    self,
    features: features_lib.Features,
    condition: Float[Array, 'B'] | None = None,
    train: bool = False,
  ) -> features_lib.Features:
    """Decodes the maps of an encoder.

    Args:
      features: encoder's maps, [B, h, w, D] each.
      condition: None.
      train: whether dropout is on, and batch statistics are those of training.

    Raises:
      ValueError: a map is missing (MissingMapError), or a condition is given.
    """
    if condition is not None:
      raise ValueError(
        f'condition: {type(self).__name__} has none, expected None: use the '
        'U-Net for it'
      )
    return self.decode(features, train)

  def decode(
    self, features: features_lib.Features, train: bool
  ) -> features_lib.Features:
    """Computes the decoder's maps from an encoder's, [B, h, w, D] each."""
    raise NotImplementedError
