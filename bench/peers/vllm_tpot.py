"""Times vLLM end to end on the scenarios of `flashforge bench tpot`, the way that command does.

In process, dummy bf16 weights, vLLM's defaults (prefix caching on, CUDA graphs), prefixes computed
first, suffixes new in every pass, all requests of a scenario at once. TPOT = (time for N + 1 tokens
- time for one) / N, N = 32, the lowest of the passes; energy is NVML's counter, same difference,
where the N tokens took a second or more.
--cascade switches vLLM's cascade attention on. As of 0.24.0 only its older model runner has it, and
models of these shapes take the newer one by default, so that --cascade selects the older.

    python vllm_tpot.py --shape qwen3-4b --out vllm.jsonl
    flashforge bench tpot --join tpot.json --peers vllm.jsonl
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

STEPS = 32
PASSES = 2
LONG_PASS_S = 1.5  # passes over this are not repeated
COUNTED_S = 1.0  # NVML's counter moves ten times a second: less than this says nothing of energy
ASSETS = Path(__file__).resolve().parents[2] / "assets" / "tpot"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", required=True, help="name of a config in assets/tpot")
    parser.add_argument("--scenarios", default="all", help="names, measured in this order")
    parser.add_argument("--cascade", action="store_true", help="with vLLM's cascade attention")
    parser.add_argument("--budget", type=float, default=1e9, help="no new scenario after so many s")
    parser.add_argument("--out", help="file that gets one JSON line a scenario")
    return parser.parse_args()


class Tree:
    """Node texts and requests of a scenario; equal roots are equal texts, as in the command."""

    def __init__(self, scenario, vocab, numpy):
        self.numpy, self.vocab = numpy, vocab
        self.suffix, self.passes = scenario["suffix"], 0
        self.levels, above = [], [[]]
        for depth, level in enumerate(scenario["levels"]):
            fanout = level["nodes"] // len(above)
            paths = []
            for index in range(level["nodes"]):
                seed = (depth, index) if depth + index > 0 else (0,)
                paths.append(above[index // fanout] + self.random(level["tokens"], seed))
            self.levels.append(paths)
            above = paths
        batch, leaves = scenario["batch"], len(above)
        self.prefixes = [above[i * leaves // batch] for i in range(batch)]

    def random(self, count, seed):
        return self.numpy.random.default_rng(seed).integers(0, self.vocab, count).tolist()

    def prompts(self):
        self.passes += 1
        suffixes = (self.random(self.suffix, (7, self.passes, i)) for i in range(len(self.prefixes)))
        return [prefix + own for prefix, own in zip(self.prefixes, suffixes)]


class Engine:
    def __init__(self, shape, cascade):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if importlib.util.find_spec("flashinfer") is None:
            # It would only draw for top-k and top-p; tokens are greedy here.
            os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        if cascade:
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        import pynvml
        import vllm

        pynvml.nvmlInit()
        self.nvml, self.device = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.vllm = vllm
        folder = Path(tempfile.mkdtemp())
        shutil.copy(ASSETS / f"{shape}.json", folder / "config.json")
        more = {"disable_cascade_attn": False} if cascade else {}
        self.llm = vllm.LLM(str(folder), load_format="dummy", skip_tokenizer_init=True, **more)

    def generate(self, prompts, tokens):
        """Seconds and joules until every prompt has so many tokens."""
        params = self.vllm.SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        energy = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.device)
        started = time.perf_counter()
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        energy = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.device) - energy
        assert all(len(output.outputs[0].token_ids) == tokens for output in outputs)
        return seconds, energy / 1000


def measure(engine, tree):
    for paths in tree.levels:
        warm_s, _ = engine.generate(paths, 1)
    batch = len(tree.prefixes)
    tpot, joules, prefill = [], [], []
    for _ in range(PASSES):
        short_s, short_j = engine.generate(tree.prompts(), 1)
        long_s, long_j = engine.generate(tree.prompts(), STEPS + 1)
        tpot.append((long_s - short_s) / STEPS * 1000)
        counted = long_s - short_s >= COUNTED_S
        joules.append((long_j - short_j) / STEPS / batch if counted else None)
        prefill.append(short_s)
        if long_s > LONG_PASS_S:
            break
    best = tpot.index(min(tpot))
    return {
        "batch": batch,
        "tpot_ms": tpot[best],
        "tpot_all": tpot,
        "joule_per_token": joules[best],
        "prefill_s": min(prefill),
        "prefix_s": warm_s,
    }


def main():
    options = arguments()
    started = time.perf_counter()
    out = open(options.out, "a") if options.out else sys.stdout
    engine = Engine(options.shape, options.cascade)
    import numpy
    import torch

    config = json.loads((ASSETS / f"{options.shape}.json").read_text())
    scenarios = {each["name"]: each for each in json.loads((ASSETS / "scenarios.json").read_text())}
    names = list(scenarios) if options.scenarios == "all" else options.scenarios.split(",")
    common = {
        "shape": options.shape,
        "peer": f"vLLM {engine.vllm.__version__}" + (", cascade" if options.cascade else ""),
        "gpu": torch.cuda.get_device_name(),
        "init_s": time.perf_counter() - started,
    }
    print(json.dumps(common), file=sys.stderr, flush=True)
    for name in names:
        row = {**common, "name": name}
        if time.perf_counter() - started > options.budget:
            row["failed"] = "no time left"
        else:
            try:
                row |= measure(engine, Tree(scenarios[name], config["vocab_size"], numpy))
            except Exception as error:  # a scenario that does not fit must not end the run
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main()
