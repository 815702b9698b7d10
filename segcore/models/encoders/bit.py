"""BiT: the pre-activation ResNet with weights of ImageNet-21k.

  BiT(skip_norm=True).apply(variables, images).by_name('block3')

Parameters are those of the public `BiT-M-R50x1`, renamed one by one:
`block2/unit3/conv_b/kernel` is `block2/unit03/b/standardized_conv2d/kernel`.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.models.encoders import resnet_gn
from segcore.models.layers import norm as norms

_StdConv = functools.partial(
  resnet_gn.StdConv, epsilon_on='variance', padding='symmetric'
)


class BiTUnit(resnet_gn.Bottleneck):
  """A bottleneck of which each convolution follows a norm and a ReLU.

    h = relu(gn_a(x))
    shortcut = conv_proj(h) if stride or channels change else x
    return shortcut + conv_c(relu(gn_c(conv_b(relu(gn_b(conv_a(h)))))))

  conv_b and conv_proj have the stride.
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D']
  ) -> Float[Array, 'B h_out w_out D_out']:
    """Applies the unit; D_out is 4 times the width."""
    conv = functools.partial(
      _StdConv, epsilon=self.conv_epsilon, dtype=self.dtype
    )

    def norm_relu(
      x: Float[Array, 'B h w D'], name: str
    ) -> Float[Array, 'B h w D']:
      norm = norms.GroupNorm(
        self.num_groups, self.norm_epsilon, dtype=self.dtype, name=name
      )
      return nn.relu(norm(x))

    out_channels = 4 * self.width
    h = norm_relu(x, 'gn_a')
    shortcut = x
    if self.stride != 1 or x.shape[-1] != out_channels:
      shortcut = conv(out_channels, stride=self.stride, name='conv_proj')(h)
    h = conv(self.width, name='conv_a')(h)
    h = norm_relu(h, 'gn_b')
    h = conv(self.width, kernel=3, stride=self.stride, name='conv_b')(h)
    h = norm_relu(h, 'gn_c')
    return shortcut + conv(out_channels, name='conv_c')(h)


class BiT(resnet_gn.MapsEncoder):
  """The pre-activation bottleneck ResNet of BiT, with symmetric padding.

  Returns 'root' (stride 2, the root convolution alone), 'block1' (4), 'block2'
  (8), … The last map is normalized and rectified; all others are sums of
  residual branches without either. Its public weights are trained on images in
  [-1, 1], as here. Source: Kolesnikov et al. 2020; He et al. 2016b.

  Attributes:
    skip_norm: whether the other maps are group-normalized, too, without
      parameters, since the convolutions that read them have their own.
  """

  blocks: Sequence[int] = (3, 4, 6, 3)
  norm_epsilon: float = 1e-5
  conv_epsilon: float = 1e-10
  skip_norm: bool = False

  @nn.compact
  def encode(self, images: Float[Array, 'B H W 3']) -> dict[str, Array]:
    """Computes the maps by name."""
    norm = functools.partial(
      norms.GroupNorm, self.num_groups, self.norm_epsilon, dtype=self.dtype
    )
    x = self.root_conv(_StdConv)(images)
    maps = {'root': x}
    # As the public weights were trained: padded by zeros, which may exceed the
    # values, and not by -inf as `max_pool` pads.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = nn.max_pool(x, (3, 3), strides=(2, 2))
    unit = self.unit_of(BiTUnit)
    maps |= resnet_gn.apply_resnet_blocks(x, self.blocks, self.width, unit)
    last = f'block{len(self.blocks)}'
    x = maps[last]
    if self.skip_norm:
      maps = {name: norm(affine=False)(skip) for name, skip in maps.items()}
    maps[last] = nn.relu(norm(name='gn_last')(x))
    return maps
