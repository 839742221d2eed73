"""Environments for other projects: each in a folder of its own, over the packages of this one.

What another project needs in another version is installed beside, and shadows this environment's; torch is
the same for all. Nothing in this environment changes.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

# clip-retrieval's own dependency clip-anytorch imports pkg_resources, which setuptools 81 took away.
PACKAGES = {"clip-retrieval": ["clip-retrieval==2.45.0", "setuptools<81"], "Daft": ["daft==0.7.26"]}
_INSTALL_SECONDS = 600


def python_for(side: str) -> tuple[str, str]:
    """The Python that runs a side; its environment is made where it is missing.

    Args:
        side: A name of `sides.SIDES`.

    Returns:
        The interpreter, and nothing; or nothing, and why there is none.
    """
    if side not in PACKAGES:
        return sys.executable, ""
    folder = Path(sys.prefix) / "bench" / side
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return str(python), ""
    print(f"Installing {side} in an environment of its own ...", flush=True)
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
