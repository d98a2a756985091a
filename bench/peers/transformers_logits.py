"""Random checkpoints of real shapes, and Hugging Face transformers' logits on them.

    python bench/peers/transformers_logits.py --out FOLDER [--family qwen3|llama]
        [--size small|real] [--device cpu|cuda]

FOLDER gets config.json and model.safetensors (bf16), as transformers writes them, and

    prompts.json    {"transformers", "vocab", "prompts": [{"ids": [...], "positions": [...]}]}
    float32.bin     logits of those positions, (positions, vocab) float32, prompt after prompt,
                    computed in float32 from the same bf16 weights
    bfloat16.bin    the same computed in bfloat16: the error that this type makes by itself

`flashforge`'s side is test/model/transformers.test.ts.
"""

import argparse
import json
import os

import torch
import transformers

SEED = 1
PROMPT_LENGTHS = {"small": [1, 19, 150], "real": [7, 300, 1100]}
POSITIONS_KEPT = 24

# Llama-3.1-8B and Qwen3-4B with fewer layers and a smaller vocabulary.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
REAL = {
    "qwen3": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    },
}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def make_config(family: str, size: str):
    options = dict(
        num_hidden_layers=4 if size == "real" else 2,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=16384 if size == "real" else 512,
        max_position_embeddings=16384,
        rms_norm_eps=1e-6 if family == "qwen3" else 1e-5,
        attn_implementation="eager",
        use_cache=False,
        **REAL[family],
    )
    if size == "small":
        options.update(SMALL)
    if family == "qwen3":
        rope = {"rope_type": "default"}
        kind = transformers.Qwen3Config
    else:
        rope = dict(LLAMA3_ROPE)
        kind = transformers.LlamaConfig
    if int(transformers.__version__.split(".")[0]) >= 5:
        options["rope_parameters"] = {**rope, "rope_theta": options.pop("rope_theta")}
    elif family == "llama":
        options["rope_scaling"] = rope
    return kind(**options)


def make_model(config, device: str):
    """Weights for which attention is neither flat nor a single key, and norms are not 1."""
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, device=device)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif "embed" in name:
                parameter.copy_(noise * 0.05)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model.eval()


def make_prompts(vocab: int, lengths):
    generator = torch.Generator().manual_seed(SEED)
    prompts = []
    for length in lengths:
        ids = torch.randint(vocab, (length,), generator=generator).tolist()
        positions = list(range(max(0, length - POSITIONS_KEPT), length))
        prompts.append({"ids": ids, "positions": positions})
    return prompts


@torch.no_grad()
def write_logits(model, prompts, path: str):
    with open(path, "wb") as file:
        for prompt in prompts:
            ids = torch.tensor([prompt["ids"]], device=model.device)
            logits = model(input_ids=ids).logits[0, prompt["positions"]]
            file.write(logits.float().cpu().numpy().tobytes())


def main():
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", required=True)
    parser.add_argument("--family", choices=sorted(REAL), default="qwen3")
    parser.add_argument("--size", choices=["small", "real"], default="real")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    # TF32 would be an error of its own in what stands for the truth.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(min(4, os.cpu_count() or 1))
    config = make_config(arguments.family, arguments.size)
    model = make_model(config, arguments.device)
    model.save_pretrained(arguments.out)
    prompts = make_prompts(config.vocab_size, PROMPT_LENGTHS[arguments.size])
    with open(os.path.join(arguments.out, "prompts.json"), "w") as file:
        version, vocab = transformers.__version__, config.vocab_size
        json.dump({"transformers": version, "vocab": vocab, "prompts": prompts}, file)
    write_logits(model, prompts, os.path.join(arguments.out, "bfloat16.bin"))
    write_logits(model.float(), prompts, os.path.join(arguments.out, "float32.bin"))


if __name__ == "__main__":
    main()
