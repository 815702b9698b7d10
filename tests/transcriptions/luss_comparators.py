"""What the LUSS paper compares with, in slow, obvious numpy (float64).

Written from §2 of the specification of the comparators alone. Nothing is drawn
or differentiated: a stopped gradient is a value that the caller passes as a
constant. Symbols: B images, D features, E embedding, K keys or clusters.

§2.0 info_nce(q, k, negatives, temperature)          [B,E], [B,E], [E,K]
     ring_push(ring, pointer, keys)                  [E,K], [B,E]
     dense(x, weight, bias), relu(x)
§2.1 classification_loss(scores, classes)
§2.2 simclr_head(pooled, weights, kind), simclr_loss(z, temperature, released)
     simclr_lars_steps(w, gradients, rates, ...)
     bicubic(image, size, legacy), tensorflow_box(rng, image, area, aspect)
§2.3 moco_head(pooled, weights)
     epoch_cosine(step, steps_per_epoch, epochs, base, final)
§2.4 adco_logits, adco_loss, adco_gradient, adco_multi_crop, adco_update
§2.5 byol_head(x, weights), byol_loss(p1, p2, z1, z2)
§2.6 simsiam_projector, simsiam_predictor, simsiam_loss(p1, p2, z1, z2)
§2.7 pcl_densities(x, centroids, assignments, temperature)
     proto_nce(q, centroids, densities, own, drawn)
     pcl_loss(...)
§2.8 densecl_heads(features, weights), densecl_match(F, F_key)
     densecl_loss(...)
"""

import math

import numpy as np

from tests.transcriptions import pass_pretraining

normalize = pass_pretraining.normalize


# §2.0 Common forms


def cross_entropy(logits, classes):
  """Computes the mean over rows of the softmax cross entropy."""
  total = 0.0
  for row, target in zip(np.asarray(logits, np.float64), classes, strict=True):
    total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
  return total / len(logits)


def info_nce(q, k, negatives, temperature):
  """Computes CE of [q.k, q.N] / T with class 0; N is E by K."""
  logits = np.concatenate(
    [(q * k).sum(axis=1, keepdims=True), q @ negatives], axis=1
  )
  return cross_entropy(logits / temperature, np.zeros(len(q), int))


def ring_push(ring, pointer, keys):
  """Overwrites columns pointer .. pointer+B-1; the new ring and pointer."""
  ring = ring.copy()
  for i, key in enumerate(keys):
    ring[:, pointer + i] = key
  return ring, (pointer + len(keys)) % ring.shape[1]


def dense(x, weight, bias=None):
  """Applies a Linear layer; the weight is in by out."""
  return x @ weight + (0.0 if bias is None else bias)


def relu(x):
  return np.maximum(x, 0.0)


# §2.1 Supervised


def classification_loss(scores, classes):
  """Computes the CE of the folder labels."""
  return cross_entropy(scores, classes)


# §2.2 SimCLR


def simclr_head(pooled, weights, kind):
  """Applies the head 'batch_256', 'released' or 'paper'."""
  if kind == 'paper':
    hidden = relu(dense(pooled, weights['w1'], weights['b1']))
    return dense(hidden, weights['w2'])
  x = pooled
  layers = 3 if kind == 'released' else 2
  for i in range(1, layers + 1):
    x = dense(x, weights[f'w{i}'])
    shift = weights.get(f'beta{i}', 0.0)
    x = pass_pretraining.batch_norm(x) * weights[f'gamma{i}'] + shift
    x = relu(x) if i < layers else x
  return x


def simclr_loss(z, temperature=0.1, released=False):
  """Computes the loss of rows z [2,B,E] of both views, not normalized."""
  rows = normalize(np.concatenate(list(z)))
  size = len(z[0])
  similarities = rows @ rows.T / temperature - 1e9 * np.eye(len(rows))
  partners = [(i + size) % len(rows) for i in range(len(rows))]
  if not released:
    return cross_entropy(similarities, partners)
  halves = (
    cross_entropy(similarities[half], np.array(partners)[half])
    for half in (slice(None, size), slice(size, None))
  )
  return sum(halves)


def simclr_lars_steps(
  w, gradients, rates, weight_decay=1e-6, trust=1e-3, momentum=0.9
):
  """Takes steps of LARS with the learning rate inside of the momentum.

  Arrays of one axis, biases and norms, are neither decayed nor adapted.
  """
  w, v = np.array(w, np.float64), np.zeros(np.shape(w))
  for g, rate in zip(gradients, rates, strict=True):
    ratio, g = 1.0, np.asarray(g, np.float64)
    if w.ndim > 1:
      g = g + weight_decay * w
      norms = np.sqrt((w * w).sum()), np.sqrt((g * g).sum())
      ratio = trust * norms[0] / norms[1] if min(norms) > 0 else 1.0
    v = momentum * v + rate * ratio * g
    w = w - v
  return w


def _cubic_weight(distance, a):
  distance = abs(distance)
  if distance <= 1:
    return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
  if distance < 2:
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
  return 0.0


