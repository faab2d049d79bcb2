"""Blocks of the paged key-value cache, and the prefix cache over them.

A full block whose tokens are computed can be found again by the hash of everything that determines its
contents: the salt, the adapter, and all tokens up to its end. Blocks that no sequence holds stay findable
until they are needed.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

from loraplex_server.engine.sequence import Sequence

_HASH_BYTES = 16


class BlockManager:
    """Gives blocks to sequences. Owned by the engine's thread; takes no locks."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._free = list(range(num_blocks - 1, -1, -1))  # hold nothing worth keeping
        # Findable, held by nobody; least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._num_holders = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that can be given out now."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks held by sequences."""
        return self.num_blocks - self.num_available

    @property
    def num_cached(self) -> int:
        """Blocks held by nobody but findable."""
        return len(self._idle)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill or begin."""
        return -(-num_tokens // self.block_size)

    def attach_prefix(self, sequence: Sequence) -> int:
        """Give a sequence without blocks those that hold the longest computed prefix of its tokens.

        Returns the number of tokens covered, less than all of them: the newest is always computed, for its
        logits.
        """
        if not self._prefix_cache:
            return 0
        for block_hash in self._hashes(sequence, (sequence.num_tokens - 1) // self.block_size):
            block = self._block_of.get(block_hash)
            if block is None:
                break
            self._hold(block)
            sequence.block_table.append(block)
        covered = len(sequence.block_table) * self.block_size
        sequence.num_computed_tokens = covered
        return covered

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the first `num_tokens` tokens; False, and nothing changed, if blocks are short."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        if missing <= 0:
            return True
        if missing > self.num_available:
            return False
        for _ in range(missing):
            sequence.block_table.append(self._take())
        return True

    def mark_computed(self, sequence: Sequence, previously_computed: int, num_computed: int) -> None:
        """Make blocks findable that became full between `previously_computed` and `num_computed` tokens."""
        if not self._prefix_cache:
            return
        first, stop = previously_computed // self.block_size, num_computed // self.block_size
        if first == stop:
            return
        hashes = self._hashes(sequence, stop)
        for index in range(first, stop):
            block = sequence.block_table[index]
            # Another sequence may have computed the same tokens meanwhile; then this copy stays unfindable.
            if block not in self._hash_of and hashes[index] not in self._block_of:
                self._hash_of[block] = hashes[index]
                self._block_of[hashes[index]] = block

    def release(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence back."""
        # Ends of prefixes go first into the queue of eviction: a prefix is of no use without its beginning.
        for block in reversed(sequence.block_table):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                if block in self._hash_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        sequence.block_table = []
        sequence.num_computed_tokens = 0

    def check_invariants(self) -> None:
        """Raise AssertionError if a block is in two states or lost. For tests."""
        free, idle = set(self._free), set(self._idle)
        held = {block for block, count in enumerate(self._num_holders) if count > 0}
        assert len(free) == len(self._free), "a block is free twice"
        assert not (free & idle) | (free & held) | (idle & held), "a block is in two states"
        assert len(free) + len(idle) + len(held) == self.num_blocks, "a block is lost"
        assert all(block in self._hash_of for block in idle), "an idle block cannot be found"
        assert {h: b for b, h in self._hash_of.items()} == self._block_of, "hashes and blocks disagree"

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        self._num_holders[block] = 1
        return block

    def _hold(self, block: int) -> None:
        self._idle.pop(block, None)
        self._num_holders[block] += 1

    def _hashes(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """Hashes of the sequence's first full blocks; each is computed once, as tokens never change."""
        chain = sequence.block_hashes
        for index in range(len(chain), num_blocks):
            parent = chain[-1] if chain else _root_hash(sequence)
            tokens = sequence.token_ids(index * self.block_size, (index + 1) * self.block_size)
            chain.append(blake2b(parent + array("I", tokens).tobytes(), digest_size=_HASH_BYTES).digest())
        return chain[:num_blocks]


def _root_hash(sequence: Sequence) -> bytes:
    """Start of a chain: who may share, and whose weights made the values. Fields carry their lengths."""
    digest = sequence.adapter_digest
    adapter = b"base" if digest is None else b"lora:" + digest.encode()
    salt = sequence.cache_salt
    fields = len(salt).to_bytes(4, "little") + salt + len(adapter).to_bytes(4, "little") + adapter
    return blake2b(fields, digest_size=_HASH_BYTES).digest()
