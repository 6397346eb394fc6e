"""Checks the files of a wheel and of a source distribution: wheel_files.py CLONE WHEEL SDIST.

The wheel has the files of the package and no others, the source distribution each recipe once.
"""

import sys
import tarfile
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

clone, wheel, sdist = map(Path, sys.argv[1:])
tree = {
    str(file.relative_to(clone))
    for folder in ("aa_flax", "aa_flax/configs")  # a symbolic link, which rglob does not follow
    for file in clone.joinpath(folder).rglob("*")
    if file.is_file() and file.suffix != ".pyc"
}
with ZipFile(wheel) as archive:
    packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
if packed != tree or not licences:
    sys.exit(
        f"not in the wheel: {sorted(tree - packed)}; only in the wheel: {sorted(packed - tree)}"
    )
with tarfile.open(sdist) as archive:
    recipes = Counter(Path(name).name for name in archive.getnames() if "/configs/" in name)
if not recipes or max(recipes.values()) > 1:
    sys.exit(f"recipes that are not in the source distribution exactly once: {recipes}")
print(f"{wheel.name}: {len(packed)} files, {wheel.stat().st_size:,} bytes")
