"""What users of other servers suffered is a test each, which names the report."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
CASES = {
    1: "vLLM #13204 #14435: the price of LoRA grows with the largest rank configured",
    2: "vLLM #9143: LoRA enabled and not used slows the base",
    3: "vLLM #31941: a load blocks everybody's step",
    4: "SGLang #8162 #13349: loading pauses serving; twice as many adapters as slots",
    5: "SGLang #15129 #17913: a hot adapter keeps its slot for ever",
    6: "SGLang #23141: a request for the base takes an adapter's slot",
    7: "vLLM #13698 #5105: a load, or a missing file, ends the engine of all",
    8: "vLLM #12174: loads reach one replica and survive no restart",
    9: "vLLM #46287: a name leaves the folder",
    10: "TensorRT-LLM #13391: weights are unpickled",
    11: "vLLM #42125 #45981 #48352: a reload meets the old weights' prefix cache",
    12: "SkyRL #1606: weights are read again on every step",
    13: "vLLM #34186 #55193 #48019 #41754 #34591 #39278 #11406: the base answers for what does not match",
    14: "SGLang and LMDeploy: rsLoRA and alpha_pattern are not read",
    15: "vLLM #9280: what PEFT trains is refused",
    16: "vLLM #2847 gpustack #5438: a rank above a constant of the start",
    17: "vLLM #45325 #13303: metrics lose idle adapters",
    18: "vLLM #43009 #55967 #45631: the first request meets a compiler",
    19: "vLLM #36370: a graph for each number of adapters",
    20: "vLLM #9535 #8945 #5480 unsloth #2628: a quantized base is slower",
    21: "bitsandbytes #605 #181 #611: quantized layers are slower",
    22: "LoRAX #430 #395 #333 #670: names looked up, slow swaps, half the throughput",
    23: "llama.cpp #10374 #10377: another adapter disturbs requests, or waits for its turn",
    24: "SkyRL #1647 TRL #7017: an update pauses all; an old version goes while it is used",
    25: "vLLM #20160 #17003: nobody can tell what fits",
    26: "KServe #6174 triton server #8181: seven adapters are too many; no metrics",
}
"""All that were studied. One more is not ours: vLLM #44939, of the cache of encoders, which there are none of here."""


def test_every_case_is_named_by_the_tests_that_prove_it() -> None:
    texts = (path.read_text() for path in TESTS.rglob("test_*.py"))
    docstrings = "\n".join(
        ast.get_docstring(node) or ""
        for text in texts
        if re.search(r"#\d{3}|LMDeploy", text)  # the others need no parsing
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )
    named = set(re.findall(r"#\d+", docstrings))

    unnamed = {
        case: missing
        for case, report in CASES.items()
        if (missing := set(re.findall(r"#\d+", report)) - named)
    }

    assert unnamed == {}
    assert "SGLang and LMDeploy" in docstrings  # a case without a number
