"""R2D2 and PRD2 for PyTorch, assembled from transformers' modules; the names are those of the published checkpoints.

This file depends on PyTorch and transformers alone and travels inside every exported folder, so that there

    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)

works where r2d2_jax is not installed. It is for inference. Axes: b pairs, n image tokens, l text tokens, d width, e
embedding size. Part of r2d2_jax, Apache-2.0.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, CLIPVisionConfig, PretrainedConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings
from transformers.utils import ModelOutput

ATTENTION = "sdpa"  # PyTorch's own scaled_dot_product_attention, which ONNX knows too


class R2D2Config(PretrainedConfig):
    """Sizes of a model.

    Args:
        image: image_size, patch_size, width, layers, heads, mlp_width of the image tower.
        text: vocabulary_size, text_length, width, layers, heads, mlp_width, max_positions, token_types.
        cross: layers, width, heads, mlp_width of each cross encoder; 0 layers mean that there are none (PRD2).
        embed_size: of image and text embeddings.
        maps_punctuation: the tokenizer maps Chinese quotation marks, ellipsis and dash to ASCII.
    """

    model_type = "r2d2"

    def __init__(
        self,
        image: dict[str, int] | None = None,
        text: dict[str, int] | None = None,
        cross: dict[str, int] | None = None,
        embed_size: int = 768,
        maps_punctuation: bool = False,
        **others: Any,
    ) -> None:
        self.image, self.text, self.cross = image or {}, text or {}, cross or {}
        self.embed_size, self.maps_punctuation = embed_size, maps_punctuation
        super().__init__(**others)


@dataclass
class R2D2Output(ModelOutput):
    """What the model makes of images and texts.

    image_tokens [b n d], image_embed [b e] of unit norm; text_tokens [b l d], text_embed [b e] of unit norm;
    match_probability [b] of image i and text i, None without cross encoders.
    """

    image_tokens: torch.Tensor | None = None
    image_embed: torch.Tensor | None = None
    text_tokens: torch.Tensor | None = None
    text_embed: torch.Tensor | None = None
    match_probability: torch.Tensor | None = None


class ImageTower(nn.Module):
    """CLIP's vision transformer without its last layer norm."""

    def __init__(self, size: dict[str, int]) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=size["width"],
            intermediate_size=size["mlp_width"],
            num_hidden_layers=size["layers"],
            num_attention_heads=size["heads"],
            image_size=size["image_size"],
            patch_size=size["patch_size"],
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            attn_implementation=ATTENTION,
        )
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last hidden states [b n d] of normalised images [b 3 h w]."""
        return self.encoder(inputs_embeds=self.pre_layrnorm(self.embeddings(pixel_values))).last_hidden_state


class TextTower(nn.Module):
    """BERT without its pooler."""

    def __init__(self, size: dict[str, int]) -> None:
        super().__init__()
        config = bert_config(size, max_position_embeddings=size["max_positions"], type_vocab_size=size["token_types"])
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The last hidden states [b l d]."""
        hidden = self.embeddings(input_ids)
        return self.encoder(hidden, attention_mask=additive(attention_mask, hidden.dtype)).last_hidden_state


class CrossEncoder(nn.Module):
    """BERT layers with cross-attention, fed with tower tokens; keys and values may come from another width."""

    def __init__(self, size: dict[str, int], context_width: int) -> None:
        super().__init__()
        config = bert_config(size, is_decoder=True, add_cross_attention=True)
        self.encoder = BertEncoder(config)
        for layer in self.encoder.layer:
            layer.crossattention.self.key = nn.Linear(context_width, config.hidden_size)
            layer.crossattention.self.value = nn.Linear(context_width, config.hidden_size)

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, context: torch.Tensor, context_mask: torch.Tensor
    ) -> torch.Tensor:
        """The last hidden states of `tokens` [b q d] that read `context`; masks are 1 where there is a token.

        Both masks are always given: without one, a BERT decoder would hide later tokens from earlier ones.
        """
        return self.encoder(
            tokens,
            attention_mask=additive(mask, tokens.dtype),
            encoder_hidden_states=context,
            encoder_attention_mask=additive(context_mask, tokens.dtype),
            use_cache=False,
        ).last_hidden_state


