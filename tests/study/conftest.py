"""What the tests of the study run under."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    """A user's folder joins `sys.path`; let it leave again with the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
