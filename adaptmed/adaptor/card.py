"""The model card of a saved adaptor: what it is, what it belongs to, what was measured, what it is not for."""

from collections.abc import Mapping
from typing import Any

from adaptmed.adaptor.saving import AdaptorConfig

_CARD = """---
library_name: adaptmed
base_model:
{models}
base_model_relation: adapter
tags:
- medical-imaging
- parameter-efficient
---
# Adaptor for {names}

{what}: {trainable:,} trainable parameters
({share:.1f} % of the {frozen:,} frozen ones). The {encoders} not in this folder.

| encoder | fingerprint |
|---|---|
{fingerprints}

```python
from adaptmed import Adaptor

adaptor = Adaptor.from_pretrained("this-folder")
z = adaptor.embed_images(["image.png"])
```

## Measured

{measured}

## Not for

Clinical use. Numbers hold for the data they were measured on; judge it on your own patients, beside a linear probe on
the frozen encoder and beside the untrained adaptor.
"""


def model_card(config: AdaptorConfig, *, trainable_parameters: int, metrics: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        config: The saved adaptor's configuration.
        trainable_parameters: Parameters of the fusion.
        metrics: Name to number, printed as they are.
    """
    records = [record for record in (config.image, config.text) if record is not None]
    frozen, alone = sum(record.parameters for record in records), config.text is None
    rows = "\n".join(f"| {name} | {value} |" for name, value in metrics.items())
    return _CARD.format(
        models="\n".join(f"- {record.name}" for record in records),
        names=" and ".join(record.name for record in records),
        what="A fusion on one frozen image encoder" if alone else "A cross-modal fusion between two frozen encoders",
        encoders="encoder is" if alone else "encoders are",
        trainable=trainable_parameters,
        frozen=frozen,
        share=100 * trainable_parameters / max(frozen, 1),
        fingerprints="\n".join(f"| {record.name} | `{record.fingerprint}` |" for record in records),
        measured=f"| what | value |\n|---|---|\n{rows}" if rows else "Nothing yet.",
    )
