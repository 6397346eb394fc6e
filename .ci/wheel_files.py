"""Checks that a wheel has the files of the package and no other, and that a source distribution
has none of its recipes twice: wheel_files.py CLONE WHEEL SDIST."""

import sys
import tarfile
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

clone, wheel, sdist = map(Path, sys.argv[1:])
tree = {
    str(file.relative_to(clone))
    for folder in ("aa_flax", "aa_flax/configs")  # a link, which rglob does not follow
    for file in clone.joinpath(folder).rglob("*")
    if file.is_file() and file.suffix != ".pyc"
}
with ZipFile(wheel) as archive:
    held = {name for name in archive.namelist() if ".dist-info/" not in name}
    licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
if held != tree or not licences:
    sys.exit(f"not in the wheel: {sorted(tree - held)}; in it alone: {sorted(held - tree)}")
with tarfile.open(sdist) as archive:
    recipes = Counter(Path(name).name for name in archive.getnames() if "/configs/" in name)
if not recipes or max(recipes.values()) > 1:
    sys.exit(f"not once in the source distribution: {recipes}")
print(f"{wheel.name}: {len(held)} files, {wheel.stat().st_size:,} bytes")
