"""The untrained parts of the shipped pipeline: tiny, and each in the slot of its big relative."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    FunnelBaseModel,
    FunnelConfig,
)

from calibri.shapes import IMAGE_SIZE
from calibri.shapes.scenes import VOCABULARY

MAX_TOKENS = 12  # the longest caption has ten words; two more for begin and end
NULL_TOKENS = 2  # what the third text encoder makes of 256 tokens
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LATENT_SCALE, LATENT_SHIFT = 16.0, -0.05
WIDTHS = (64, 32)  # of the two CLIP text encoders; together the transformer's text width


def build_tokenizer(max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer for which every word of the vocabulary is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    # Naming the alphabet fixes its order, which the trainer otherwise draws anew in every process.
    letters = sorted({letter for word in VOCABULARY for letter in word})
    endings = sorted({f"{word[-1]}</w>" for word in VOCABULARY})
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=0,
        special_tokens=[BEGIN, END, *letters, *endings],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(VOCABULARY, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=merges,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=max_length,
    )


def build_text_encoder(width: int, vocabulary: int) -> CLIPTextModelWithProjection:
    """A CLIP text encoder of two layers: the pipeline reads the last but one hidden state."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def build_null_encoder() -> FunnelBaseModel:
    """A stand-in for T5 that says nothing: exactly zero, two tokens for any 256.

    Without a third encoder the stock pipeline appends ``max_sequence_length`` zero tokens (256 by
    default), which would swamp twelve real ones. Eight pooling blocks leave two, and a last layer
    norm of zeros makes them zero.
    """
    config = FunnelConfig(
        vocab_size=128,
        block_sizes=[1] * 8,
        d_model=sum(WIDTHS),
        n_head=1,
        d_head=4,
        d_inner=4,
        num_decoder_layers=1,
    )
    encoder = FunnelBaseModel(config)
    last = encoder.encoder.blocks[7][0].ffn.layer_norm
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return encoder


def build_transformer() -> SD3Transformer2DModel:
    """The MM-DiT, with every gate and the output at zero (adaLN-Zero; diffusers does not)."""
    transformer = SD3Transformer2DModel(
        sample_size=IMAGE_SIZE,
        patch_size=4,
        in_channels=3,
        out_channels=3,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=24,
        joint_attention_dim=sum(WIDTHS),
        caption_projection_dim=96,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=IMAGE_SIZE // 4,
        qk_norm="rms_norm",
    )
    zeroed = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    for linear in zeroed:
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return transformer


def _set_pointwise(conv: torch.nn.Conv2d, gain: float, bias: float) -> None:
    torch.nn.init.zeros_(conv.weight)
    for channel in range(3):
        conv.weight.data[channel, channel, 1, 1] = gain
    torch.nn.init.constant_(conv.bias, bias)


def build_autoencoder() -> AutoencoderTiny:
    """An autoencoder that is the identity up to scale: pixels in [-1, 1] to latents in [-.1, .1].

    The decoder squashes its input by ``3 tanh(z / 3)``, which is the identity near zero.
    """
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(3,),
        decoder_block_out_channels=(3,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=3,
        scaling_factor=LATENT_SCALE,
        shift_factor=LATENT_SHIFT,
    )
    encoder, decoder = autoencoder.encoder.layers, autoencoder.decoder.layers
    _set_pointwise(encoder[0], 1.0, 0.0)
    _set_pointwise(encoder[1], 0.2, -0.1)
    _set_pointwise(decoder[0], 5.0, 0.5)
    _set_pointwise(decoder[2], 1.0, 0.0)
    return autoencoder


def to_latents(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to the transformer's latents, as the autoencoder and its scaling make them."""
    return (0.1 * (images.float() / 127.5 - 1) - LATENT_SHIFT) * LATENT_SCALE


def build_pipeline(seed: int) -> StableDiffusion3Pipeline:
    """The whole pipeline with fresh weights; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the libraries' initialisers draw from the global state only
        tokenizer = build_tokenizer(MAX_TOKENS)
        return StableDiffusion3Pipeline(
            transformer=build_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=build_autoencoder(),
            text_encoder=build_text_encoder(WIDTHS[0], len(tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=build_text_encoder(WIDTHS[1], len(tokenizer)),
            tokenizer_2=build_tokenizer(MAX_TOKENS),
            text_encoder_3=build_null_encoder(),
            tokenizer_3=build_tokenizer(256),
        )


def write_vocabulary(folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``, for transformers 4, from ``tokenizer.json``."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], indent=2) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges)


def save_pipeline(pipeline: StableDiffusion3Pipeline, folder: Path) -> None:
    """Write the pipeline in half precision; the folder appears whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    for config in sorted(partial.glob("text_encoder*/config.json")):
        # The weights are stored in half precision and meant to be used in single precision.
        content = json.loads(config.read_text())
        content["dtype"] = "float32"
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    for tokenizer in sorted(partial.glob("tokenizer*")):
        write_vocabulary(tokenizer)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
