"""A state dict of timm under the names, and in the files, that others publish theirs in."""

from __future__ import annotations

import re

import torch


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def without(state, *beginnings):
    return {name: tensor for name, tensor in state.items() if not name.startswith(beginnings)}


def random_state(model, seed=0):
    """A state dict of the model's shapes and kinds, every number of every tensor drawn anew."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(name, tensor):
        numbers = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():  # a counter of batches
            return (100 * numbers).abs().to(tensor.dtype)
        return numbers.abs() if name.endswith("running_var") else numbers

    return {n: drawn(n, t) for n, t in model.state_dict().items()}


def split_qkv(name, tensor, query, key, value):
    """Queries, keys and values as layers of their own."""
    kind = name.rsplit(".", 1)[1]
    return {f"{part}.{kind}": t.clone() for part, t in zip((query, key, value), tensor.chunk(3), strict=True)}


_HUGGING_FACE = (
    (r"^cls_token", "embeddings.cls_token"),
    (r"^dist_token", "embeddings.distillation_token"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "embeddings.norm"),
    (r"^blocks\.", "encoder.layer."),
    (r"^layers\.", "encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "layernorm."),
)


def hugging_face(state, kind):
    """As transformers' conversion scripts name it: ``kind`` is ``vit``, ``deit``, ``swin`` or ``swinv2``."""
    made = {}
    heads = {"head.fc": "classifier", "head_dist": "distillation_classifier"}
    heads["head"] = "cls_classifier" if kind == "deit" else "classifier"
    for name, tensor in state.items():
        module, _, what = name.rpartition(".")
        if module in heads:
            made[f"{heads[module]}.{what}"] = tensor
            continue
        new = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        for ours, theirs in _HUGGING_FACE:
            new = re.sub(ours, theirs, new)
        attention = "attention.self" if "swin" in kind else "attention.attention"
        new = new.replace("q_bias", "query.bias").replace("v_bias", "value.bias")
        new = new.replace("cpb_mlp", "continuous_position_bias_mlp").replace(".attn.", f".{attention}.")
        if ".qkv." in new:
            before = new.split("qkv.")[0]
            parts = split_qkv(new, tensor, *(f"{before}{part}" for part in ("query", "key", "value")))
            made |= under(f"{kind}.", parts)
        else:
            made[f"{kind}.{new}"] = tensor
    return made


def clip(state):
    """OpenAI's and open_clip's names of an image tower, with a projection in place of the head."""
    swaps = (
        ("patch_embed.proj", "conv1"),
        ("norm_pre", "ln_pre"),
        ("blocks.", "transformer.resblocks."),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        (".norm1", ".ln_1"),
        (".norm2", ".ln_2"),
    )
    made = {}
    for name, value in without(state, "head").items():
        new, tensor = name, value
        for ours, theirs in swaps:
            new = new.replace(ours, theirs)
        new = re.sub(r"^norm\.", "ln_post.", new)
        if name == "cls_token":
            new, tensor = "class_embedding", tensor[0, 0]
        elif name == "pos_embed":
            new, tensor = "positional_embedding", tensor[0]
        made[new] = tensor
    width = state["cls_token"].shape[-1]
    return made | {"proj": torch.ones(width, 6)}


def text_tower(width=6):
    return {
        "token_embedding.weight": torch.ones(9, width),
        "positional_embedding": torch.ones(7, width),
        "transformer.resblocks.0.ln_1.weight": torch.ones(width),
        "ln_final.weight": torch.ones(width),
        "text_projection": torch.ones(width, width),
        "logit_scale": torch.tensor(1.0),
    }


def deit3(state):
    """DeiT-III's original names of layer scales."""
    return {re.sub(r"\.ls(\d)\.gamma", r".gamma_\1", name): tensor for name, tensor in state.items()}


def swin_original(state):
    """Swin's original: patch merging at a stage's end, its tables and masks in the file, a plain head."""
    made = {}
    for name, tensor in state.items():
        new = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        made[new.replace("head.fc.", "head.")] = tensor
        if name.endswith("relative_position_bias_table"):
            before = name.removesuffix("relative_position_bias_table")
            made[before + "relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
            made[before.removesuffix("attn.") + "attn_mask"] = torch.zeros(4, 16, 16)
    return made


def dinov2(state):
    """DINOv2's original with registers: class token and position apart, a token for masked patches."""
    made = dict(without(state, "head"))
    made["register_tokens"] = made.pop("reg_token")
    first = torch.zeros_like(made["cls_token"])
    made["cls_token"] = made["cls_token"] - first
    made["pos_embed"] = torch.cat([first, made["pos_embed"]], dim=1)
    return made | {"mask_token": torch.zeros(1, first.shape[-1])}


def mae(state, classes=0):
    """MAE: pre-training with its decoder (no classes), or fine-tuned."""
    if classes:
        return state
    width = state["cls_token"].shape[-1]
    decoder = {
        "mask_token": torch.ones(1, 1, 8),
        "decoder_pos_embed": torch.ones(1, 17, 8),
        "decoder_embed.weight": torch.ones(8, width),
        "decoder_blocks.0.norm1.weight": torch.ones(8),
        "decoder_blocks.0.attn.qkv.weight": torch.ones(24, 8),
        "decoder_norm.weight": torch.ones(8),
        "decoder_pred.weight": torch.ones(192, 8),
    }
    return without(state, "head") | decoder


def jax_arrays(state, heads, prefix=""):
    """The arrays of Google's ViTs, ``.npz``: kernels transposed, heads apart."""
    made = {}

    def dense(weight):
        return weight.T.numpy()

    width = state["cls_token"].shape[-1] if "cls_token" in state else state["pos_embed"].shape[-1]
    if "cls_token" in state:
        made["cls"] = state["cls_token"].numpy()
    made["embedding/kernel"] = state["patch_embed.proj.weight"].permute(2, 3, 1, 0).numpy()
    made["embedding/bias"] = state["patch_embed.proj.bias"].numpy()
    made["Transformer/posembed_input/pos_embedding"] = state["pos_embed"].numpy()
    made["Transformer/encoder_norm/scale"] = state["norm.weight"].numpy()
    made["Transformer/encoder_norm/bias"] = state["norm.bias"].numpy()
    made["head/kernel"], made["head/bias"] = dense(state["head.weight"]), state["head.bias"].numpy()
    depth = len({n.split(".")[1] for n in state if n.startswith("blocks.")})
    for i in range(depth):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            made[f"{theirs}LayerNorm_{number}/scale"] = state[f"{ours}{norm}.weight"].numpy()
            made[f"{theirs}LayerNorm_{number}/bias"] = state[f"{ours}{norm}.bias"].numpy()
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        weights, biases = (state[f"{ours}attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias"))
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            made[f"{attention}{part}/kernel"] = dense(weight).reshape(width, heads, -1)
            made[f"{attention}{part}/bias"] = bias.reshape(heads, -1).numpy()
        out = dense(state[f"{ours}attn.proj.weight"])
        made[f"{attention}out/kernel"] = out.reshape(heads, -1, width)
        made[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"].numpy()
        for number in (1, 2):
            layer = f"{theirs}MlpBlock_3/Dense_{number - 1}/"
            made[f"{layer}kernel"] = dense(state[f"{ours}mlp.fc{number}.weight"])
            made[f"{layer}bias"] = state[f"{ours}mlp.fc{number}.bias"].numpy()
    return under(prefix, made)
