"""What an installation contains, and what an import may cost."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from taae.patching import patchify

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"taae", "workbench"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run_python(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Every file that git tracks or would add."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run_python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("taae_workbench-*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_importing_taae_leaves_torch_alone():
    done = run_python("-c", "import sys, taae; taae.__version__; print('torch' in sys.modules)")
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_the_help_of_the_command_line_leaves_torch_alone():
    code = """
import sys
from taae.cli import main
sys.argv = ["taae", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("torch imported:", "torch" in sys.modules)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout
    assert done.stdout.rstrip().endswith("torch imported: False")


def test_every_public_name_of_taae_resolves():
    import taae
    from taae import codec

    assert {name: getattr(taae, name) for name in taae.__all__ if name != "__version__"} == {
        "Codec": codec.Codec,
        "load": codec.load,
        "load_official": codec.load_official,
    }
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        taae.lode  # noqa: B018  the access is the test


def test_the_test_run_checks_the_shapes_that_taae_declares():
    # If a conftest imports taae before pytest is configured, the checker can no longer reach it.
    with pytest.raises(TypeCheckError, match="wav"):
        patchify(torch.zeros(640), 320)


def test_imports_run_one_way():
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([script, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_brings_every_file_of_both_packages_and_the_manifests(wheel, tracked):
    brought = (*PACKAGES, "data_manifests")
    packages = {path.relative_to(ROOT).as_posix() for path in tracked if path.relative_to(ROOT).parts[0] in brought}
    assert {name for name in wheel if ".dist-info/" not in name} == packages
    assert {"taae/py.typed", "taae/presets/mini.toml", "workbench/__init__.py"} <= packages


def test_constraints_pin_each_dependency_but_torch():
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["app"] + extras["metrics"] + extras["dev"]
    names = {normalised(re.match(r"[\w.-]+", requirement).group()) for requirement in wanted}
    # torch is named in the Makefile, since its build depends on the machine.
    assert names - {"torch", "taae-workbench"} <= {normalised(pin) for pin in pins}
    assert "torch" not in pins


def test_no_file_names_a_package_host_or_a_folder_of_somebody_s_machine(tracked):
    # Written so that this file does not match itself.
    folder = r"(?<![\w.~$}])/(?:home|root|Users|work)/[\w.]"
    host = r"[p]ypi\.org|[p]ythonhosted|[d]ownload\.pytorch|[n]pmjs|[d]ebian\.org/|--(?:[i]ndex|[e]xtra|[f]ind-l)"
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in tracked
        if b"\0" not in (data := path.read_bytes())
        for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1)
        if (match := re.search(f"{folder}|{host}", line))
    ]
    assert found == []


def test_no_tracked_file_is_larger_than_16_mib(tracked):
    assert [path.name for path in tracked if path.stat().st_size > 16 * 2**20] == []
