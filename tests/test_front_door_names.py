"""What `import edgellm` offers by name stays what it is, whatever else of the package is imported."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import edgellm


def test_no_module_has_the_name_of_something_that_is_offered() -> None:
    # Importing edgellm.X sets the attribute X of the package: a function of that name would be gone.
    modules = {module.name for module in pkgutil.iter_modules(edgellm.__path__)}
    assert not modules & set(edgellm.__all__)


def test_every_name_is_the_object_it_was_once_all_modules_are_imported() -> None:
    code = """
import importlib, pkgutil, edgellm
for module in pkgutil.iter_modules(edgellm.__path__):
    if not module.name.startswith("_"):
        importlib.import_module(f"edgellm.{module.name}")
from types import ModuleType
print([name for name in edgellm.__all__ if isinstance(getattr(edgellm, name), ModuleType)])
print(type(edgellm.doctor()).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "DoctorReport"], done.stderr
