"""One folder of an S3 bucket, through the protocol's own client: objects appear whole or not at
all, and can be created only if absent (`If-None-Match: *`)."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs

from batch.errors import StorageDown, StorageError

PART_BYTES = 64 * 2**20  # objects beyond that go up in parts
ATTEMPTS = 8  # of each request, with growing pauses
RACES = 5  # times that two conditional writes may collide
READ_TIMEOUT_S, CONNECT_TIMEOUT_S = 60, 10
OPTIONS = ("endpoint_override", "scheme", "region")

BUSY = {
    *("InternalError", "InternalFailure", "ServiceUnavailable", "SlowDown", "Throttling"),
    *("ThrottlingException", "RequestTimeout", "RequestLimitExceeded", "OperationAborted"),
    *("ConditionalRequestConflict", "409", "429", "500", "502", "503", "504"),
}


@dataclass(frozen=True)
class Place:
    """What an address says: `s3://bucket/path?endpoint_override=host:port&scheme=http&region=…`.
    Where it does not, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and AWS_REGION do."""

    bucket: str
    path: str
    endpoint: str | None
    region: str | None

    @classmethod
    def parse(cls, uri: str) -> "Place":
        """StorageError for an option that is not known."""
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise StorageError(
                f"{parts.scheme}://{parts.netloc}{parts.path}: does not take {', '.join(unknown)}; "
                f"known are {', '.join(OPTIONS)}"
            )
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if host := options.get("endpoint_override"):
            endpoint = host if "://" in host else f"{options.get('scheme', 'https')}://{host}"
        region = options.get("region") or os.environ.get("AWS_REGION")
        return cls(parts.netloc, parts.path.strip("/"), endpoint, region)

    def file_system(self) -> fs.S3FileSystem:
        """For reading at any place of an object."""
        scheme, _, host = (self.endpoint or "https://").partition("://")
        return fs.S3FileSystem(
            endpoint_override=host or None,
            scheme=scheme,
            region=self.region,
            request_timeout=READ_TIMEOUT_S,
            connect_timeout=CONNECT_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )


class Bucket:
    """Objects by their name below one address. StorageError for what asking again will not mend,
    StorageDown for what it may."""

    def __init__(self, uri: str) -> None:
        self.uri, self.place = uri, Place.parse(uri)
        self.client = client_of(self.place)
        self.bucket = self.place.bucket
        self.prefix = f"{self.place.path}/" if self.place.path else ""

    def names(self, folder: str) -> list[str]:
        """Objects directly in `folder`, sorted."""
        prefix = f"{self.prefix}{folder}/"
        return sorted(key.removeprefix(prefix) for key in self._keys(prefix, Delimiter="/"))

    def folders(self, folder: str) -> list[str]:
        """What stands between `folder/` and the next slash in names of objects, sorted."""
        prefix = f"{self.prefix}{folder}/"
        with told(self.uri, "cannot be listed"):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="/"
            )
            found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return sorted(name.removeprefix(prefix).rstrip("/") for name in found)

    def exists(self, name: str) -> bool:
        with told(self.uri, f"{name} cannot be looked for"):
            try:
                self.client.head_object(Bucket=self.bucket, Key=self.prefix + name)
            except self.client.exceptions.ClientError as error:
                if code_of(error) in ("404", "NoSuchKey", "NotFound"):
                    return False
                raise
        return True

    def read(self, name: str) -> bytes:
        """FileNotFoundError if there is no such object."""
        with told(self.uri, f"{name} cannot be read"):
            try:
                found = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)
            except self.client.exceptions.NoSuchKey:
                raise FileNotFoundError(f"{self.uri}/{name}") from None
            data: bytes = found["Body"].read()
        return data

    def put(self, name: str, data: bytes) -> None:
        """Write an object, in the place of what may be there."""
        with told(self.uri, f"{name} cannot be written"):
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data)

    def upload(self, name: str, file: Path) -> None:
        """Write an object of a file's content, in the place of what may be there."""
        with told(self.uri, f"{name} cannot be written"), file.open("rb") as opened:
            if file.stat().st_size <= PART_BYTES:
                where = {"Bucket": self.bucket, "Key": self.prefix + name}
                self.client.put_object(**where, Body=opened)
            else:
                self._in_parts(name, opened)

    def create(self, name: str, file: Path) -> bool:
        """Upload a file unless the object exists; whether it was we who did."""
        with told(self.uri, f"{name} cannot be written"), file.open("rb") as opened:
            if file.stat().st_size <= PART_BYTES:
                return self._unless_there(
                    lambda: self.client.put_object(
                        Bucket=self.bucket,
                        Key=self.prefix + name,
                        Body=from_start(opened),
                        IfNoneMatch="*",
                    )
                )
            return not self.exists(name) and self._in_parts(name, opened, IfNoneMatch="*")

    def _in_parts(self, name: str, opened: BinaryIO, **condition: str) -> bool:
        where = {"Bucket": self.bucket, "Key": self.prefix + name}
        where["UploadId"] = self.client.create_multipart_upload(**where)["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            while block := opened.read(PART_BYTES):
                number = len(parts) + 1
                etag = self.client.upload_part(**where, PartNumber=number, Body=block)["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
            done = self._unless_there(
                lambda: self.client.complete_multipart_upload(
                    **where, MultipartUpload={"Parts": parts}, **condition
                )
            )
        except BaseException:
            self._abort(where)
            raise
        if not done:
            self._abort(where)
        return done

    def _abort(self, where: dict[str, str]) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client.abort_multipart_upload(**where)
        except (BotoCoreError, ClientError):
            return  # the bucket's own rule for unfinished uploads will take it away

    def _unless_there(self, write: Callable[[], object]) -> bool:
        for race in range(RACES):
            try:
                write()
            except self.client.exceptions.ClientError as error:
                if code_of(error) in ("PreconditionFailed", "412"):
                    return False
                if code_of(error) not in ("ConditionalRequestConflict", "409"):
                    raise
                if race == RACES - 1:
                    raise
                time.sleep(0.1 * 2**race)
            else:
                return True
        raise AssertionError("unreachable")

    def delete(self, name: str) -> None:
        """Take an object away, if it is there."""
        with told(self.uri, f"{name} cannot be removed"):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def delete_below(self, folder: str) -> None:
        """Take away all objects whose names begin with `folder/`."""
        for key in list(self._keys(f"{self.prefix}{folder}/")):
            self.delete(key.removeprefix(self.prefix))

    def _keys(self, prefix: str, **options: str) -> Iterator[str]:
        with told(self.uri, "cannot be listed"):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, **options
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    if entry["Key"] != prefix:  # a folder's own marker
                        yield entry["Key"]


def client_of(place: Place) -> Any:
    """Credentials come from where AWS tools look for them: environment, files, the machine."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise StorageError(
            "writing to s3:// needs boto3: install it, or this project with its extra s3"
        ) from None
    return boto3.session.Session().client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region,
        config=Config(
            retries={"mode": "standard", "max_attempts": ATTEMPTS},
            read_timeout=READ_TIMEOUT_S,
            connect_timeout=CONNECT_TIMEOUT_S,
            max_pool_connections=32,
        ),
    )


def from_start(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def code_of(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def told(uri: str, what: str) -> Iterator[None]:
    """The client's errors as ours, with the place and what was tried."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from botocore.exceptions import PartialCredentialsError as Partial

    try:
        yield
    except ClientError as error:
        code = code_of(error)
        words = error.response.get("Error", {}).get("Message") or "no further words"
        kind = StorageDown if code in BUSY else StorageError
        raise kind(f"{uri}: {what}: {code}: {words}") from None
    except (NoCredentialsError, Partial) as error:
        raise StorageError(f"{uri}: {what}: {error}") from None
    except BotoCoreError as error:  # no connection, or none that lasts
        raise StorageDown(f"{uri}: {what}: {error}") from None
