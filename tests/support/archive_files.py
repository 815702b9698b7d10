"""Writes and unpacks tar and zip files, and encodes their members."""

import io
import pathlib
import re
import shutil
import tarfile
import zipfile

import scipy.io

_SUFFIXES = ('.tar', '.tgz', '.gz', '.zip')


def tar(members, mode='w'):
  """Returns the bytes of a tar file."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode) as archive:
    for name in folder_entries(members):
      entry = tarfile.TarInfo(name)
      entry.type = tarfile.DIRTYPE
      archive.addfile(entry)
    for name, content in members.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return buffer.getvalue()


def write_archive(path, members):
  """Writes a zip or tar file, with an entry for each folder.

  Args:
    path: its suffix determines the format.
    members: bytes by path.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix != '.zip':
    path.write_bytes(tar(members, 'w' if path.suffix == '.tar' else 'w:gz'))
    return
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name in folder_entries(members):
      archive.writestr(f'{name}/', b'')
    for name, content in members.items():
      archive.writestr(name, content)


def write_files(folder, members):
  """Writes files from bytes by path."""
  for name, content in members.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def extract(source, target):
  """Copies a folder with its archives unpacked, tar files in tar files, too.

  The tar file of a class of ImageNet is unpacked to a folder of its name, as is
  customary.
  """
  shutil.copytree(source, target)
  while archives := [p for p in target.rglob('*') if p.suffix in _SUFFIXES]:
    for archive in archives:
      folder = archive.parent
      if re.fullmatch(r'n\d{8}', archive.stem):
        folder /= archive.stem
      shutil.unpack_archive(archive, folder)
      archive.unlink()


def mat_bytes(**variables):
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, variables, do_compression=True)
  return buffer.getvalue()


def line_bytes(lines):
  return ''.join(f'{line}\n' for line in lines).encode()


def folder_entries(members):
  """Returns the folders of the members, outermost first."""
  parents = {p for name in members for p in pathlib.PurePosixPath(name).parents}
  return sorted(str(path) for path in parents if path.name)
