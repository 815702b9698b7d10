"""The contrastive term of U2PL in torch, as the specification reads (§3.4)."""

import torch
from u2pl_loss_inputs import Inputs

from u2pl import contrast


def loss_and_gradient(
  inputs: Inputs, bank: list[torch.Tensor], options: contrast.ContrastOptions
) -> tuple[torch.Tensor, torch.Tensor]:
  """Computes the term and its gradient to the student's representation.

  Args:
    inputs: tensors.
    bank: a tensor [K, D] for each class; changed in place.
    options: of the loss.
  """
  dim = inputs.teacher.shape[-1]
  num_classes = inputs.scores.shape[-1]
  student = inputs.student.detach().requires_grad_()
  teacher_rows = inputs.teacher.reshape(-1, dim)
  anchors, positives = _update(inputs, teacher_rows, bank, options)
  total, num_present = torch.zeros(()), 0
  for c in range(num_classes):
    if not len(positives[c]):
      continue
    num_present += 1
    if not len(anchors[c]) or not len(bank[c]):
      continue
    total = total + _info_nce(
      student.reshape(-1, dim)[_draw(anchors[c], options.num_anchors)],
      teacher_rows[positives[c]].mean(0),
      bank[c][
        torch.randint(
          len(bank[c]), (options.num_anchors * options.num_negatives,)
        )
      ],
      options,
    )
  loss = total / num_present
  loss.backward()
  return loss.detach(), student.grad


def _update(
  inputs: Inputs,
  teacher_rows: torch.Tensor,
  bank: list[torch.Tensor],
  options: contrast.ContrastOptions,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
  """Enqueues negatives; returns the indices of anchors and positives."""
  num_images, num_classes = len(inputs.labels), inputs.scores.shape[-1]
  probs = torch.softmax(inputs.scores, dim=-1)
  order = torch.argsort(probs, dim=-1, descending=True, stable=True)
  places = torch.arange(num_classes).expand_as(order)
  rank = torch.empty_like(order).scatter_(-1, order, places)
  labeled = (torch.arange(num_images) % 2 == 0)[:, None, None]
  valid = inputs.labels >= 0
  usable = valid & (labeled | inputs.reliable)

  anchors, positives = [], []
  for c, capacity in enumerate(options.capacities(num_classes)):
    of_class = inputs.labels == c
    confident = probs[..., c] > options.anchor_threshold
    positives.append((usable & of_class).flatten().nonzero()[:, 0])
    anchors.append((usable & of_class & confident).flatten().nonzero()[:, 0])
    near = labeled & valid & ~of_class & (rank[..., c] < options.low_rank)
    window = (rank[..., c] >= options.low_rank) & (
      rank[..., c] < options.high_rank
    )
    negatives = near | (inputs.unreliable & valid & window)
    keys = negatives.flatten().nonzero()[:, 0]
    if len(keys) > options.max_push:
      keys = keys[torch.randperm(len(keys))[: options.max_push]]
    bank[c] = torch.cat([bank[c], teacher_rows[keys]])[-capacity:]
  return anchors, positives


def _draw(indices: torch.Tensor, count: int) -> torch.Tensor:
  """Draws some of the indices, with replacement."""
  return indices[torch.randint(len(indices), (count,))]


def _info_nce(
  anchor: torch.Tensor,
  positive: torch.Tensor,
  negative: torch.Tensor,
  options: contrast.ContrastOptions,
) -> torch.Tensor:
  """Computes InfoNCE.

  Args:
    anchor: [M, D].
    positive: [D].
    negative: [M * N, D].
    options: of the loss.
  """
  num_anchors, dim = anchor.shape
  contrasted = torch.cat(
    [
      positive.expand(num_anchors, 1, dim),
      negative.reshape(num_anchors, options.num_negatives, dim),
    ],
    dim=1,
  )
  logits = torch.nn.functional.cosine_similarity(
    anchor[:, None], contrasted, dim=2, eps=1e-8
  )
  return torch.nn.functional.cross_entropy(
    logits / options.temperature, torch.zeros(num_anchors, dtype=torch.long)
  )
