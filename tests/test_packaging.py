"""What an installed rl-gumbel promises before any of it runs: names, data and import order."""

import ast
import importlib
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rl_gumbel

ROOT = Path(__file__).parents[1]


def run_python(code: str) -> str:
    """What a fresh interpreter prints when it runs `code` in the root of the project."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_import_is_lazy():
    """`rl-gumbel --help` and a refused config must not wait seconds for torch."""
    heavy = "{'torch', 'stable_baselines3', 'gymnasium', 'numpy'}"
    printed = run_python(f"import rl_gumbel, sys; print({heavy} & set(sys.modules))")
    assert printed.strip() == "set()"


@pytest.mark.parametrize("name", rl_gumbel.__all__)
def test_public_name_resolves(name):
    """A name in `__all__` whose module lost it would fail in the user's hands only."""
    assert getattr(rl_gumbel, name) is not None
    assert name in dir(rl_gumbel)


def test_unknown_name_is_an_attribute_error():
    """`hasattr` and `from rl_gumbel import x` depend on the exact type."""
    with pytest.raises(AttributeError, match=r"'GumbelSack'.*public:.*GumbelSAC"):
        _ = rl_gumbel.GumbelSack


def test_public_names_are_what_type_checkers_see():
    """The lazy table and the imports under TYPE_CHECKING are two lists of the same names."""
    seen = {
        alias.name: node.module.removeprefix("rl_gumbel.")
        for node in ast.walk(ast.parse(Path(rl_gumbel.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("rl_gumbel.")
        for alias in node.names
    }
    assert seen == rl_gumbel._MODULE_OF
    assert {*seen, "__version__"} == set(rl_gumbel.__all__)


def test_version_is_that_of_the_project_file():
    """The version stands in two files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert rl_gumbel.__version__ == project["version"]


def test_configs_are_package_data():
    """A wheel has no top-level `configs`, so only this way of reading them works everywhere."""
    assert (files("rl_gumbel") / "configs" / "sac" / "CartPole-v1.yaml").is_file()


def test_environments_have_one_import_name():
    """A second name (`envs`) would make a second copy of every class."""
    module = importlib.import_module("rl_gumbel.envs")
    assert Path(module.__file__).resolve() == ROOT / "envs" / "__init__.py"
    assert "envs" not in sys.modules


def test_constraints_pin_every_dependency():
    """An unpinned requirement would let `make install` differ from one day to the next."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(line for extra in extras for line in extra)]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(pin.split("==")[0]) for pin in pins if "==" in pin}
    assert {canonicalize_name(Requirement(line).name) for line in asked} - pinned == {"rl-gumbel"}


def test_imports_point_down():
    """The contracts in pyproject.toml are the architecture; a breach is cheapest at once."""
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
