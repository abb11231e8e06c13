import pytest

from schemas.address import below, check_address
from schemas.base import SchemaError
from schemas.jobs import GenerateJob


@pytest.mark.parametrize(
    "address",
    [
        "out/demo",
        "/data/a@b?key=1",
        "s3://bucket/out",
        "s3://bucket/out?endpoint_override=h:9000&scheme=http&region=r",
        "https://example.org/pics",
    ],
)
def test_an_address_without_a_secret_is_fine(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("name", ["manifest", "output", "picture_roots"])
@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA:hush@bucket/out",
        "s3://bucket/out?secret_key=hush",
        "s3://bucket/out?session_token=hush",
        "https://example.org/a?X-Amz-Signature=hush",
        "https://user@example.org/a",
    ],
)
def test_a_secret_is_refused_and_not_repeated(name: str, address: str) -> None:
    values: dict[str, object] = {"manifest": "m", "output": "o"}
    values[name] = [address] if name == "picture_roots" else address
    with pytest.raises(SchemaError, match="belong into the environment") as caught:
        GenerateJob.parse(values)
    assert "hush" not in str(caught.value)
    assert name in str(caught.value)


def test_what_lies_below_an_address_keeps_its_options() -> None:
    assert below("out/", "_run/x") == "out/_run/x"
    assert below("s3://b/out?region=r", "_run/x") == "s3://b/out/_run/x?region=r"
