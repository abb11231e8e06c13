"""Steps' micro-batches, made ahead of the model by threads; their order is that of the steps.

Threads and not processes: reading, decoding and drawing leave Python alone for most of their
time, and nothing has to be sent.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from batch.training.source import Captions, Source
from batch.training.stream import Draft, Stream
from flux_engine.training.chance import chance
from flux_engine.training.objective import Example, Objective

AHEAD = 2  # micro-batches for each thread

T = TypeVar("T")


class Maker:
    """Drafts into examples: what is drawn depends on the seed, the micro-batch and the slot."""

    def __init__(
        self,
        sources: Sequence[Source],
        captions: Sequence[Captions],
        objectives: Sequence[Objective],
        seed: int,
    ) -> None:
        self.sources, self.captions = tuple(sources), tuple(captions)
        self.objectives, self.seed = tuple(objectives), seed

    def __call__(self, draft: Draft) -> list[Example]:
        """TrainingError, TargetsError and JobError for a row that cannot be used, naming it."""
        source, captions = self.sources[draft.dataset], self.captions[draft.dataset]
        objective = self.objectives[draft.dataset]
        out = []
        for slot in draft.slots:
            material = source.material(slot.row, captions, dropped=slot.dropped)
            random = chance(self.seed, "sample", slot.number, slot.slot)
            out.append(objective.draw(material, random))
        return out


class Loader:
    """A rank's micro-batches from a step on."""

    def __init__(
        self, stream: Stream, make: Maker, *, rank: int = 0, world: int = 1, threads: int = 0
    ) -> None:
        self.stream, self.make = stream, make
        self.rank, self.world, self.threads = rank, world, threads

    def steps(self, first: int) -> Iterator[list[tuple[Draft, list[Example]]]]:
        """The work of each step, to the run's last one."""
        drafts = (
            draft
            for step in range(first, self.stream.steps)
            for draft in self.stream.step(step, self.rank, self.world)
        )
        made = ahead(drafts, self.make, self.threads)
        for _ in range(first, self.stream.steps):
            count = len(range(self.rank, self.stream.per_step, self.world))
            yield [next(made) for _ in range(count)]


def ahead(
    drafts: Iterator[Draft], make: Callable[[Draft], T], threads: int
) -> Iterator[tuple[Draft, T]]:
    """Each draft with what is made of it, in order; by so many threads, or when it is asked for."""
    if not threads:
        for draft in drafts:
            yield draft, make(draft)
        return
    waiting: deque[tuple[Draft, Future[T]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rows")
    try:
        for draft in drafts:
            waiting.append((draft, pool.submit(make, draft)))
            if len(waiting) > threads * AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
