"""LoRA inside frozen encoders, by role, through peft and on the library's own module.

Hu et al. 2022, "LoRA: low-rank adaptation of large language models", arXiv:2106.09685.

Which layers a role means (``layers_of`` resolves them for one encoder):

| family | ``attention`` | ``mlp`` |
|---|---|---|
| timm ViT | fused ``attn.qkv`` (or ``q_proj k_proj v_proj``), ``attn.proj`` | ``mlp.fc1 fc2`` (SwiGLU: ``w12 w3``) |
| timm EVA, BEiT | ``attn.proj``: their fused ``qkv`` is never called as a layer | ``mlp.fc1 fc2`` |
| timm CNN, open_clip ResNet | none: raises | 1x1 convolutions, neither depthwise nor gates |
| open_clip ViT and text | ``attn``, the whole ``nn.MultiheadAttention`` | ``mlp.c_fc c_proj`` |
| BERT, RoBERTa | ``attention.self.query key value``, ``attention.output.dense`` | ``intermediate output.dense`` |
| DistilBERT | ``attention.q_lin k_lin v_lin out_lin`` | ``ffn.lin1 lin2`` |
| transformers ViT, DINOv2 | ``attention.q_proj k_proj v_proj o_proj`` | ``mlp.fc1 fc2`` |
"""

from adaptmed.lora.attach import attach, layers_of, load, save, saved_parameters
from adaptmed.lora.merging import merge, unmerge
from adaptmed.lora.settings import LoRA

__all__ = ["LoRA", "attach", "layers_of", "load", "merge", "save", "saved_parameters", "unmerge"]
