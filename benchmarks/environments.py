"""Environments for other projects: each in its own folder, on top of the packages of this environment.

Packages that another project needs in another version are installed in its folder. torch is the same for all.
Nothing in this environment changes.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

# clip-retrieval's own dependency clip-anytorch imports pkg_resources, which setuptools 81 removed.
PACKAGES = {"clip-retrieval": ["clip-retrieval==2.45.0", "setuptools<81"], "Daft": ["daft==0.7.26"]}
_INSTALL_SECONDS = 600


def python_for(side: str) -> tuple[str, str]:
    """Returns the Python of a side and an empty text; or an empty text and why there is none.

    The environment is created if it is missing.
    """
    if side not in PACKAGES:
        return sys.executable, ""
    folder = Path(sys.prefix) / "bench" / side
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return str(python), ""
    print(f"Installing {side} in its own environment ...", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[side]]
    try:
        run = subprocess.run(install, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return "", f"pip did not finish in {_INSTALL_SECONDS} s"
    if run.returncode:
        return "", run.stderr.strip().splitlines()[-1]
    done.touch()
    return str(python), ""
