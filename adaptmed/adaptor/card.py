"""The model card of a saved adaptor: what it is, what it belongs to, what was measured, what it is not for."""

from collections.abc import Mapping
from typing import Any

from adaptmed.adaptor.saving import AdaptorConfig

_CARD = """---
library_name: adaptmed
base_model:
- {image}
- {text}
base_model_relation: adapter
tags:
- medical-imaging
- parameter-efficient
---
# Adaptor for {image} and {text}

A cross-modal fusion between two frozen encoders: {trainable:,} trainable parameters
({share:.1f} % of the {frozen:,} frozen ones). The encoders are not in this folder.

| encoder | fingerprint |
|---|---|
| {image} | `{image_fingerprint}` |
| {text} | `{text_fingerprint}` |

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
    frozen = config.image.parameters + config.text.parameters
    rows = "\n".join(f"| {name} | {value} |" for name, value in metrics.items())
    return _CARD.format(
        image=config.image.name,
        text=config.text.name,
        trainable=trainable_parameters,
        frozen=frozen,
        share=100 * trainable_parameters / max(frozen, 1),
        image_fingerprint=config.image.fingerprint,
        text_fingerprint=config.text.fingerprint,
        measured=f"| what | value |\n|---|---|\n{rows}" if rows else "Nothing yet.",
    )
