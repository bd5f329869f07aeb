"""Freed memory is kept, and given back where the machine's is scarce."""

from arpo.train import heap


def test_memory_goes_back_only_where_it_is_scarce(monkeypatch):
    trimmed = []

    class Libc:
        def malloc_trim(self, pad):
            trimmed.append(pad)

    monkeypatch.setattr(heap, "_glibc", Libc)
    for available, times in ((0.9, 0), (0.26, 0), (0.2, 1), (0.01, 2)):
        monkeypatch.setattr(heap, "_available", lambda available=available: available)
        heap.give_back()
        assert len(trimmed) == times


def test_it_is_known_how_much_is_free_and_settings_are_taken():
    assert 0 < heap._available() <= 1
    heap.keep_freed()
    heap.give_back()
