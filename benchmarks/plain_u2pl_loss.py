"""The contrastive term of U2PL in torch, as the specification reads."""

import torch

from u2pl import contrast


def step(
  inputs, bank: list[torch.Tensor], options: contrast.ContrastOptions
) -> tuple[torch.Tensor, torch.Tensor]:
  """Computes one step (spec U2PL §3.4).

  Args:
    inputs: `u2pl_loss.Inputs` of tensors.
    bank: a tensor [K, D] for each class; changed in place.
    options: options of the loss.

  Returns:
    The loss, and its gradient to the student's representation.
  """
  student = inputs.student.detach().requires_grad_()
  anchors, positives, negatives = candidates(inputs, options)
  teacher_rows = inputs.teacher.flatten(0, -2)
  for c, capacity in enumerate(options.capacities(len(bank))):
    keys = negatives[c]
    if len(keys) > options.max_push:
      keys = keys[torch.randperm(len(keys))[: options.max_push]]
    bank[c] = torch.cat([bank[c], teacher_rows[keys]])[-capacity:]

  total, num_present = torch.zeros(()), 0
  for c, rows in enumerate(bank):
    if not len(positives[c]):
      continue
    num_present += 1
    if len(anchors[c]) and len(rows):
      drawn = torch.randint(len(anchors[c]), (options.num_anchors,))
      total = total + info_nce(
        student.flatten(0, -2)[anchors[c][drawn]],
        teacher_rows[positives[c]].mean(0),
        rows,
        options,
      )
  loss = total / num_present
  loss.backward()
  return loss.detach(), student.grad


def candidates(
  inputs, options: contrast.ContrastOptions
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
  """Lists the cells of anchors, positives and negatives of each class."""
  num_classes = inputs.scores.shape[-1]
  probs = torch.softmax(inputs.scores, dim=-1)
  order = torch.argsort(probs, dim=-1, descending=True, stable=True)
  places = torch.arange(num_classes).expand_as(order)
  rank = torch.empty_like(order).scatter_(-1, order, places)
  labeled = (torch.arange(len(inputs.labels)) % 2 == 0)[:, None, None]
  valid = inputs.labels >= 0
  usable = valid & (labeled | inputs.reliable)
  anchors, positives, negatives = [], [], []
  for c in range(num_classes):
    of_class = inputs.labels == c
    confident = probs[..., c] > options.anchor_threshold
    confused = labeled & valid & ~of_class & (rank[..., c] < options.low_rank)
    window = (rank[..., c] >= options.low_rank) & (
      rank[..., c] < options.high_rank
    )
    masks = (
      usable & of_class & confident,
      usable & of_class,
      confused | (inputs.unreliable & valid & window),
    )
    for cells, mask in zip((anchors, positives, negatives), masks, strict=True):
      cells.append(mask.flatten().nonzero()[:, 0])
  return anchors, positives, negatives


def info_nce(
  anchors: torch.Tensor,
  positive: torch.Tensor,
  rows: torch.Tensor,
  options: contrast.ContrastOptions,
) -> torch.Tensor:
  """Computes the mean InfoNCE of a class with rows drawn from its bank."""
  shape = (options.num_anchors, options.num_negatives)
  negatives = rows[torch.randint(len(rows), (shape[0] * shape[1],))]
  keys = torch.cat(
    [positive.expand(shape[0], 1, -1), negatives.reshape(*shape, -1)], dim=1
  )
  logits = torch.nn.functional.cosine_similarity(
    anchors[:, None], keys, dim=2, eps=1e-8
  )
  target = torch.zeros(len(anchors), dtype=torch.long)
  return torch.nn.functional.cross_entropy(logits / options.temperature, target)