class R2D2Model(PreTrainedModel):
    """Two towers for pre-ranking and, but for PRD2, two cross encoders for ranking."""

    config_class = R2D2Config
    base_model_prefix = "r2d2"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: R2D2Config) -> None:
        super().__init__(config)
        image, text, cross = config.image, config.text, config.cross
        self.visual_encoder, self.text_encoder = ImageTower(image), TextTower(text)
        self.vision_proj = nn.Linear(image["width"], config.embed_size)
        self.text_proj = nn.Linear(text["width"], config.embed_size)
        self.temp = nn.Parameter(torch.tensor(0.07))
        if self.matches:
            self.text_joint_layer = CrossEncoder(cross, context_width=image["width"])
            self.img_joint_layer = CrossEncoder(cross, context_width=text["width"])
            self.img_joint_proj = nn.Linear(image["width"], cross["width"])
            self.itm_head, self.itm_head_i = nn.Linear(cross["width"], 2), nn.Linear(cross["width"], 2)
        self.post_init()

    @property
    def matches(self) -> bool:
        """Whether there are cross encoders."""
        return bool(self.config.cross["layers"])

    def _init_weights(self, module: nn.Module) -> None:
        """Counts positions again: they are in no file, and a model that is loaded has them uninitialised."""
        super()._init_weights(module)
        if isinstance(module, (CLIPVisionEmbeddings, BertEmbeddings)):
            module.position_ids.copy_(torch.arange(module.position_ids.shape[-1]).expand_as(module.position_ids))
        if isinstance(module, BertEmbeddings):
            module.token_type_ids.zero_()

    def encode_image(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """image_tokens [b n d] and image_embed [b e] of normalised images [b 3 h w]."""
        tokens = self.visual_encoder(pixel_values)
        return tokens, nn.functional.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """text_tokens [b l d] and text_embed [b e] of input_ids and attention_mask [b l]."""
        tokens = self.text_encoder(input_ids, attention_mask)
        return tokens, nn.functional.normalize(self.text_proj(tokens[:, 0]), dim=-1)

    def cross(
        self, image_tokens: torch.Tensor, text_tokens: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states of the text-image cross encoder [b l d] and of the image-text one [b n d]."""
        every = torch.ones_like(image_tokens[..., 0])
        text_image = self.text_joint_layer(text_tokens, attention_mask, image_tokens, every)
        queries = self.img_joint_proj(image_tokens)
        return text_image, self.img_joint_layer(queries, every, text_tokens, attention_mask)

    def match_heads(self, text_image: torch.Tensor, image_text: torch.Tensor) -> torch.Tensor:
        """The probability [b] that image and text match, the mean of both cross encoders'."""
        logits = torch.stack([self.itm_head(text_image[:, 0]), self.itm_head_i(image_text[:, 0])])
        return logits.softmax(dim=-1)[..., 1].mean(dim=0)

    def match(
        self, image_tokens: torch.Tensor, text_tokens: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Match probability [b] of pairs, from the tokens that the towers gave."""
        return self.match_heads(*self.cross(image_tokens, text_tokens, attention_mask))

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> R2D2Output:
        """Encodes as many images as texts and matches them pair by pair."""
        image_tokens, image_embed = self.encode_image(pixel_values)
        text_tokens, text_embed = self.encode_text(input_ids, attention_mask)
        match = self.match(image_tokens, text_tokens, attention_mask) if self.matches else None
        return R2D2Output(image_tokens, image_embed, text_tokens, text_embed, match)


def bert_config(size: dict[str, int], **others: Any) -> BertConfig:
    """A BERT of the given sizes."""
    return BertConfig(
        vocab_size=size.get("vocabulary_size", 1),
        hidden_size=size["width"],
        intermediate_size=size["mlp_width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        attn_implementation=ATTENTION,
        **others,
    )


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask [b c], 1 where there is a token, as [b 1 1 c] to be added to attention logits."""
    return (1 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
