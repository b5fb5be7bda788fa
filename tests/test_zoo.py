"""Real models with random weights and tiny sizes: every attention found, none else, and exact.

transformers, timm and torch.nn are installed with the ``models`` extra (and timm by hand). These
tests show that the spellings of the tests' own models are those of the libraries.
"""

import warnings

import pytest
import torch

import attnpass
from attnpass import forms

pytestmark = pytest.mark.slow
BOUND = 1e-5
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}


def tokens(length, batch=2):
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(5))


def text():
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return {"input_ids": tokens(9), "attention_mask": mask}


def both():
    return {**text(), "decoder_input_ids": tokens(5)}


def pixels(size=16):
    generator = torch.Generator().manual_seed(5)
    return {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}


def transformers(name, config, implementation):
    import transformers as library

    made = getattr(library, name.replace("ForCausalLM", "").replace("Model", "") + "Config")
    made = made(**config)
    torch.manual_seed(0)
    return getattr(library, name)._from_config(made, attn_implementation=implementation).eval()


def timm(name, fused, **kwargs):
    import timm as library
    from timm.layers import set_fused_attn

    set_fused_attn(fused)
    torch.manual_seed(0)
    try:
        return library.create_model(name, pretrained=False, num_classes=4, **kwargs).eval()
    finally:
        set_fused_attn(True)


def padded(n):
    return [{"padding"}] * n


def causal(n):
    return [{"causal", "padding"}] * n


HUB = [
    ("RobertaModel", TEXT, text, padded(2)),
    (
        "DistilBertModel",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
        text,
        padded(2),
    ),
    ("GPT2Model", {**GPT2, "use_cache": False}, text, causal(2)),
    ("LlamaForCausalLM", LLAMA, text, causal(2)),
    ("T5Model", T5, both, [{"padding"}, {"causal"}, {"padding"}]),
    ("BartModel", BART, both, [{"padding"}, {"causal"}, {"padding"}]),
    ("DeiTModel", VISION, pixels, [set(), set()]),
]
SMALL = {"embed_dim": 32, "num_heads": 4, "depth": 2, "img_size": 32}
IMAGES = [
    ("vit_tiny_patch16_224", SMALL, 2),
    ("deit_tiny_distilled_patch16_224", SMALL, 2),
    ("beit_base_patch16_224", SMALL, 2),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "depths": (1, 2), "embed_dim": 16, "num_heads": (2, 4)},
        3,
    ),
    ("xcit_nano_12_p16_224", {"img_size": 32, "depth": 1}, 2),
]


def output(out):
    return out if isinstance(out, torch.Tensor) else out[0]


def round_trip(model, args, kwargs):
    """The captured model, its sites; asserts that form ``softmax`` everywhere changes nothing."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, while they are captured
        want = output(model(*args, **kwargs))
        capture = attnpass.Capture(model).trace(*args, **kwargs)
        modules = {
            s.name: forms.build("softmax", s) for s in capture.sites if s.legal["softmax"] is None
        }
        assert len(modules) == len(capture.sites)
        capture.use_modules(modules)
        got = output(capture(*args, **kwargs))
    assert got.shape == want.shape
    kept = (
        kwargs["attention_mask"].bool()
        if "decoder_input_ids" not in kwargs and ("attention_mask" in kwargs)
        else slice(None)
    )
    assert ((got - want)[kept].abs().max() / want[kept].abs().max()).item() <= BOUND
    return capture


def named(x):
    """The part of an id: names alone, the same in every process."""
    return x if isinstance(x, str) else "x"


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "config", "inputs", "masks"), HUB, ids=lambda x: x if isinstance(x, str) else "x"
)
def test_transformers(name, config, inputs, masks, implementation):
    model = transformers(name, config, implementation)
    capture = round_trip(model, (), inputs())
    assert [set(s.mask) for s in capture.sites] == masks
    assert capture.declined == []
    modules = dict(model.named_modules())
    assert all(s.name in modules for s in capture.sites)
    if "Llama" in name:
        assert {s.kv_heads for s in capture.sites} == {2}
    if "decoder_input_ids" in inputs():
        assert [s.kind for s in capture.sites] == ["self", "self", "cross"]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(
    ("name", "options", "count"), IMAGES, ids=lambda x: x if isinstance(x, str) else "x"
)
def test_timm(name, options, count, fused):
    model = timm(name, fused, **options)
    size = options["img_size"]
    capture = round_trip(model, (pixels(size)["pixel_values"],), {})
    assert len(capture.sites) == count
    if "xcit" in name:
        assert {s.kind for s in capture.sites} == {"class"}
        assert [d.code for d in capture.declined] == ["NOT_ATTENTION:channel"]
    else:
        assert capture.declined == []
    if "vit_tiny" in name or "deit" in name:
        assert {s.grid for s in capture.sites} == {(2, 2)}
        assert {s.prefix for s in capture.sites} == {2 if "distilled" in name else 1}
    if "beit" in name or "swin" in name:
        assert all(s.bias for s in capture.sites)
