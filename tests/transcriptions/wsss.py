"""Numpy transcription of SEAM, SC-CAM and AdvCAM (float64).

Written from the specification of the comparators alone, whose section signs
these are; plain and slow. Maps are [C,h,w] of one image, channel 0 is the
background where there is one; what has no gradient is an argument.

§4    soft_margin(scores, tags)
§4.1  module_input(cam)                       r
      correlate(image, conv4, conv5, kernels, r)   cam_rv
      m(x), one_hot(a), top(x, share), min_pool(x)
      seam_maps(cam, cam_rv, cam_s, cam_rv_s, tags)    a, a', b, b'
      seam_loss(cam, cam_rv, cam_s, cam_rv_s, tags, targets)
      seam_normalize(total)
§4.2  lloyd(rows, centroids, iterations), squared_error(rows, centroids)
      sc_cam_loss(x, w, w_sub, tags, sub_tags)
      shared_maximum(maps)
§4.3  weights(features, kernel, c), region(features, w)
      objective(features, kernel, c, w, first, mask, lam)
      advance(x, gradient, step)
"""

import numpy as np

from tests.transcriptions import afa

EPS = 1e-5


def resize(x, size):
  """Resizes [C,h,w], half-pixel centers."""
  return np.moveaxis(afa.resize(np.moveaxis(x, 0, -1), size), -1, 0)


def resize_aligned(x, size):
  """Resizes [C,h,w], corners on corners."""
  return np.moveaxis(afa.resize_aligned(np.moveaxis(x, 0, -1), size), -1, 0)


def relu(x):
  """Computes the positive part."""
  return np.maximum(x, 0.0)


def soft_margin(scores, tags):
  """Computes the multi-label soft-margin loss of one image."""
  p = 1 / (1 + np.exp(-scores))
  return -np.mean(tags * np.log(p) + (1 - tags) * np.log(1 - p))


# §4.1


def module_input(cam):
  """Computes r of the raw maps [C+1,h,w]."""
  r = relu(cam)
  for channel in r:
    highest = channel.max()
    channel[:] = relu(channel - EPS) / (highest + EPS)
  r[0] = 1 - r[1:].max(0)
  for i, j in np.ndindex(*r.shape[1:]):
    highest = r[1:, i, j].max()
    for c in range(1, len(r)):
      if r[c, i, j] < highest:
        r[c, i, j] = 0.0
  return r


def correlate(image, conv4, conv5, kernels, r):
  """Computes cam_rv at the resolution of r.

  Args:
    image: standardized image [3,H,W].
    conv4: map [D4,h4,w4].
    conv5: map [D5,h5,w5].
    kernels: matrices of conv4, of conv5 and of the joined maps, [out, in].
    r: maps [C+1,h,w].
  """
  size = r.shape[1:]
  parts = [resize_aligned(image, size)]
  for maps, kernel in zip((conv4, conv5), kernels[:2], strict=True):
    parts.append(
      resize_aligned(relu(np.einsum('od,dhw->ohw', kernel, maps)), size)
    )
  f = np.einsum('od,dhw->ohw', kernels[2], np.concatenate(parts))
  f = f.reshape(len(f), -1)
  f = f / (np.sqrt((f**2).sum(0)) + EPS)
  affinity = relu(f.T @ f)
  affinity = affinity / (affinity.sum(0, keepdims=True) + EPS)
  return (r.reshape(len(r), -1) @ affinity).reshape(r.shape)


def m(x):
  """Scales the positive part of each map to 0…1."""
  result = np.zeros_like(x)
  for c, channel in enumerate(relu(x)):
    low, high = channel.min(), channel.max()
    result[c] = relu(channel - low - EPS) / (high - low + EPS)
  return result


def one_hot(a):
  """Keeps channel 0 and the largest of the others at each pixel."""
  result = a.copy()
  for i, j in np.ndindex(*a.shape[1:]):
    highest = a[1:, i, j].max()
    for c in range(1, len(a)):
      if a[c, i, j] != highest:
        result[c, i, j] = 0.0
  return result


def top(x, share=0.2):
  """Computes the mean of the largest values of one image."""
  count = int(x.size * share)
  return np.sort(x.ravel())[::-1][:count].mean()


def min_pool(x):
  """Averages the least quarter of the pixels' maxima over channels."""
  highest = x.max(0).ravel()
  count = highest.size // 4
  return relu(np.sort(highest)[:count]).sum() / count


