"""Which URLs the settings allow."""

from __future__ import annotations

import pytest

from loraplex_adapters.errors import InvalidRequestError
from loraplex_server.admission.url_policy import UrlPolicy
from loraplex_server.config import ConfigError, load_config

PREFIXES = ("s3://models/team-a/", "https://Files.example:8443/adapters", "gs://models", "file:///adapters")


@pytest.mark.parametrize(
    "url",
    [
        *("s3://models/team-a/faq", "s3://models/team-a", "s3://models/team-a/x/y"),
        *("https://files.example:8443/adapters/faq?token=1", "https://ann:pw@FILES.example:8443/adapters"),
        *("gs://models/any", "gcs://models/any", "file:///adapters/faq", "file://localhost/adapters/faq"),
    ],
)
def test_a_url_below_a_prefix_is_allowed(url: str) -> None:
    assert UrlPolicy(prefixes=PREFIXES).parse(url).path


@pytest.mark.parametrize(
    "url",
    [
        *("s3://models/team-ab/faq", "s3://models/team-b", "s3://Models/team-a/faq", "s3://other/team-a/faq"),
        *("s3://models/team-a/../team-b", "s3://models/team-a/%2e%2e/team-b", "s3://models/team-a/./faq"),
        *("https://files.example/adapters/faq", "http://files.example:8443/adapters/faq"),
        *(
            "https://files.example:8443/adapters/..%2fsecret",
            "https://files.example:8443/adapters/..\\secret",
        ),
        *("https://files.example:8443@evil.example/adapters", "https://evil.example/adapters"),
        *("gs://models2/any", "file:///adapters2/faq", "http://169.254.169.254/latest/meta-data"),
    ],
)
def test_a_url_beside_the_prefixes_is_not(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="adapter_url_prefixes") as refused:
        UrlPolicy(prefixes=PREFIXES).parse(url)

    assert "team-a" not in str(refused.value)


def test_without_prefixes_the_schemes_decide() -> None:
    assert UrlPolicy(frozenset({"s3"})).parse("s3://any/where").netloc == "any"
    with pytest.raises(InvalidRequestError, match="schemes s3"):
        UrlPolicy(frozenset({"s3"})).parse("gs://any/where")


@pytest.mark.parametrize("url", ["s3://", "s3:///key", "gs://", "gcs:///a/b", "http://", "https:///x"])
def test_a_url_without_a_bucket_or_host_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"must name a (bucket|host)"):
        UrlPolicy().parse(url)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("models/team-a", "must name a bucket or host"),
        ("s3:///team-a", "must name a bucket"),
        ("s3://key:hunter2@models", "no user"),
        ("https://ann:hunter2@host/x", "no user"),
        ("https://host/x?token=1", "no query"),
        ("zip::s3://models", "must not chain"),
    ],
)
def test_a_prefix_that_no_url_can_begin_with_is_refused_at_the_start(prefix: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(flags={"adapter_url_prefixes": ["s3://models", prefix]}, environment={})


def test_prefixes_of_the_environment_are_parted_by_commas() -> None:
    config = load_config(environment={"LORAPLEX_ADAPTER_URL_PREFIXES": "s3://models/a, gs://models/b"})

    assert config.adapter_url_prefixes == ("s3://models/a", "gs://models/b")
