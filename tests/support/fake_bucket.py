"""A bucket in memory, behind both interfaces to files in gs://.

  with fake_bucket.bucket() as objects:
    epath.Path('gs://bucket/a').write_text('b')
    assert objects == {'bucket/a': b'b'}

etils uses fsspec, which gets a file system of this module; TensorStore, with
which Orbax writes arrays, sends HTTP requests to a server of this module, which
implements the part of Google's JSON API that is needed.
"""

import contextlib
import http.server
import io
import json
import os
import threading
import urllib.parse
from unittest import mock

import fsspec
from etils.epath import backend
from orbax.checkpoint._src.path import gcs_utils

_URL = 'TENSORSTORE_GCS_HTTP_URL'
_TOKEN = 'GOOGLE_AUTH_TOKEN_FOR_TESTING'


class Objects(dict):
  """Content by name; each write increments the generation of the object."""

  def __init__(self):
    super().__init__()
    self.generations = {}

  def __setitem__(self, name, content):
    self.generations[name] = self.generations.get(name, 0) + 1
    super().__setitem__(name, content)


class _Written(io.BytesIO):
  """A file that becomes an object when it is closed."""

  def __init__(self, objects, name):
    super().__init__()
    self._objects, self._name = objects, name

  def close(self):
    if not self.closed:
      self._objects[self._name] = self.getvalue()
    super().close()


class _Bucket(fsspec.AbstractFileSystem):
  """Objects that appear when closed; no appending, no empty folders."""

  protocol = ('gs', 'gcs')
  cachable = False
  objects: Objects = Objects()

  def ls(self, path, detail=True, **_):
    path = self._strip_protocol(path).rstrip('/')
    entries = {}
    for name in list(self.objects):
      if name == path:
        entries[name] = self._entry(name, 'file')
      elif name.startswith(f'{path}/'):
        first = name[len(path) + 1 :].split('/')[0]
        child = f'{path}/{first}'
        kind = 'file' if child == name else 'directory'
        entries[child] = self._entry(child, kind)
    if not entries:
      raise FileNotFoundError(path)
    return list(entries.values()) if detail else sorted(entries)

  def _entry(self, name, kind):
    size = len(self.objects[name]) if kind == 'file' else 0
    return {'name': name, 'type': kind, 'size': size}

  def info(self, path, **_):
    path = self._strip_protocol(path).rstrip('/')
    if path in self.objects:
      return self._entry(path, 'file')
    if '/' in path:
      self.ls(path)
    return self._entry(path, 'directory')

  def mkdir(self, path, create_parents=True, **_):
    pass

  def makedirs(self, path, exist_ok=False):
    pass

  def rmdir(self, path):
    pass

  def _rm(self, path):
    self.objects.pop(self._strip_protocol(path), None)

  def cp_file(self, path1, path2, **_):
    source, target = map(self._strip_protocol, (path1, path2))
    if source in self.objects:
      self.objects[target] = self.objects[source]

  def _open(self, path, mode='rb', **_):
    if 'a' in mode or '+' in mode:
      raise NotImplementedError('objects cannot be appended to')
    path = self._strip_protocol(path)
    if 'w' not in mode and path not in self.objects:
      raise FileNotFoundError(path)
    if 'w' in mode:
      return _Written(self.objects, path)
    return io.BytesIO(self.objects[path])


class _Handler(http.server.BaseHTTPRequestHandler):
  """Reads, writes, deletes and lists objects."""

  protocol_version = 'HTTP/1.1'
  objects: Objects

  def _parse(self):
    url = urllib.parse.urlsplit(self.path)
    parts = url.path.split('/')
    position = parts.index('b') + 1
    query = dict(urllib.parse.parse_qsl(url.query))
    name = query.get('name') or urllib.parse.unquote(
      '/'.join(parts[position + 2 :])
    )
    return parts[position], f'{parts[position]}/{name}', query

  def _answer(self, code, body=b'', **headers):
    self.send_response(code)
    self.send_header('Content-Length', str(len(body)))
    for key, value in headers.items():
      self.send_header(key.replace('_', '-'), value)
    self.end_headers()
    self.wfile.write(body)

  def _meta(self, name):
    return {
      'name': name.partition('/')[2],
      'generation': str(self.objects.generations.get(name, 0)),
      'size': str(len(self.objects.get(name, b''))),
    }

  def do_GET(self):
    bucket, name, query = self._parse()
    if name == f'{bucket}/':
      prefix = f'{bucket}/{query.get("prefix", "")}'
      items = [
        self._meta(n) for n in sorted(self.objects) if n.startswith(prefix)
      ]
      self._answer(200, json.dumps({'items': items}).encode())
    elif name not in self.objects:
      self._answer(404)
    elif query.get('alt') != 'media':
      self._answer(200, json.dumps(self._meta(name)).encode())
    else:
      content, code = self.objects[name], 200
      if byte_range := self.headers.get('Range'):
        first, _, last = byte_range.removeprefix('bytes=').partition('-')
        size, code = len(content), 206
        end = min(int(last) + 1, size) if last else size
        content = content[int(first) : end]
        extra = {'Content_Range': f'bytes {first}-{end - 1}/{size}'}
      else:
        extra = {}
      generation = str(self.objects.generations[name])
      self._answer(code, content, x_goog_generation=generation, **extra)

  def do_POST(self):
    _, name, query = self._parse()
    body = self.rfile.read(int(self.headers['Content-Length']))
    generation = self.objects.generations[name] if name in self.objects else 0
    if query.get('ifGenerationMatch', str(generation)) != str(generation):
      self._answer(412)
      return
    self.objects[name] = body
    self._answer(200, json.dumps(self._meta(name)).encode())

  def do_DELETE(self):
    _, name, _ = self._parse()
    gone = self.objects.pop(name, None)
    self._answer(404 if gone is None else 204)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def bucket():
  """Replaces all buckets by one in memory; yields its objects."""
  objects = Objects()
  server = http.server.ThreadingHTTPServer(
    ('127.0.0.1', 0), type('Handler', (_Handler,), {'objects': objects})
  )
  threading.Thread(target=server.serve_forever, daemon=True).start()
  file_system = type('Bucket', (_Bucket,), {'objects': objects})
  variables = {
    _URL: f'http://127.0.0.1:{server.server_port}',
    _TOKEN: 'nothing',
  }
  registry = fsspec.registry
  known = dict(registry)
  for name in ('gs', 'gcs'):
    fsspec.register_implementation(name, file_system, clobber=True)
  get_filesystem = backend.fsspec_backend._get_filesystem
  get_filesystem.cache_clear()
  with (
    mock.patch.dict(os.environ, variables),
    # It would ask Google whether the bucket has real folders.
    mock.patch.object(gcs_utils, 'get_bucket', lambda name: None),
  ):
    yield objects
  get_filesystem.cache_clear()
  for name in ('gs', 'gcs'):
    if name in known:
      fsspec.register_implementation(name, known[name], clobber=True)
  server.shutdown()
  server.server_close()