def seam_maps(cam, cam_rv, cam_s, cam_rv_s, tags):
  """Computes a, a', b and b'; `tags` has C entries, 0 or 1."""
  y = np.concatenate([[1.0], tags])[:, None, None]
  size = cam_s.shape[1:]
  a, b = (resize_aligned(m(x), size) * y for x in (cam, cam_rv))
  a_s, b_s = (m(x) * y for x in (cam_s, cam_rv_s))
  return a, a_s, b, b_s


def with_background(a):
  """Replaces channel 0."""
  return np.concatenate([1 - a[1:].max(0, keepdims=True), a[1:]])


def seam_loss(cam, cam_rv, cam_s, cam_rv_s, tags, targets=None):
  """Computes (cls, er, ecr) of one image.

  Args:
    cam: maps at the size of the image; `_s` marks the smaller image.
    cam_rv: refined maps.
    cam_s: maps of the smaller image.
    cam_rv_s: its refined maps.
    tags: classes of the image, 0 or 1.
    targets: (O(a), O(a')), which have no gradient; None to compute them.
  """
  y = np.concatenate([[1.0], tags])[:, None, None]
  pairs = ((cam, cam_rv), (cam_s, cam_rv_s))
  cls = np.mean([soft_margin(x[1:].mean((1, 2)), tags) for x, _ in pairs])
  cls += np.mean([min_pool((x * y)[1:]) for _, x in pairs])
  a, a_s, b, b_s = seam_maps(cam, cam_rv, cam_s, cam_rv_s, tags)
  er = np.abs(a - a_s)[1:].mean()
  if targets is None:
    targets = one_hot(with_background(a)), one_hot(with_background(a_s))
  ecr = top(np.abs(targets[1] - b)) + top(np.abs(targets[0] - b_s))
  return np.array([cls, er, ecr])


def seam_normalize(total):
  """Scales the sum over scales of one class, [H,W]."""
  x = relu(total)
  low, high = x.min(), x.max()
  x = np.where(x < low + EPS, 0.0, x)
  return (x - low - EPS) / (high - low + EPS)


# §4.2


def lloyd(rows, centroids, iterations):
  """Runs k-means; returns centroids."""
  centroids = centroids.copy()
  for _ in range(iterations):
    nearest = [
      int(np.argmin([((row - c) ** 2).sum() for c in centroids]))
      for row in rows
    ]
    for k in range(len(centroids)):
      members = [r for r, n in zip(rows, nearest, strict=True) if n == k]
      if members:
        centroids[k] = np.mean(members, axis=0)
  return centroids


def squared_error(rows, centroids):
  """Computes nearest centroids, and the sum of squared distances to them."""
  distances = np.array(
    [[((row - c) ** 2).sum() for c in centroids] for row in rows]
  )
  return distances.argmin(1), distances.min(1).sum()


def sc_cam_loss(x, w, w_sub, tags, sub_tags):
  """Computes the loss of one image of features x [D,h,w] after dropout."""
  pooled = x.mean((1, 2))
  parent = soft_margin(w @ pooled, tags)
  return parent + 5 * soft_margin(w_sub @ pooled, sub_tags)


def shared_maximum(maps):
  """Divides maps [K,H,W] by one maximum; takes the largest of each pixel."""
  return (maps / (maps.max() + EPS)).max(0)


# §4.3, of a pair [2,…] of image and mirror image; z = kernel · F.


def scores(features, kernel):
  """Computes z [2,C,h,w] of features [2,D,h,w]."""
  return np.einsum('cd,pdhw->pchw', kernel, features)


def weights(features, kernel, c):
  """Computes the weights of Grad-CAM [2,D]."""
  active = scores(features, kernel)[:, c] > 0
  gradient = active[:, None] * kernel[c][None, :, None, None]
  return gradient.sum((2, 3)) / (gradient > 0).sum()


def region(features, w):
  """Computes the regions [h,w] of the pair."""
  each = relu(np.einsum('pd,pdhw->phw', w, features))
  return each[0] + each[1][:, ::-1]


def objective(features, kernel, c, w, first, mask, lam):
  """Computes J, of constant weights and mask."""
  positive = relu(scores(features, kernel)).mean((2, 3))
  gain = 2 * positive[:, c].sum() - positive.sum()
  return gain - lam * (mask * np.abs(region(features, w) - first)).sum()


def advance(x, gradient, step=0.08):
  """Computes the next pair of images."""
  moved = x + step * gradient / (np.abs(gradient).max() + 1e-12)
  return np.clip(moved, x.min(), x.max())
