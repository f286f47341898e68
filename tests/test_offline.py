"""The packages that docs/offline.md tells to carry are those that flatminima needs."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "offline.md").read_text(encoding="utf-8")
(VERSION,) = re.findall(r"--python-version (\S+)", TEXT)

# The machine for which the document's command fetches; these decide which conditions hold.
MACHINE = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{VERSION}.0",
    "python_version": VERSION,
    "sys_platform": "linux",
}


def listed(kind):
    """The names that a variable of the document holds."""
    (names,) = re.findall(rf'^{kind}="(.*?)"$', TEXT, re.MULTILINE | re.DOTALL)
    return names.split()


def requirements(name, extras):
    """What a distribution needs with these extras, each with the extras it is needed with."""
    for line in importlib.metadata.requires(name) or ():
        need = Requirement(line)
        if need.marker is None or any(
            need.marker.evaluate({**MACHINE, "extra": extra}) for extra in ("", *extras)
        ):
            yield canonicalize_name(need.name), frozenset(need.extras)


def closure(name, without):
    """Every distribution that one needs, but those that only `without` needs."""
    seen, left = set(), [(name, frozenset())]
    while left:
        for need in requirements(*left.pop()):
            if need[0] not in without and need not in seen:
                seen.add(need)
                left.append(need)
    return {name for name, _ in seen}


def is_pure(name):
    wheel = importlib.metadata.distribution(name).read_text("WHEEL")
    (pure,) = re.findall(r"^Root-Is-Purelib: (true|false)$", wheel, re.MULTILINE)
    return pure == "true"


@pytest.mark.parametrize(("kind", "pure"), [("PURE", True), ("COMPILED", False)])
def test_every_package_to_carry_is_listed_by_its_kind(kind, pure):
    needed = closure("flatminima", without={"torch"})
    assert listed(kind) == sorted(name for name in needed if is_pure(name) == pure)


def test_every_package_to_carry_has_a_locked_version():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)
    assert {*listed("PURE"), *listed("COMPILED")} <= {canonicalize_name(name) for name in locked}


def test_every_variable_in_the_commands_is_one_of_the_lists():
    assert set(re.findall(r"\$([A-Z]+)", TEXT)) == {"PURE", "COMPILED"}
