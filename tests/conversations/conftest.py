import ssl
from collections.abc import Iterator

import pytest

from media_uploads import fetching
from tests.hostile_server import NAME, Authority, FakeInternet, Stranger, running


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> ssl.SSLContext:
    return authority.issue(NAME)


@pytest.fixture
def stranger(certificate: ssl.SSLContext) -> Iterator[Stranger]:
    """The web server behind https://pictures.test."""
    with running(Stranger(certificate)) as stranger:
        yield stranger


@pytest.fixture
def internet(stranger: Stranger, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeInternet]:
    """The world outside: one name, one server."""
    fake = FakeInternet(stranger)
    monkeypatch.setattr(fetching, "internet", fake)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    fetching.tls.cache_clear()
    yield fake
    fetching.tls.cache_clear()
