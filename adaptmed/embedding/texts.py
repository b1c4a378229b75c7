"""Texts of a bank, shard by shard through the frozen encoder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adaptmed.bank import Plan
from adaptmed.bank.layout import arrange_text, to_stored, vector_dtype
from adaptmed.bank.quantised import scale_name, stored_features
from adaptmed.bank.write import write_text_shard
from adaptmed.embedding.forward import place_on_device
from adaptmed.embedding.images import Progress, own_shards
from adaptmed.embedding.options import EmbedOptions
from adaptmed.runs.processes import Processes
from adaptmed.types import TextEncoder, TokenIds, Tokens


def _forward_text(encoder: TextEncoder, *inputs: Tensor, options: EmbedOptions) -> Tokens:
    device = place_on_device(encoder, options)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        return encoder(*(tensor.to(device, non_blocking=True) for tensor in inputs))


def _write_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    out: Path,
    plan: Plan,
    options: EmbedOptions,
    progress: Progress,
    processes: Processes,
) -> None:
    limit = options.max_tokens_of(encoder)
    pending, total = own_shards(out, "text", len(texts), plan, processes)
    done = total - sum(len(span) for _, span in pending)
    for number, span in pending:
        ids = encoder.tokenize([texts[item] for item in span], limit)
        write_text_shard(out, number, *_text_tokens(ids, encoder, options))
        done += len(span)
        progress("text", done, total)


def _text_tokens(
    ids: TokenIds, encoder: TextEncoder, options: EmbedOptions
) -> tuple[list[Tensor], list[Tensor], TokenIds, list[Tensor]]:
    """Encode one shard's texts, those of one length together so that little padding is computed.

    Returns:
        Values and pooled vector of each text as they are stored, the ids, and with int8 the scales of each text.
    """
    lengths = ids.valid.sum(dim=1)
    order = lengths.argsort(stable=True)
    values: list[Tensor] = []
    pooled: list[Tensor] = []
    scales: list[Tensor] = []
    for chunk in order.split(options.batch_size):
        longest = int(lengths[chunk].max())
        inputs = ids.input_ids[chunk, :longest], ids.valid[chunk, :longest]
        tokens = arrange_text(_forward_text(encoder, *inputs, options=options), options.layout)
        shown = tokens.values.masked_fill(~tokens.valid[..., None], 0)
        stored = stored_features("values", shown, options.dtype, over=(1,))
        values += stored["values"][tokens.valid.cpu()].split(tokens.valid.sum(dim=1).tolist())
        pooled += to_stored(tokens.pooled, vector_dtype(options.dtype)).cpu()
        scales += stored.get(scale_name("values"), [])
    back = order.argsort().tolist()
    return (
        [values[place] for place in back],
        [pooled[place] for place in back],
        ids,
        [scales[n] for n in back if scales],
    )
