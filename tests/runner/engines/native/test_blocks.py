"""BlockPool: a model of it in plain sets, driven at random; and the hashes of prefixes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engines.native.blocks import BlockPool, extend_hashes, root_hash

ROOT = root_hash(b"")


def hashes_of(token_ids: list[int], block_size: int = 2, salt: bytes = ROOT) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, block_size, salt, len(token_ids))
    return hashes


def test_hashes_cover_all_that_came_before() -> None:
    assert hashes_of([1, 2, 3, 4]) == hashes_of([1, 2, 3, 4, 5])
    assert hashes_of([1, 2, 3, 4])[1] != hashes_of([0, 2, 3, 4])[1]
    assert hashes_of([1, 2, 1, 2])[0] != hashes_of([1, 2, 1, 2])[1]
    assert not set(hashes_of([1, 2])) & set(hashes_of([1, 2], salt=root_hash(b"adapter")))
    assert len(hashes_of([1])) == 0


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20), st.integers(1, 5), st.integers(0, 20))
def test_hashes_grow_as_if_made_at_once(token_ids: list[int], block_size: int, first: int) -> None:
    hashes: list[bytes] = []
    for num_tokens in (min(first, len(token_ids)), len(token_ids)):
        extend_hashes(hashes, token_ids, block_size, ROOT, num_tokens)
        assert len(hashes) == num_tokens // block_size
    assert hashes == hashes_of(token_ids, block_size)


def test_the_oldest_cached_block_is_evicted_first_and_a_hit_makes_it_young() -> None:
    pool = BlockPool(3)
    first, second, third = hashes = hashes_of([1, 2, 3, 4, 5, 6])
    blocks = [pool.allocate() for _ in range(3)]
    for block, one in zip(blocks, hashes, strict=True):
        assert pool.register(block, one) == block
    pool.free_all(blocks)
    assert pool.num_free == 3
    assert pool.find([first, second, third]) == blocks
    assert pool.allocate() == blocks[2], "the end of a prefix goes before its beginning"
    pool.share(blocks[1])
    assert pool.allocate() == blocks[0]
    assert pool.find([first]) == []
    assert pool.num_free == 0
    pool.check([blocks])


def test_who_computed_the_same_moves_over() -> None:
    pool = BlockPool(2)
    one, two = pool.allocate(), pool.allocate()
    (same,) = hashes_of([1, 2])
    assert pool.register(one, same) == one
    assert pool.register(two, same) == one
    assert pool.is_shared(one)
    assert pool.num_free == 1
    pool.check([[one], [one]])


def test_a_double_free_is_our_bug() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    pool.free(block)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(block)


def test_check_sees_a_block_that_nobody_holds() -> None:
    pool = BlockPool(2)
    pool.allocate()
    with pytest.raises(AssertionError, match="ref counts"):
        pool.check([])


@settings(max_examples=300)
@given(st.integers(1, 8), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), max_size=80))
def test_random_holders(num_blocks: int, actions: list[tuple[int, int]]) -> None:
    """Holders append, fork, register, come back to a prefix and go; nothing is lost, nothing held twice too often."""
    pool = BlockPool(num_blocks)
    holders: list[list[int]] = []
    contents: dict[bytes, int] = {}
    for kind, number in actions:
        held = holders[number % len(holders)] if holders else []
        if kind == 0 and pool.num_free:
            held.append(pool.allocate())
            if held not in holders:
                holders.append(held)
        elif kind == 1 and held:
            for block in held:
                pool.share(block)
            holders.append(list(held))
        elif kind == 2 and held and pool.hash_of(held[-1]) is None and not pool.is_shared(held[-1]):
            one = hashes_of([number % 5, 0])[0]
            held[-1] = pool.register(held[-1], one)
            contents[one] = held[-1]
        elif kind == 3 and held:
            pool.free_all(held)
            holders = [other for other in holders if other is not held]
        elif kind == 4:
            one = hashes_of([number % 5, 0])[0]
            found = pool.find([one])
            assert not found or contents[one] == found[0]
            for block in found:
                pool.share(block)
            holders += [found] if found else []
        pool.check(holders)
        assert pool.num_free == num_blocks - len({block for held in holders for block in held})
        assert pool.num_idle([block for held in holders for block in held]) == 0
