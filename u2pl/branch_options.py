"""Options of methods that may have a contrastive branch."""

from typing import Literal

from runtime.option_ranges import CheckedOptions
from u2pl import contrast


class BranchOptions(CheckedOptions):
  """Options of a method that may have a branch.

  Attributes:
    contrast: contrastive loss between pixels; None for none.
    prototype_momentum: momentum m of Eq. 18, in [0, 1).
    needs_representations: whether the loss or denoising needs the branch.
  """

  contrast: contrast.PairOptions | None
  prototype_momentum: float
  needs_representations: bool

  @property
  def anchor_entropy(self) -> Literal['paper', 'released']:
    """Returns the rule of reliable anchors; without contrast it has no use."""
    return self.contrast.anchor_entropy if self.contrast else 'paper'

  def check_branch(self, required: str) -> None:
    """Checks the momentum, and that contrast has the loss that it requires.

    Args:
      required: name of the field of that loss.

    Raises:
      ValueError: a field is out of range, or that loss is missing.
    """
    if self.contrast and not getattr(self, required):
      raise ValueError(
        f'contrast: expected None without {required}, got options: set both or '
        'neither'
      )
    if not 0 <= self.prototype_momentum < 1:
      raise ValueError(
        'prototype_momentum: expected 0 <= momentum < 1, got '
        f'{self.prototype_momentum}'
      )
