"""LoRA beside the base products, in graphs and in long prefills, against LoRA in line: the same bits, every time."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count

import pytest

from benchmarks.engine_runs import Bench
from benchmarks.shapes import SHAPES
from loraplex_server.engine.messages import AddSequence, SamplingParams
from loraplex_server.kernels.side_stream import SideStream

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

ADAPTERS = [None, *(f"{rank}-{number}" for number, rank in enumerate((8, 16, 32, 64, 16, 64, 8)))]
ROWS = 32
PROMPTS = {"steps as graphs": 20, "a prefill without a graph": 100}  # tokens of each
NUM_TOKENS, REPETITIONS = 24, 5

_ids = count(1_000_000)


@contextmanager
def engine(quantization: str) -> Iterator[Bench]:
    """Two layers in the shape of Llama-3.1-8B, of the same random weights each time."""
    bench = Bench(
        "two layers", quantization, max_running=ROWS, max_context=256, kv_cache_bytes=2**30, max_rank=64
    )
    try:
        bench.warm_adapters([adapter for adapter in ADAPTERS if adapter is not None])
        yield bench
    finally:
        bench.close()


Said = list[tuple[int, float]]
"""The tokens of one sequence with their log-probabilities, which every bit of the logits is in."""


def greedy_tokens(bench: Bench, prompt_tokens: int) -> list[Said]:
    """Of ROWS sequences at once, over all adapters and the base."""
    generator, said = random.Random(prompt_tokens), dict[int, Said]()
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, top_logprobs=0)
    for number in range(ROWS):
        sequence = next(_ids)
        prompt = [generator.randrange(1000, 100_000) for _ in range(prompt_tokens)]
        adapter = ADAPTERS[number % len(ADAPTERS)]
        bench.engine.add(AddSequence(sequence, prompt, adapter, b"", sampling, time.monotonic()))
        said[sequence] = []
    while bench.engine.has_work():
        result = bench.engine.step()
        for output in () if result is None else result.outputs:
            assert output.logprobs is not None
            logprobs = [position.logprob for position in output.logprobs]
            said[output.sequence_id] += zip(output.token_ids, logprobs, strict=True)
    return list(said.values())


@pytest.fixture(autouse=True)
def two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "two layers", SHAPES["llama-3.1-8b"] | {"num_hidden_layers": 2})


@pytest.mark.parametrize("quantization", ["bf16", "int8", "nf4"])
def test_lora_beside_the_base_products_gives_the_tokens_that_it_gives_in_line(
    quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as in_line:
        in_line.setattr(SideStream, "fork", lambda self: None)
        in_line.setattr(SideStream, "work", lambda self: nullcontext())
        in_line.setattr(SideStream, "join", lambda self: None)
        with engine(quantization) as bench:
            expected = {name: greedy_tokens(bench, length) for name, length in PROMPTS.items()}

    with engine(quantization) as bench:
        for _ in range(REPETITIONS):
            for name, length in PROMPTS.items():
                assert greedy_tokens(bench, length) == expected[name], name
    assert len({tuple(said) for said in expected["steps as graphs"]}) == ROWS
