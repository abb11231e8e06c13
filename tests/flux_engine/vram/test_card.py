import pytest
import torch

from flux_engine.vram.card import CudaCard, HostCard

needs_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_host_card_copies_in_order_and_counts() -> None:
    card = HostCard()
    card.log = []
    room = card.room(4)
    assert room.tolist() == [255] * 4
    one = card.copy("one", room, torch.ones(4, dtype=torch.uint8), card.mark())
    two = card.copy("two", room[:2], torch.zeros(2, dtype=torch.uint8), None)
    card.wait("two", two)
    assert room.tolist() == [0, 0, 1, 1]
    assert one.done()
    assert (card.copies, card.copied, card.host_waits) == (2, 6, 0)
    assert card.log == [("mark", ""), ("copy", "one"), ("copy", "two"), ("wait", "two")]


def test_a_copy_that_fails_is_told_to_who_waits_for_it() -> None:
    card = HostCard()
    mark = card.copy("odd", card.room(3), torch.ones(4, dtype=torch.uint8), None)
    with pytest.raises(RuntimeError):
        card.wait("odd", mark)


@pytest.mark.gpu
@needs_a_card
def test_pinned_bytes_arrive_without_a_host_wait_and_others_by_way_of_a_reader() -> None:
    card = CudaCard(torch.device("cuda"))
    bytes_ = torch.arange(1 << 20, dtype=torch.int64).view(torch.uint8)
    pinned = card.pin(bytes_.clone())
    assert pinned.is_pinned()
    room = card.room(len(bytes_))
    for source in (pinned, bytes_, pinned, bytes_):
        room.zero_()
        card.wait("", card.copy("", room, source, card.mark()))
        assert torch.equal(room.cpu(), bytes_)
    assert card.copies == 4
