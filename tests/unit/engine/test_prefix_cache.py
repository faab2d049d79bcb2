"""What is found again, by whom, and for how long."""

from __future__ import annotations

import pytest

from loraplex_server.engine.messages import SamplingParams
from tests.unit.engine.simulation import Simulation, add_command

PROMPT = list(range(1, 14))  # three full blocks of four tokens and one token more
ONE = SamplingParams(max_tokens=1)


def hits(sim: Simulation, sequence_id: int, prompt: list[int], digest: str | None, salt: bytes) -> int:
    """Prompt tokens of a request that are found."""
    sim.add(add_command(sequence_id, prompt, digest, salt, ONE))
    before = sim.prefix_hit_tokens
    sim.run()
    return sim.prefix_hit_tokens - before


def test_a_repeated_prompt_is_found_up_to_its_last_full_block() -> None:
    sim = Simulation()

    assert hits(sim, 0, PROMPT, None, b"") == 0
    assert hits(sim, 1, PROMPT, None, b"") == 12


def test_the_last_token_is_computed_even_if_its_block_is_known() -> None:
    sim = Simulation()
    hits(sim, 0, PROMPT, None, b"")

    assert hits(sim, 1, PROMPT[:12], None, b"") == 8


@pytest.mark.parametrize(("digest", "salt"), [("a", b""), (None, b"other"), ("base", b"")])
def test_another_adapter_or_salt_shares_nothing(digest: str | None, salt: bytes) -> None:
    """vLLM #42125, #45981, #48352: blocks were found again by the adapter's name."""
    sim = Simulation()
    hits(sim, 0, PROMPT, None, b"")

    assert hits(sim, 1, PROMPT, digest, salt) == 0


def test_a_block_is_found_only_if_all_before_it_agree() -> None:
    sim = Simulation()
    hits(sim, 0, PROMPT, None, b"")

    assert hits(sim, 1, [7, *PROMPT[1:]], None, b"") == 0
    assert hits(sim, 2, [*PROMPT[:4], 7, *PROMPT[5:]], None, b"") == 4


def test_blocks_are_shared_while_in_use_and_only_once_they_are_computed() -> None:
    sim = Simulation()
    endless = SamplingParams(max_tokens=100, ignore_eos=True)
    sim.add(add_command(0, PROMPT, sampling=endless))
    sim.add(add_command(1, PROMPT, sampling=endless))  # in the same steps: nothing to find yet
    sim.step()
    assert sim.prefix_hit_tokens == 0
    sim.step()
    used = sim.blocks.num_used

    sim.add(add_command(2, PROMPT, sampling=endless))
    sim.step()

    assert sim.prefix_hit_tokens == 12
    assert sim.blocks.num_used == used + 1


def test_idle_blocks_are_evicted_least_recently_used_first_and_only_when_needed() -> None:
    sim = Simulation(num_blocks=8, block_size=4)
    old, new = [1] * 13, [2] * 13  # each leaves three blocks
    hits(sim, 0, old, None, b"")
    hits(sim, 1, new, None, b"")
    assert sim.blocks.num_cached == 6
    hits(sim, 2, [3] * 15, None, b"")  # needs four; two are free, so the end of the oldest prefix goes

    assert hits(sim, 3, new, None, b"") == 12
    sim = Simulation(num_blocks=8, block_size=4)
    hits(sim, 0, old, None, b"")
    hits(sim, 1, new, None, b"")
    hits(sim, 2, [3] * 15, None, b"")
    assert hits(sim, 3, old, None, b"") == 4


def test_the_cache_can_be_switched_off() -> None:
    sim = Simulation(prefix_cache=False)
    hits(sim, 0, PROMPT, None, b"")

    assert hits(sim, 1, PROMPT, None, b"") == 0
    assert sim.blocks.num_cached == 0


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    sim = Simulation(num_blocks=6, block_size=2)
    for sequence_id in range(2):
        sampling = SamplingParams(max_tokens=6, ignore_eos=True)
        sim.add(add_command(sequence_id, [1, 2, 3, 4, sequence_id], sampling=sampling))

    sim.run()

    assert sim.num_preempted > 0
    assert sim.prefix_hit_tokens > 0