def bicubic(image, size, legacy):
  """Resizes bicubically, pixel by pixel; BYOL's (§2.5) is not legacy.

  Positions are exact: TensorFlow rounds them to 1/1024 pixel.
  """
  image = np.asarray(image, np.float64)
  axes = []
  for old, new in zip(image.shape, size, strict=False):
    taps = []
    for i in range(new):
      at = i * old / new if legacy else (i + 0.5) * old / new - 0.5
      pixels = [math.floor(at) + k for k in (-1, 0, 1, 2)]
      weights = [
        _cubic_weight(at - j, -0.75 if legacy else -0.5) for j in pixels
      ]
      pairs = list(zip(pixels, weights, strict=True))
      if not legacy:
        pairs = [(j, w) for j, w in pairs if 0 <= j < old]
      total = sum(w for _, w in pairs)
      taps.append([(min(max(j, 0), old - 1), w / total) for j, w in pairs])
    axes.append(taps)
  out = np.zeros((*size, image.shape[2]))
  for i, rows in enumerate(axes[0]):
    for j, columns in enumerate(axes[1]):
      for row, v in rows:
        for column, w in columns:
          out[i, j] += v * w * image[row, column]
  return out


def tensorflow_box(rng, image, area, aspect):
  """Samples (top, left, height, width), line by line as the C++ code."""
  original_height, original_width = image
  min_area, max_area = (a * original_width * original_height for a in area)
  for _ in range(100):
    ratio = rng.uniform(aspect[0], aspect[1])
    height = round(math.sqrt(min_area / ratio))
    max_height = round(math.sqrt(max_area / ratio))
    if round(max_height * ratio) > original_width:
      max_height = int((original_width + 0.5 - 1e-7) / ratio)
      if round(max_height * ratio) > original_width:
        max_height -= 1
    if max_height > original_height:
      max_height = original_height
    if height >= max_height:
      height = max_height
    height += int(rng.integers(max_height - height + 1))
    width = round(height * ratio)
    if width * height < min_area:
      height += 1
      width = round(height * ratio)
    if width * height > max_area:
      height -= 1
      width = round(height * ratio)
    if not min_area <= width * height <= max_area:
      continue
    if width > original_width or height > original_height:
      continue
    if width <= 0 or height <= 0:
      continue
    covered = width * height / (original_width * original_height)
    if covered < 0.1:
      continue
    y = x = 0
    if height < original_height:
      y = int(rng.integers(original_height - height))
    if width < original_width:
      x = int(rng.integers(original_width - width))
    return y, x, height, width
  return 0, 0, original_height, original_width


# §2.3 MoCo v2


def moco_head(pooled, weights):
  """Applies Linear, ReLU, Linear, with biases and no norm."""
  hidden = relu(dense(pooled, weights['w1'], weights['b1']))
  return dense(hidden, weights['w2'], weights['b2'])


def epoch_cosine(step, steps_per_epoch, epochs, base=0.03, final=0.0):
  """Computes the rate of a step, which is that of its epoch."""
  epoch = step // steps_per_epoch
  share = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
  return final + (base - final) * share


# §2.4 AdCo


def adco_logits(q, keys, table):
  """Computes [q K^T, q D]; the table is E by K, not normalized."""
  directions = table / np.sqrt((table * table).sum(axis=0))
  return np.concatenate([q @ keys.T, q @ directions], axis=1)


def adco_loss(q, keys, table, temperature=0.12):
  """Computes the CE with the own key as class."""
  logits = adco_logits(q, keys, table) / temperature
  return cross_entropy(logits, range(len(q)))


def adco_initial_loss(q, keys, table, temperature=0.12):
  """Computes InfoNCE of the initialization: own key, and all columns."""
  directions = table / np.sqrt((table * table).sum(axis=0))
  return info_nce(q, keys, directions, temperature)


def adco_gradient(q, keys, table, temperature=0.02):
  """Computes g [E,K], column by column."""
  logits = adco_logits(q, keys, table) / temperature
  p = np.exp(logits - logits.max(axis=1, keepdims=True))
  p = (p / p.sum(axis=1, keepdims=True))[:, len(keys) :]
  g = np.zeros(table.shape)
  for j in range(table.shape[1]):
    norm = math.sqrt((table[:, j] ** 2).sum())
    d = table[:, j] / norm
    pull = np.mean([p[i, j] * q[i] for i in range(len(q))], axis=0)
    along = np.mean([p[i, j] * (q[i] @ d) for i in range(len(q))])
    g[:, j] = -(pull - along * d) / (temperature * norm)
  return g


def adco_multi_crop(queries, keys, table, temperature=0.12, tau=0.02):
  """Computes the loss and g of several queries per image, both sums."""
  loss, g = 0.0, np.zeros(table.shape)
  for q in queries:
    loss += adco_loss(q, keys, table, temperature)
    g += adco_gradient(q, keys, table, tau)
  return loss, g


def adco_update(table, v, g, rate=3.0, momentum=0.9, weight_decay=1e-4):
  """Computes the new table and velocity."""
  v = momentum * v + g + weight_decay * table
  return table - rate * v, v


# §2.5 BYOL


