"""Options of the protocols of the encoder and of submissions."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SubmissionInfo:
  """Content of method.txt, without which a submission is rejected.

  Attributes:
    name: method name.
    data: training data.
    scheme: training scheme, such as 'SSL' for self-supervised.
    networks: architectures.
    link: URL of the paper or project.
    description: method description.
  """

  name: str = 'PASS'
  data: str = ''
  scheme: str = 'SSL'
  networks: str = ''
  link: str = ''
  description: str = ''


@dataclasses.dataclass(frozen=True)
class DistanceOptions:
  """Options of distance matching.

  Attributes:
    bank: split with masks whose regions are the neighbors.
    splits: names of the splits to segment; those with masks are scored.
    neighbors: k of the kNN vote.
    temperature: temperature of the neighbors' weights, in units of cosine
      similarity.
    short_side: short side of the resized images, in pixels.
    batch_size: global number of images of a batch; does not change the result.
    rematch: whether to score a second time after Hungarian matching of
      predicted with true classes, as the released script does.
    accuracy_from: split with one tag per image, whose images are the neighbors
      of a kNN classification of whole images; '' for none.
    crop: side of the center crop for that classification, in pixels.
    about: text of a submission's method.txt.
  """

  bank: str = 'train_semi'
  splits: tuple[str, ...] = ('val',)
  neighbors: int = 10
  temperature: float = 0.07
  short_side: int = 256
  batch_size: int = 8
  rematch: bool = True
  accuracy_from: str = ''
  crop: int = 224
  about: SubmissionInfo = SubmissionInfo()

  def __post_init__(self):
    if self.neighbors < 1:
      raise ValueError(f'neighbors: expected 1 or more, got {self.neighbors}')
    if not self.temperature > 0:
      raise ValueError(
        f'temperature: expected more than 0, got {self.temperature}'
      )

  def describe(self) -> str:
    """Describes the protocol in words for results.json."""
    text = (
      f'{self.neighbors} nearest regions of {self.bank}, temperature '
      f'{self.temperature}, short side {self.short_side}; without matching'
    )
    if self.rematch:
      text += ', and as SPLIT_rematched matched on the split itself'
    return text
