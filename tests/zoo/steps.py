"""What each step of a model in use compiles to: generation, audio, vision, denoising.

python -m zoo.steps    runs every model of MODELS and keeps benchmarks/results/steps_cpu.json

A step is one call of a compiled part. For each it says how many graphs were compiled in it, and of
the attention in them how much was found, which form runs there, and what was declined. A step that
compiles nothing runs what an earlier one compiled.
"""

from __future__ import annotations

import collections
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import attnpass

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "steps_cpu.json"

Rows = list[dict[str, Any]]


def compiled(rows: Rows, part: nn.Module, form: str, name: str) -> None:
    """Compile a part's ``forward`` in place; every call adds a row."""
    from torch._dynamo.utils import counters

    options = {"form": form, "inner": "eager", "strict": True}
    run = torch.compile(part.forward, backend="attnpass", options=options)

    @functools.wraps(part.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        before = counters["stats"]["unique_graphs"]
        attnpass.reset_report()
        out = run(*args, **kwargs)
        report = attnpass.compiled_report()
        rows.append(
            {
                "part": name,
                "graphs": counters["stats"]["unique_graphs"] - before,
                "sites": len(report.sites),
                "forms": dict(collections.Counter(report.rewritten.values())),
                "declined": dict(collections.Counter(d.code for d in report.declined)),
            }
        )
        return out

    part.forward = forward  # type: ignore[method-assign]


def language(kind: str, cache: str = "dynamic") -> Callable[[Rows, str], None]:
    """Generation of six tokens after a prompt of five, two texts, one padded on the left."""

    def run(rows: Rows, form: str) -> None:
        import transformers

        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
        ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
        config = {
            "gpt2": lambda: transformers.GPT2Config(
                vocab_size=100, n_embd=32, n_layer=2, n_head=4, **ends
            ),
            "llama": lambda: transformers.LlamaConfig(**sizes, **heads, **ends),
            "mistral": lambda: transformers.MistralConfig(
                **sizes, **heads, **ends, head_dim=8, sliding_window=4
            ),
        }[kind]()
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        compiled(rows, model, form, "decoder")
        ids = torch.randint(3, 100, (2, 5))
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        more = {} if cache == "dynamic" else {"cache_implementation": cache}
        more |= {"max_new_tokens": 6, "do_sample": False, "disable_compile": True}
        model.generate(ids, attention_mask=mask, **more)

    return run


def translation(rows: Rows, form: str) -> None:
    """An encoder, then a decoder with a cache of its own and of the encoder's keys."""
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 100}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads, **wide)).eval()
    compiled(rows, model.get_encoder(), form, "encoder")
    compiled(rows, model, form, "decoder")
    more = {"max_new_tokens": 5, "num_beams": 1, "do_sample": False, "eos_token_id": None}
    model.generate(torch.randint(3, 100, (2, 7)), **more, forced_eos_token_id=None)


def speech(rows: Rows, form: str) -> None:
    """Whisper: log-mel frames to text."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 100}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 16}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_mel_bins": 8}
    tokens |= {"decoder_start_token_id": 1}
    config = WhisperConfig(**sizes, **heads, **wide, **tokens)
    model = WhisperForConditionalGeneration(config).eval()
    compiled(rows, model.get_encoder(), form, "encoder")
    compiled(rows, model, form, "decoder")
    ids = torch.tensor([[1, 5]])
    with torch.no_grad():
        past = None
        states = model.get_encoder()(torch.randn(1, 8, 32))
        for _ in range(4):
            given = ids if past is None else ids[:, -1:]
            out = model(
                encoder_outputs=states,
                decoder_input_ids=given,
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], 1)


def audio(rows: Rows, form: str) -> None:
    """Wav2Vec2 on two lengths of sound."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    layers = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2)}
    places = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = Wav2Vec2Config(**sizes, **layers, **places, num_attention_heads=4)
    model = Wav2Vec2Model(config).eval()
    compiled(rows, model, form, "encoder")
    with torch.no_grad():
        for samples in (400, 600, 800):
            model(torch.randn(1, samples))


def vision(rows: Rows, form: str) -> None:
    """A ViT of timm on batches of three sizes."""
    import timm

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes).eval()
    compiled(rows, model, form, "encoder")
    with torch.no_grad():
        for batch in (1, 4, 7):
            model(torch.randn(batch, 3, 32, 32))


def denoising(name: str) -> Callable[[Rows, str], None]:
    """Four steps of a scheduler, with guidance: the batch is doubled."""

    def run(rows: Rows, form: str) -> None:
        from diffusers import DDIMScheduler

        from zoo import specs

        spec = next(s for s in specs("diffusers") if s.name == name)
        model, args, kwargs = spec.build("sdpa")
        model.eval()
        compiled(rows, model, form, "denoiser")
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(4)
        given = list(args)
        named = dict(kwargs)
        with torch.no_grad():
            for t in scheduler.timesteps:
                if "timestep" in named:
                    named["timestep"] = t.expand(given[0].shape[0])
                else:
                    given[1] = t.expand(given[0].shape[0])
                noise = model(*given, **named)[0]
                noise = noise[:, : given[0].shape[1]]
                given[0] = scheduler.step(noise, t, given[0]).prev_sample

    return run


MODELS: dict[str, Callable[[Rows, str], None]] = {
    "gpt2 generate": language("gpt2"),
    "llama generate": language("llama"),
    "llama generate, static cache": language("llama", "static"),
    "mistral generate, window 4": language("mistral"),
    "bart generate": translation,
    "whisper decode": speech,
    "wav2vec2 forward": audio,
    "vit forward": vision,
    "unet denoise": denoising("unet-condition"),
    "dit denoise": denoising("dit"),
}


def steps(name: str, form: str = "sigmoid") -> Rows:
    """The rows of one model, compiled anew."""
    rows: Rows = []
    torch._dynamo.reset()
    torch.manual_seed(0)
    MODELS[name](rows, form)
    return rows


def main() -> None:
    """Run all models and keep what their steps compile to."""
    from zoo.census import _quiet

    _quiet()
    found = {}
    for name in MODELS:
        found[name] = steps(name)
        print(name, *found[name], sep="\n  ", flush=True)
    result = {
        "command": "python -m zoo.steps",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "form": "sigmoid",
        "steps": found,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