def byol_head(x, weights):
  """Applies Linear with bias, BN, ReLU, Linear without bias."""
  hidden = dense(x, weights['w1'], weights['b1'])
  hidden = pass_pretraining.batch_norm(
    hidden, weights['gamma1'], weights['beta1']
  )
  return dense(relu(hidden), weights['w2'])


def byol_loss(p1, p2, z1, z2):
  """Computes the mean of |n(p1) - n(z2)|^2 + |n(p2) - n(z1)|^2."""
  first = ((normalize(p1) - normalize(z2)) ** 2).sum(axis=1)
  second = ((normalize(p2) - normalize(z1)) ** 2).sum(axis=1)
  return (first + second).mean()


# §2.6 SimSiam


def simsiam_projector(x, weights):
  """Applies two layers with BN and ReLU, and one with BN without affine."""
  for i in (1, 2):
    x = pass_pretraining.batch_norm(
      dense(x, weights[f'w{i}']), weights[f'gamma{i}'], weights[f'beta{i}']
    )
    x = relu(x)
  # The bias of the last layer, never trained, has no effect.
  return pass_pretraining.batch_norm(dense(x, weights['w3'], 0.37))


def simsiam_predictor(x, weights):
  """Applies Linear without bias, BN, ReLU, Linear with bias."""
  hidden = pass_pretraining.batch_norm(
    dense(x, weights['w1']), weights['gamma1'], weights['beta1']
  )
  return dense(relu(hidden), weights['w2'], weights['b2'])


def simsiam_loss(p1, p2, z1, z2):
  """Computes -(1/2)(mean cos(p1, z2) + mean cos(p2, z1)), eps 1e-8."""

  def cosine(a, b):
    norms = np.sqrt((a * a).sum(axis=1)) * np.sqrt((b * b).sum(axis=1))
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-8)

  return -0.5 * (cosine(p1, z2).mean() + cosine(p2, z1).mean())


# §2.7 PCL


def pcl_densities(x, centroids, assignments, temperature=0.2):
  """Computes phi of each cluster, of centroids that are not normalized."""
  phi = np.full(len(centroids), np.nan)
  for c in range(len(centroids)):
    members = x[assignments == c]
    if len(members) > 1:
      distances = np.sqrt(((members - centroids[c]) ** 2).sum(axis=1))
      phi[c] = distances.mean() / math.log(len(members) + 10)
  phi[np.isnan(phi)] = np.nanmax(phi)
  ordered = np.sort(phi)

  def percentile(share):
    place = share / 100 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])

  phi = np.minimum(np.maximum(phi, percentile(10)), percentile(90))
  return temperature * phi / phi.mean()


def proto_nce(q, centroids, densities, own, drawn):
  """Computes the CE of q with the prototypes of the batch and drawn ones."""
  columns = [*own, *drawn]
  logits = np.zeros((len(q), len(columns)))
  for i, j in np.ndindex(logits.shape):
    c = columns[j]
    logits[i, j] = q[i] @ centroids[c] / densities[c]
  return cross_entropy(logits, range(len(q)))


def pcl_loss(q, k, ring, clusterings, temperature=0.2):
  """Computes InfoNCE plus the mean ProtoNCE; see `proto_nce`."""
  terms = [proto_nce(q, *each) for each in clusterings]
  return info_nce(q, k, ring, temperature) + sum(terms) / len(terms)


# §2.8 DenseCL


def densecl_heads(features, weights):
  """Applies both heads to F [B,h,w,D]: [B,E] and [B,hw,E]."""
  pooled = features.mean(axis=(1, 2))
  image = {name: weights[f'image_{name}'] for name in ('w1', 'b1', 'w2', 'b2')}
  cells = {name: weights[f'cell_{name}'] for name in ('w1', 'b1', 'w2', 'b2')}
  flat = features.reshape(len(features), -1, features.shape[-1])
  return moco_head(pooled, image), moco_head(flat, cells)


def densecl_match(features, key_features):
  """Finds the key cell of the largest cosine of each cell, [B,n] of [B,n,D]."""
  matches = np.zeros(features.shape[:2], int)
  for b, s in np.ndindex(*features.shape[:2]):
    cosines = normalize(key_features[b]) @ normalize(features[b, s])
    matches[b, s] = int(np.argmax(cosines))
  return matches


def densecl_loss(query, key, ring, cell_ring, matches, temperature=0.2):
  """Computes 0.5 global + 0.5 dense.

  Args:
    query: outputs of `densecl_heads` of view 1.
    key: those of view 2.
    ring: negatives of images, E by K.
    cell_ring: negatives of cells, E by K.
    matches: key cell of each query cell.
    temperature: of both losses.
  """
  image = info_nce(normalize(query[0]), normalize(key[0]), ring, temperature)
  q, k = [], []
  for b, s in np.ndindex(*matches.shape):
    q.append(normalize(query[1][b, s]))
    k.append(normalize(key[1][b, matches[b, s]]))
  cells = info_nce(np.array(q), np.array(k), cell_ring, temperature)
  return 0.5 * image + 0.5 * cells


def densecl_pooled_key(cells):
  """Computes the key of the cells' ring: the unit mean of the outputs."""
  return normalize(cells.mean(axis=1))
