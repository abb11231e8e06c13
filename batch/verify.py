"""Whether an output is what its receipts say: every published file is read and summed again."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from batch.errors import OutputError
from batch.output import DATA, REJECTED, RUN, SUFFIX
from batch.receipt import RECEIPTS, Receipt, by_shard, sum_of
from batch.retry import turns
from batch.storage import Storage

THREADS = 4


@dataclass
class Verdict:
    """What was read, and every fault, each in a line that names its file."""

    files: int = 0
    bytes: int = 0
    unfinished: int = 0  # shards whose receipt is there and whose data is not yet
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Summed:
    """One file as it is."""

    name: str
    sum: str
    bytes: int


def verify(uri: str) -> Verdict:
    """Read all that is published; OutputError if there is no output of ours."""
    storage = Storage(uri)
    if not storage.exists(f"{RUN}/recipe.json"):
        raise OutputError(f"{uri}: is no output of a job: it has no {RUN}/recipe.json")
    data = storage.names(DATA)
    strays = [name for name in data if not name.endswith(tuple(SUFFIX.values()))]
    shards = {shard_of(name): name for name in data if name not in strays}
    rejected = {shard_of(name): name for name in storage.names(REJECTED)}
    receipts = by_shard(storage.names(RECEIPTS))
    verdict = Verdict(unfinished=len(receipts.keys() - shards.keys()))
    verdict.faults += [f"{DATA}/{name}: is no file of a shard" for name in strays]
    for shard in sorted(rejected.keys() - shards.keys() - receipts.keys()):
        verdict.faults.append(f"{REJECTED}/{rejected[shard]}: belongs to no shard")
    for names in turns(set(shards)).values():  # a shard that was tried again, with its turns
        for shard in names[:-1]:
            if shard in rejected:
                verdict.faults.append(
                    f"{REJECTED}/{rejected[shard]}: is outdated: its rows were tried again"
                )
    outdated = {shard for names in turns(set(shards)).values() for shard in names[:-1]}

    def check(shard: str) -> tuple[list[Summed], list[str]]:
        told = [
            Receipt.from_json(storage.read(f"{RECEIPTS}/{one.name}"))
            for one in receipts.get(shard, ())
        ]
        return check_shard(
            storage, told, shards[shard], rejected.get(shard), tried_again=shard in outdated
        )

    with ThreadPoolExecutor(THREADS) as threads:
        for files, faults in threads.map(check, sorted(shards)):
            verdict.files += len(files)
            verdict.bytes += sum(file.bytes for file in files)
            verdict.faults += faults
    return verdict


def check_shard(
    storage: Storage,
    receipts: Sequence[Receipt],
    data: str,
    rejects: str | None,
    *,
    tried_again: bool,
) -> tuple[list[Summed], list[str]]:
    """The files of one shard, and what is wrong with them."""
    files = [summed(storage, f"{DATA}/{data}")]
    if not receipts:
        return files, [f"{DATA}/{data}: has no receipt"]
    fitting = [one for one in receipts if one.data_sum == files[0].sum]
    if not fitting:
        wanted = " or ".join(one.data_sum[:16] for one in receipts)
        return files, [
            f"{DATA}/{data}: sum is {files[0].sum[:16]}…, its receipt says {wanted}… "
            f"({files[0].bytes} bytes; {receipts[0].data_bytes} were written)"
        ]
    faults = list(check_rejects(storage, fitting, rejects, files, tried_again=tried_again))
    return files, faults + list(check_beside(storage, fitting[0], files))


def check_beside(storage: Storage, receipt: Receipt, files: list[Summed]) -> Iterator[str]:
    for name, wanted in receipt.beside.items():
        if not storage.exists(name):
            yield f"{name}: is missing"
            continue
        files.append(summed(storage, name))
        if files[-1].sum != wanted:
            yield f"{name}: sum is {files[-1].sum[:16]}…, its receipt says {wanted[:16]}…"


def check_rejects(
    storage: Storage,
    receipts: Sequence[Receipt],
    rejects: str | None,
    files: list[Summed],
    *,
    tried_again: bool,
) -> Iterator[str]:
    """`receipts` go with the data that stands."""
    receipt = receipts[0]
    if rejects is None:
        if receipt.rejects_sum is not None and not tried_again:
            yield f"{REJECTED}/{receipt.shard}.parquet: is missing; it had {receipt.rejected} rows"
        return
    files.append(summed(storage, f"{REJECTED}/{rejects}"))
    if receipt.rejects_sum is None:
        yield f"{REJECTED}/{rejects}: its receipt says that nothing was rejected"
    elif files[-1].sum not in [one.rejects_sum for one in receipts]:
        yield (
            f"{REJECTED}/{rejects}: sum is {files[-1].sum[:16]}…, its receipt says "
            f"{receipt.rejects_sum[:16]}…"
        )


def summed(storage: Storage, name: str) -> Summed:
    with storage.open(name) as file:
        total = sum_of(file)
        return Summed(name, total, int(file.size()))


def shard_of(name: str) -> str:
    return name.rpartition(".")[0]
