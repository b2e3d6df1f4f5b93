"""A tiny Qwen2 with a tokenizer of bytes, and a LoRA adapter for it: for requests that need text or an adapter."""

from __future__ import annotations

import json
from pathlib import Path

SPECIAL = ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIRST_BYTE = len(SPECIAL)
VOCABULARY = FIRST_BYTE + 256
HIDDEN, LAYERS, RANK = 64, 2, 8


def make(path: Path) -> tuple[Path, Path]:
    """Write the model and the adapter below ``path``; returns their directories."""
    model, adapter = path / "tiny", path / "adapter"
    _write_tokenizer(model)
    _write_model(model)
    _write_adapter(adapter, model)
    return model, adapter


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)


def _write_model(path: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=1, dtype="float32",
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # else all tokens are almost equally probable
    model.save_pretrained(path)


def _write_adapter(path: Path, model: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    weights = {}
    for layer in range(LAYERS):
        for name in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = 0.3 * torch.randn(RANK, HIDDEN)
            weights[f"{prefix}.lora_B.weight"] = 0.3 * torch.randn(HIDDEN, RANK)
    save_file(weights, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "v_proj"],
                "bias": "none", "base_model_name_or_path": str(model), "task_type": "CAUSAL_LM", "lora_dropout": 0.0,
            }
        )
    )  # fmt: skip
