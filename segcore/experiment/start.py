"""The source of the parameters before step 0."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epy

from runtime import console, errors, files, options
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from segcore.models import segmenter
  from segcore.weights import load, packages


@dataclasses.dataclass(frozen=True)
class Start:
  """Locates the parameters with which a training starts.

  Attributes:
    path: name of a stage of this experiment, path of the stage folder of
      another run, path of a weight file, or 'package:NAME' for that of an
      installed package (see `packages.PACKAGES`); '' for random values.
    take: names of the subtrees that are read: 'encoder', 'decoder',
      'heads/NAME'.
  """

  path: str = options.location_option(default='')
  take: tuple[str, ...] = ()

  def __post_init__(self):
    if bool(self.path) != bool(self.take):
      raise ValueError(
        f'expected path and take together or neither of them, got '
        f'path={self.path!r} and take={self.take}'
      )

  @property
  def folder(self) -> files.Path:
    """Returns the stage folder of another run, or the weight file."""
    if self._package:
      return packages.locate_package_weights(self._package).path
    return files.parse_file_path(self.path, 'path')

  @property
  def _package(self) -> str:
    """Returns the name of the installed package with the weights, if any."""
    is_package = self.path.startswith(packages.PREFIX)
    return self.path.removeprefix(packages.PREFIX) if is_package else ''

  def needs(self, stages: Sequence[str]) -> tuple[str, ...]:
    """Returns the stage of this experiment that has the parameters, if any.

    Args:
      stages: names of all stages that such an experiment may have.
    """
    return (self.path,) if self.path in stages else ()

  def require(self, stages: Sequence[str], path: str) -> None:
    """Raises MissingInput unless the folder or file exists.

    Args:
      stages: names of all stages that such an experiment may have.
      path: path of the config block, for the message.
    """
    if self.needs(stages) or not self.path or self.folder.exists():
      return
    raise errors.MissingInput(
      f'{path}.path: {self.path} does not exist: expected a stage, the folder '
      'of one, or a weight file'
    )

  def fingerprint(self, stages: Sequence[str]) -> str:
    """Returns a digest of the content, '' for a stage or random values.

    Args:
      stages: as in `needs`.
    """
    if self.needs(stages) or not self.path:
      return ''
    if not self.folder.is_dir():
      return files.file_checksum(self.folder)
    done = self.folder / 'DONE.json'
    if done.exists():  # It lists the checksums of all files.
      return options.options_digest(done.read_text())
    names = sorted(
      str(file.relative_to(self.folder))
      for file in files.walk_files(self.folder)
    )
    return options.options_digest(names)

  def read(
    self,
    workspace: workspace_lib.Workspace,
    net: 'segmenter.Segmenter',
    size: tuple[int, int],
  ) -> dict[str, Any] | None:
    """Reads the parameters; returns None for random values.

    Args:
      workspace: folders of the stage that starts from these parameters.
      net: network that the parameters have to fit.
      size: (height, width) of the images of training, in pixels.

    Raises:
      UserError: the parameters cannot be read, or do not fit the network.
    """
    if not self.path:
      return None
    path = self.locate(workspace)
    return load.load_weight_parts(path, self.take, net, (1, *size, 3))

  def locate(self, workspace: workspace_lib.Workspace) -> files.Path:
    """Returns the stage folder or the weight file, and logs what a package has.

    Args:
      workspace: folders of the stage that starts from these parameters.

    Raises:
      UserError: the package has no weight file.
    """
    if self._package:
      installed = packages.locate_package_weights(self._package)
      console.print_line(f'weights: {installed.description}')
    return workspace.needed.get(self.path, self.folder)
