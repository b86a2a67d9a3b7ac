"""One browser for all pages."""

import pytest


@pytest.fixture(scope="session")
def browser():
    from tests.end_to_end import page as pages  # playwright may be missing

    with pages.browsing() as browser:
        yield browser
