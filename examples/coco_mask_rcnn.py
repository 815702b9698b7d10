"""Trains torchvision's Mask R-CNN on COCO from an exported encoder.

  python -m segcore.weights runs/moco/represent --torchvision=moco.safetensors
  python coco_mask_rcnn.py moco.safetensors coco runs/moco_coco
  torchrun --nproc_per_node=8 coco_mask_rcnn.py moco.safetensors coco …

The second argument is a folder with `annotations/instances_train2017.json`,
`train2017`, and the same of val2017; the third is for checkpoints and
`results.json`, the average precision of masks and boxes. Run again, it goes on
from the last checkpoint. Needs torch, torchvision and pycocotools, and none of
this code.

The schedule is "1x" of self-supervised papers: 90,000 steps of 16 images, all
layers and batch norms train. Numbers of detectron2, whose heads are others, are
no comparison (docs/export.md).
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

try:
  import numpy as np
  import pycocotools.mask
  import safetensors.torch
  import torch
  import torchvision
  from pycocotools import cocoeval
  from torchvision.transforms import v2
except ImportError as error:
  print(
    f'error: expected the package {error.name}: pip install torch torchvision '
    'pycocotools safetensors',
    file=sys.stderr,
  )
  sys.exit(2)

SPLITS = ('train2017', 'val2017')
MODELS = ('maskrcnn_resnet50_fpn', 'maskrcnn_resnet50_fpn_v2')
# Of SGD, at 16 images; the rate falls tenfold at these shares of the steps.
RATE, MOMENTUM, WEIGHT_DECAY = 0.02, 0.9, 1e-4
MILESTONES = (60_000 / 90_000, 80_000 / 90_000)
WARMUP_STEPS, WARMUP_FACTOR = 1_000, 1e-3
LOG_EVERY, SAVE_EVERY = 20, 2_500


class UserError(Exception):
  """An error that the user can cause; its text is one line."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('weights', type=pathlib.Path, help='.safetensors or .npz')
  parser.add_argument('coco', type=pathlib.Path, help='folder of COCO 2017')
  parser.add_argument('out', type=pathlib.Path, help='folder of the results')
  parser.add_argument(
    '--model', choices=MODELS, default=MODELS[0], help='v2: more convolutions'
  )
  parser.add_argument('--steps', type=int, default=90_000)
  parser.add_argument('--batch', type=int, default=16, help='of all devices')
  parser.add_argument('--workers', type=int, default=4, help='of a device')
  parser.add_argument(
    *('--short_sides',),
    type=int,
    nargs='+',
    default=[*range(640, 801, 32)],
    help='one is drawn for each training image; the last one is for val',
  )
  parser.add_argument('--long_side', type=int, default=1333, help='at most')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Trains and evaluates; returns the exit status."""
  try:
    run(parse_arguments(argv))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def run(arguments: argparse.Namespace) -> None:
  """Trains to the last step, then evaluates on val2017."""
  devices, rank, device = join_processes()
  if arguments.batch % devices:
    raise UserError(
      f'--batch={arguments.batch}: expected a multiple of {devices} devices'
    )
  train, val = (open_split(arguments.coco, split) for split in SPLITS)
  model = build_model(arguments, 1 + max(train.coco.cats)).to(device)
  arguments.out.mkdir(parents=True, exist_ok=True)
  train_model(model, train, arguments, devices, rank, device)
  if rank == 0:
    results = evaluate(model, val, device)
    (arguments.out / 'results.json').write_text(json.dumps(results, indent=2))
    for name, values in results.items():
      print(name, ', '.join(f'{k} {100 * v:.1f}' for k, v in values.items()))


def join_processes() -> tuple[int, int, torch.device]:
  """Joins the processes of torchrun, if there are any.

  Returns:
    The number of processes, the index of this one, and its device.
  """
  cuda = torch.cuda.is_available()
  local = int(os.environ.get('LOCAL_RANK', 0))
  device = torch.device('cuda', local) if cuda else torch.device('cpu')
  if cuda:
    torch.cuda.set_device(device)
  if 'WORLD_SIZE' not in os.environ:
    return 1, 0, device
  torch.distributed.init_process_group('nccl' if cuda else 'gloo')
  return (
    torch.distributed.get_world_size(),
    torch.distributed.get_rank(),
    device,
  )


class Objects(torchvision.datasets.CocoDetection):
  """Images and their objects, without those that are marked as crowds."""

  def _load_target(self, id: int) -> list[dict[str, Any]]:
    return self.coco.loadAnns(self.coco.getAnnIds(id, iscrowd=False))


def open_split(coco: pathlib.Path, split: str) -> Objects:
  """Opens the images of a split; those for training have objects.

  Raises:
    UserError: files are missing.
  """
  annotations = coco / 'annotations' / f'instances_{split}.json'
  for path in (annotations, coco / split):
    if not path.exists():
      raise UserError(f'{path}: expected a file or folder of COCO, got none')
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      dataset = Objects(coco / split, annotations)
    names = [image['file_name'] for image in dataset.coco.imgs.values()]
  except (ValueError, KeyError, TypeError, AssertionError) as error:
    raise UserError(
      f'{annotations}: expected instances in the format of COCO, got {error!r}'
    ) from error
  missing = [name for name in names if not (coco / split / name).is_file()]
  if missing:
    raise UserError(
      f'{coco / split}: expected the {len(names)} images of '
      f'{annotations.name}, got {len(missing)} fewer, as {missing[0]}'
    )
  if split == SPLITS[0]:
    dataset.ids = [i for i in dataset.ids if dataset._load_target(i)]
  if not dataset.ids:
    raise UserError(f'{annotations}: expected images with objects, got none')
  return dataset


def build_model(
  arguments: argparse.Namespace, num_classes: int
) -> torch.nn.Module:
  """Builds Mask R-CNN with the encoder of a file.

  Raises:
    UserError: the file is missing, or not that of a ResNet-50.
  """
  # Weights of torchvision would freeze batch norms and the first stages.
  model = getattr(torchvision.models.detection, arguments.model)(
    weights=None,
    weights_backbone=None,
    num_classes=num_classes,
    min_size=tuple(arguments.short_sides),
    max_size=arguments.long_side,
  )
  state, body = read_weights(arguments.weights), model.backbone.body
  shapes = [
    {name: tuple(x.shape) for name, x in tree.items()}
    for tree in (body.state_dict(), state)
  ]
  differing = sorted(
    {name for name, _ in shapes[0].items() ^ shapes[1].items()}
  )
  if differing:
    expected, given = (each.get(differing[0], 'none') for each in shapes)
    raise UserError(
      f'{arguments.weights}: expected the {len(shapes[0])} arrays of '
      "torchvision's ResNet-50 without fc, got "
      f'{len(differing)} that differ, as {differing[0]}: '
      f'{expected} and not {given}: write the file by python -m '
      'segcore.weights RUN --torchvision=FILE, of a ResNet-50'
    )
  body.load_state_dict(state, strict=True)
  return model


def read_weights(path: pathlib.Path) -> dict[str, torch.Tensor]:
  """Reads arrays by name from a .safetensors or .npz file.

  Raises:
    UserError: there is none, or it has another format.
  """
  try:
    if path.suffix == '.npz':
      with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}
    return safetensors.torch.load_file(path)
  except Exception as error:  # Of each library, and for damaged files.
    raise UserError(
      f'{path}: expected weights as .safetensors or .npz, got {error}'
    ) from error


def build_optimizer(
  model: torch.nn.Module, steps: int, rate: float
) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]:
  """Builds SGD, without weight decay of norms, and the schedule by steps."""
  norms = [
    parameter
    for module in model.modules()
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    for parameter in module.parameters()
  ]
  of_norms = {id(parameter) for parameter in norms}
  rest = [p for p in model.parameters() if id(p) not in of_norms]
  optimizer = torch.optim.SGD(
    [
      {'params': rest, 'weight_decay': WEIGHT_DECAY},
      {'params': norms, 'weight_decay': 0.0},
    ],
    lr=rate,
    momentum=MOMENTUM,
  )
  warmup = min(WARMUP_STEPS, steps // 10)

  def factor(step: int) -> float:
    if step < warmup:
      return WARMUP_FACTOR + (1 - WARMUP_FACTOR) * step / warmup
    return 0.1 ** sum(step >= share * steps for share in MILESTONES)

  return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def draw_batches(
  train: Objects, batch: int, workers: int, devices: int, rank: int, seed: int
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
  """Yields images and targets of this device, flipped at random, for ever."""
  train.transforms = v2.Compose(
    [
      v2.ToImage(),
      v2.RandomHorizontalFlip(0.5),
      v2.ToDtype(torch.float32, scale=True),
      v2.SanitizeBoundingBoxes(),
    ]
  )
  dataset = torchvision.datasets.wrap_dataset_for_transforms_v2(
    train, target_keys=('boxes', 'labels', 'masks')
  )
  if len(dataset) < batch:
    raise UserError(
      f'--batch={batch}: expected at most the {len(dataset)} images with '
      'objects'
    )
  sampler = torch.utils.data.DistributedSampler(
    dataset, devices, rank, seed=seed, drop_last=True
  )
  loader = torch.utils.data.DataLoader(
    dataset,
    batch // devices,
    sampler=sampler,
    num_workers=workers,
    collate_fn=transpose,
    drop_last=True,
  )
  for epoch in itertools.count():
    sampler.set_epoch(epoch)
    yield from loader


def transpose(rows: list[tuple[Any, Any]]) -> tuple[tuple[Any, ...], ...]:
  """Turns pairs of image and target into all images and all targets."""
  return tuple(zip(*rows, strict=True))


def train_model(
  model: torch.nn.Module,
  train: Objects,
  arguments: argparse.Namespace,
  devices: int,
  rank: int,
  device: torch.device,
) -> None:
  """Trains from the last checkpoint, or from step 0, to the last step.

  Raises:
    UserError: the loss is not finite, or there are too few images.
  """
  path, first = arguments.out / 'checkpoint.pth', 0
  replica = model
  if devices > 1:
    if device.type == 'cuda':
      model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    replica = torch.nn.parallel.DistributedDataParallel(model)
  rate = RATE * arguments.batch / 16
  optimizer, schedule = build_optimizer(model, arguments.steps, rate)
  parts = {'model': model, 'optimizer': optimizer, 'schedule': schedule}
  if path.exists():
    saved = torch.load(path, map_location=device, weights_only=True)
    first = saved['step']
    for name, part in parts.items():
      part.load_state_dict(saved[name])
  batches = draw_batches(
    train, arguments.batch, arguments.workers, devices, rank, seed=first
  )
  replica.train()
  for step in range(first, arguments.steps):
    images, targets = next(batches)
    losses = replica(
      [image.to(device) for image in images],
      [{k: v.to(device) for k, v in each.items()} for each in targets],
    )
    loss = sum(losses.values())
    if not torch.isfinite(loss):
      raise UserError(f'step {step}: expected a finite loss, got {loss.item()}')
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    done = step + 1
    if rank == 0 and (done % LOG_EVERY == 0 or done == arguments.steps):
      terms = ', '.join(f'{k} {v.item():.3f}' for k, v in losses.items())
      print(f'step {done}: loss {loss.item():.3f} ({terms})', flush=True)
    if rank == 0 and (done % SAVE_EVERY == 0 or done == arguments.steps):
      state = {name: part.state_dict() for name, part in parts.items()}
      torch.save({'step': done, **state}, path)


@torch.no_grad()
def evaluate(
  model: torch.nn.Module, val: Objects, device: torch.device
) -> dict[str, dict[str, float]]:
  """Computes AP, AP50 and AP75, in [0, 1], of masks and boxes."""
  model.eval()
  detections = []
  for image_id, (image, _) in zip(val.ids, val, strict=True):
    image = v2.functional.to_dtype(
      v2.functional.to_image(image), torch.float32, scale=True
    )
    output = {k: v.cpu() for k, v in model([image.to(device)])[0].items()}
    masks = (output['masks'][:, 0] > 0.5).numpy().astype(np.uint8)
    for box, label, score, mask in zip(
      output['boxes'].tolist(),
      output['labels'].tolist(),
      output['scores'].tolist(),
      masks,
      strict=True,
    ):
      left, top, right, bottom = box
      detections.append(
        {
          'image_id': image_id,
          'category_id': label,
          'bbox': [left, top, right - left, bottom - top],
          'score': score,
          'segmentation': pycocotools.mask.encode(np.asfortranarray(mask)),
        }
      )
  names = ('AP', 'AP50', 'AP75')
  if not detections:
    return {kind: dict.fromkeys(names, 0.0) for kind in ('mask', 'box')}
  results = {}
  for kind, iou in (('mask', 'segm'), ('box', 'bbox')):
    with contextlib.redirect_stdout(io.StringIO()):
      scores = cocoeval.COCOeval(val.coco, val.coco.loadRes(detections), iou)
      scores.evaluate()
      scores.accumulate()
      scores.summarize()
    results[kind] = dict(zip(names, map(float, scores.stats[:3]), strict=True))
  return results


if __name__ == '__main__':
  sys.exit(main())
