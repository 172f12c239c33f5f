"""The settings of a nanoVLM model: what its config.json holds, field by field, and what `policy.initialize` takes."""

from __future__ import annotations

from pydantic import Field, model_validator

from trainer.config.base import Section, Share

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TAGS_A_SIDE = 8


def _extra_tokens() -> dict[str, str]:
    sides = range(1, _TAGS_A_SIDE + 1)
    tags = {f"r{row}c{column}": f"<row_{row}_col_{column}>" for row in sides for column in sides}
    return {"image_token": "<|image|>", "global_image_token": "<|global_image|>", **tags}


class NanoVlmConfig(Section):
    """A nanoVLM model, in the fields and defaults of its own configuration."""

    vit_hidden_dim: int = Field(768, ge=1, description="Width of the vision encoder.")
    vit_inter_dim: int = Field(3072, ge=1, description="Width of the vision encoder's MLPs.")
    vit_patch_size: int = Field(16, ge=1, description="Side of a patch, in pixels.")
    vit_img_size: int = Field(512, ge=1, description="Side of a tile, in pixels.")
    vit_n_heads: int = Field(12, ge=1, description="Attention heads of the vision encoder.")
    vit_dropout: Share = Field(0.0, description="Kept and written back; no network drops anything here.")
    vit_n_blocks: int = Field(12, ge=1, description="Blocks of the vision encoder.")
    vit_ln_eps: float = Field(1e-6, gt=0, description="Epsilon of the vision encoder's layer norms.")
    vit_cls_flag: bool = Field(False, description="A class token instead of patches; only false can be trained.")
    vit_model_type: str = Field(
        "google/siglip2-base-patch16-512",
        description="SigLIP model that a fresh vision encoder takes its weights from.",
    )
    lm_hidden_dim: int = Field(960, ge=1, description="Width of the language model.")
    lm_inter_dim: int = Field(2560, ge=1, description="Width of the language model's MLPs.")
    lm_rms_eps: float = Field(1e-5, gt=0, description="Epsilon of the language model's norms.")
    lm_re_base: float = Field(100000.0, gt=0, description="Base of the rotary frequencies.")
    lm_max_position_embeddings: int = Field(8192, ge=1, description="Longest sequence, prompt and answer, in tokens.")
    lm_base_vocab_size: int = Field(49152, ge=1, description="Entries of the tokenizer without the extra tokens.")
    extra_token_amount: int = Field(66, ge=0, description="How many tokens are added.")
    lm_vocab_size: int = Field(49218, ge=1, description="Rows of the embedding.")
    lm_n_heads: int = Field(15, ge=1, description="Attention heads of the language model.")
    lm_n_kv_heads: int = Field(5, ge=1, description="Heads of keys and values.")
    lm_dropout: Share = Field(0.0, description="Kept and written back; no network drops anything here.")
    lm_n_blocks: int = Field(32, ge=1, description="Blocks of the language model.")
    lm_attn_scaling: float = Field(1.0, description="Factor on the rotary values; only 1 can be trained.")
    lm_max_length: int = Field(4096, ge=1, description="Kept and written back; policy.max_prompt_tokens acts here.")
    lm_use_tokens: bool = Field(False, description="A language model without images; only false can be trained.")
    lm_tie_weights: bool = Field(True, description="Embedding and head share their weights.")
    lm_model_type: str = Field(
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        description="Llama-like model that a fresh language model takes its weights from.",
    )
    lm_tokenizer: str = Field("HuggingFaceTB/SmolLM2-360M-Instruct", description="The tokenizer, a folder or a hub id.")
    lm_chat_template: str = Field(_CHAT_TEMPLATE, description="How a conversation is written, in Jinja.")
    mp_pixel_shuffle_factor: int = Field(4, ge=1, description="So many patches a side become one image token.")
    mp_image_token_length: int = Field(64, ge=1, description="Image tokens of a tile.")
    max_img_size: int = Field(1536, ge=1, description="Longest side of an image that is cut into tiles, in pixels.")
    resize_to_max_side_len: bool = Field(False, description="Bring every image's long side to exactly max_img_size.")
    vlm_extra_tokens: dict[str, str] = Field(
        default_factory=_extra_tokens,
        description="Tokens for images, by name: image_token, global_image_token, r1c1 and so on.",
    )
    vlm_load_backbone_weights: bool = Field(True, description="Kept and written back; load_backbone acts here.")
    vlm_checkpoint_path: str = Field("checkpoints", description="Kept and written back.")
    hf_repo_name: str | None = Field("nanoVLM", description="Kept and written back.")

    @model_validator(mode="after")
    def _is_covered(self) -> NanoVlmConfig:
        """What transformers' Idefics3, which these weights are read onto, does not compute."""
        if self.vit_cls_flag:
            raise ValueError("vit_cls_flag = true (a class token) cannot be trained here; only models without one can")
        if self.lm_attn_scaling != 1:
            raise ValueError(f"lm_attn_scaling = {self.lm_attn_scaling:g} cannot be trained here; only 1 can")
        if self.lm_use_tokens:
            raise ValueError("lm_use_tokens = true is a language model that takes no images; set it to false")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> NanoVlmConfig:
        _divides("vit_n_heads", self.vit_n_heads, "vit_hidden_dim", self.vit_hidden_dim)
        _divides("lm_n_heads", self.lm_n_heads, "lm_hidden_dim", self.lm_hidden_dim)
        _divides("lm_n_kv_heads", self.lm_n_kv_heads, "lm_n_heads", self.lm_n_heads)
        _divides("vit_patch_size", self.vit_patch_size, "vit_img_size", self.vit_img_size)
        _divides("vit_img_size", self.vit_img_size, "max_img_size", self.max_img_size)
        _divides("mp_pixel_shuffle_factor", self.mp_pixel_shuffle_factor, "the patches a side", self.patches_a_side)
        tokens = (self.patches_a_side // self.mp_pixel_shuffle_factor) ** 2
        if tokens != self.mp_image_token_length:
            raise ValueError(
                f"mp_image_token_length = {self.mp_image_token_length}, but a tile of {self.vit_img_size} pixels in patches "
                f"of {self.vit_patch_size}, {self.mp_pixel_shuffle_factor} a side joined, gives {tokens} image tokens; set it "
                f"to {tokens}"
            )
        if "image_token" not in self.vlm_extra_tokens:
            raise ValueError('vlm_extra_tokens names no image_token; add one, such as image_token: "<|image|>"')
        return self

    @property
    def patches_a_side(self) -> int:
        """Patches along a side of a tile."""
        return self.vit_img_size // self.vit_patch_size


def _divides(name: str, number: int, of: str, whole: int) -> None:
    if whole % number:
        raise ValueError(f"{name} = {number} does not divide {of} = {whole}; change one of them")


class InitializeConfig(Section):
    """A fresh nanoVLM model in place of a saved one."""

    vlm_config: NanoVlmConfig = Field(
        default_factory=NanoVlmConfig,
        description="The model's sizes, in nanoVLM's fields; those left out have its defaults.",
    )
    load_backbone: bool = Field(
        True,
        description="Take the vision encoder of vit_model_type and the language model of lm_model_type, their sizes too, so "
        "that only the projector and the extra tokens are new; false starts all of it from random weights.",
    )
