"""Old names work and say the new ones; what never existed is an error as ever."""

import importlib
import sys

import pytest

import whitebox_crate
from whitebox_crate import _deprecated, create_model

PACKAGE = "whitebox_crate"


def resolve(dotted: str) -> object:
    """What a dotted name inside the package means."""
    module, _, name = f"{PACKAGE}.{dotted}".rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("old", _deprecated.NAMES)
def test_an_old_name_is_the_new_one(old: str) -> None:
    new = _deprecated.NAMES[old]
    with pytest.warns(DeprecationWarning, match=f"{PACKAGE}.{old} is now {PACKAGE}.{new}"):
        found = resolve(old)
    assert found is resolve(new)


@pytest.mark.parametrize("old", _deprecated.MODULES)
def test_an_old_module_has_the_names_of_the_new(old: str) -> None:
    sys.modules.pop(f"{PACKAGE}.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"{PACKAGE}.{old} is now {PACKAGE}"):
        stand_in = importlib.import_module(f"{PACKAGE}.{old}")
    for home in _deprecated.MODULES[old]:
        module = importlib.import_module(f"{PACKAGE}.{home}")
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        assert own
        assert all(getattr(stand_in, name) is getattr(module, name) for name in own)


def test_an_old_architecture_is_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_deprecated.ARCHITECTURES, "crate_minute", "crate_nano_patch6_96")
    with pytest.warns(DeprecationWarning, match="'crate_minute' is now 'crate_nano_patch6_96'"):
        model = create_model("crate_minute")
    assert model.architecture == "crate_nano_patch6_96"


@pytest.mark.parametrize("module", sorted({old.rpartition(".")[0] for old in _deprecated.NAMES}))
def test_what_never_existed_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match="never_was"):
        resolve(f"{module}.never_was")
    with pytest.raises(ImportError):
        importlib.import_module(f"{PACKAGE}.never_was")
    assert not hasattr(whitebox_crate, "never_was")
