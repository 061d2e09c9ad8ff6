"""Tiny SAM and SAM 2 networks with random weights, saved as folders that transformers reads."""

from pathlib import Path

import torch

SIDE = 64
"""Images are resized to this."""


def save_tiny(kind: str, folder: Path) -> Path:
    """Saves network and processor of `kind`: `sam`, `sam2` or `sam_hq`."""
    network, processor = {"sam": _sam, "sam2": _sam2, "sam_hq": _sam_hq}[kind]()
    torch.manual_seed(3)
    for parameter in network.parameters():  # as initialised, all masks would be alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
    decoder = network.mask_decoder
    for mlp in decoder.output_hypernetworks_mlps:  # so that logits reach 1
        mlp.proj_out.weight.data *= 10
    decoder.iou_prediction_head.proj_out.weight.data *= 0.05
    decoder.iou_prediction_head.proj_out.bias.data[:] = 0.6
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


_PROMPTS = {"hidden_size": 32, "image_size": SIDE, "mask_input_channels": 4}
_DECODER = {
    "hidden_size": 32,
    "mlp_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 8,
    "iou_head_depth": 2,
}
_ENCODER = {
    "hidden_size": 16,
    "output_channels": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "num_pos_feats": 16,
    "mlp_dim": 16,
}


def _sam_processor():
    from transformers import SamImageProcessor

    square = {"height": SIDE, "width": SIDE}
    return SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square)


def _sam():
    from transformers import SamConfig, SamModel, SamProcessor

    config = SamConfig(
        vision_config=_ENCODER,
        prompt_encoder_config={**_PROMPTS, "patch_size": 8},
        mask_decoder_config=_DECODER,
    )
    return SamModel(config), SamProcessor(_sam_processor())


def _sam_hq():
    from transformers import SamHQConfig, SamHQModel, SamHQProcessor

    config = SamHQConfig(
        vision_config=_ENCODER,
        prompt_encoder_config={**_PROMPTS, "patch_size": 8},
        mask_decoder_config={**_DECODER, "vit_dim": 16},
    )
    return SamHQModel(config), SamHQProcessor(_sam_processor())


def _sam2():
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [2, 2],
    }
    encoder = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    config = Sam2Config(
        vision_config=encoder,
        prompt_encoder_config={**_PROMPTS, "patch_size": 16},
        mask_decoder_config=_DECODER,
    )
    processor = Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})
    return Sam2Model(config), Sam2Processor(processor)
