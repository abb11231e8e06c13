"""Paths and URIs as a job file may have them: never with a secret inside."""

from urllib.parse import parse_qsl, urlsplit

SECRET = ("key", "secret", "token", "password", "passwd", "signature", "credential", "sig")


def check_address(address: str) -> None:
    """ValueError for one with a password or a key in it; what it was is not repeated."""
    if "://" not in address:
        return
    parts = urlsplit(address)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if "@" in parts.netloc:
        raise ValueError(f"{place}: has credentials in it; {WHERE}")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if any(word in name.lower() for word in SECRET):
            raise ValueError(f"{place}: has {name} in it; {WHERE}")


def below(address: str, name: str) -> str:
    """The address of what is called `name` in that folder."""
    place, mark, options = address.partition("?") if "://" in address else (address, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


WHERE = (
    "they belong into the environment (AWS_ACCESS_KEY_ID, …) or the machine's own role, for a job "
    "is written beside its dataset"
)
