"""The Adaptor: frozen encoders of images and texts, or of images alone, and the trainable fusion of their Tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptmed.adaptor.card import model_card
from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.adaptor.inputs import Images, Texts
from adaptmed.adaptor.records import records_of, require_same_sides
from adaptmed.adaptor.saving import (
    AdaptorConfig,
    fill_fusion,
    find_adaptor,
    library_versions,
    read_adaptor,
    write_adaptor,
)
from adaptmed.bank import Bank
from adaptmed.fusion import Fusion, build_fusion
from adaptmed.fusion.config import check_kind, from_json, fusion_config, to_json
from adaptmed.fusion.standardise import channel_statistics
from adaptmed.types import Fused, ImageEncoder, TextEncoder

if TYPE_CHECKING:
    from adaptmed.lora import LoRA


class Adaptor(nn.Module):
    """Two frozen encoders and the trainable fusion between their Tokens, or an image encoder and a fusion of its own.

    Build one with :meth:`from_encoders`, :meth:`from_bank` or :meth:`from_pretrained`. Without its encoders in memory
    an Adaptor works on Tokens, which is all that training from a bank needs.

    Args:
        fusion: The trainable part, as ``adaptmed.fusion.build_fusion`` makes it.
        encoders: The frozen part, with a text encoder exactly where the fusion reads texts.

    Raises:
        InputError: If one of the two reads texts and the other does not.

    Example:
        >>> adaptor = Adaptor.from_encoders("bundled:dinov2-small", "bundled:minilm-l6")  # doctest: +SKIP
        >>> fused = adaptor(images=["chest.png"], texts=["small left effusion"])  # doctest: +SKIP
    """

    def __init__(self, fusion: Fusion, encoders: FrozenEncoders) -> None:
        super().__init__()
        require_same_sides(fusion, encoders.text_record)
        self.fusion = fusion
        self.encoders = encoders

    @classmethod
    def from_encoders(
        cls,
        image: str | ImageEncoder,
        text: str | TextEncoder | None = None,
        *,
        fusion: str = "cross",
        width: int = 256,
        layers: int | None = None,
        heads: int = 4,
        layout: str = "grid8",
        faithful: bool = False,
        image_lora: "LoRA | None" = None,
        text_lora: "LoRA | None" = None,
    ) -> Self:
        """Put a fresh fusion on frozen encoders, in evaluation mode; call ``train()`` before training it.

        The fusion goes to the image encoder's device, and so does a text encoder that is an ``nn.Module``.

        Args:
            image: Name (``timm:…``, ``hf:…``, ``open_clip:…``, ``bundled:…``) or the encoder itself.
            text: Name or the encoder itself; ``None`` makes an adaptor of images alone.
            fusion: Kind of fusion: ``cross`` or ``co``.
            width: Width of the fusion and of the embeddings.
            layers: Layers: 2 of ``cross``, shared between the modalities, or 6 of ``co`` per modality when left out.
            heads: Attention heads.
            layout: How image Tokens are laid out before the fusion: ``gridN``, ``all`` or ``pooled``.
            faithful: Arrange ``cross`` as its paper's released code does: pooled vectors through two 768-wide layers
                with 12 heads; then ``width``, ``layers`` and ``heads`` have no say.
            image_lora: Fresh LoRA inside the image encoder.
            text_lora: Fresh LoRA inside the text encoder.

        Raises:
            InputError: If a name, the kind of fusion, a size or a role of LoRA is not one there is, or ``text_lora`` or
                ``faithful`` is given without a text encoder.
        """
        check_kind(fusion, faithful=faithful)
        encoders = FrozenEncoders.of(image, text, layout)
        if image_lora is not None:
            encoders.attach_lora("image", image_lora)
        if text_lora is not None:
            encoders.attach_lora("text", text_lora)
        tokens = encoders.example_image_tokens()
        shape = fusion_config(
            fusion,
            encoders.widths,
            grid=tokens.grid or (1, 1),
            prefix=tokens.prefix,
            faithful=faithful,
            width=width,
            layers=layers,
            heads=heads,
        )
        return cls(build_fusion(shape), encoders).to(tokens.values.device).eval()

    @classmethod
    def from_bank(
        cls,
        bank: Bank,
        *,
        fusion: str = "cross",
        width: int = 256,
        layers: int | None = None,
        heads: int = 4,
        dropout: float = 0.1,
        faithful: bool = False,
    ) -> Self:
        """Put a fresh fusion on the encoders a bank was made with, without loading them.

        Args:
            bank: Holds Tokens of images and of texts, or of images alone: the adaptor then reads no texts either.
            fusion: Kind of fusion: ``cross`` or ``co``.
            width: Width of the fusion and of the embeddings.
            layers: Layers: 2 of ``cross``, shared between the modalities, or 6 of ``co`` per modality when left out.
            heads: Attention heads.
            dropout: Dropout inside the fusion during training.
            faithful: The released arrangement, as in :meth:`from_encoders`.

        Raises:
            BankError: If the bank holds no images.
            InputError: If ``faithful`` is asked of a bank without texts, or a size is not one there is.
        """
        encoders = FrozenEncoders(*records_of(bank), bank.info.layout)
        grid, prefix = bank.images.grid, bank.images.prefix
        sizes = {"width": width, "layers": layers, "heads": heads, "dropout": dropout}
        shape = fusion_config(fusion, encoders.widths, grid=grid, prefix=prefix, faithful=faithful, **sizes)
        encoders.find_lora(bank.folder)
        return cls(build_fusion(shape), encoders)

    def standardise(self, bank: Bank, rows: NDArray[np.int64], *, most: int = 2048) -> None:
        """Fit the fusion's input statistics per channel on rows of a bank; the released arrangement has none.

        Args:
            bank: The Tokens this adaptor will be trained on. Texts that it lacks keep statistics that change nothing.
            rows: Training rows; at most ``most`` of them, evenly spread, are read.
            most: Rows that are read.
        """
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        for side, layer in self.fusion.standardisers.items():
            if side == "text" and not bank.holds_texts:
                continue
            read = bank.image_tokens if side == "image" else bank.text_tokens
            layer.fit(*channel_statistics(read, rows))

    @property
    def width(self) -> int:
        """Width of both embeddings."""
        return self.fusion.width

    def forward(self, images: Images | None = None, texts: Texts | None = None) -> Fused:
        """Encode and fuse pairs; either side may be missing.

        Args:
            images: Tokens, normalised pixels, or a list of files, of Pillow images or of arrays (height, width[, 3]).
            texts: Tokens or a list of strings.

        Raises:
            InputError: If both sides are missing, their lengths differ, an encoder is needed and not loaded, or texts
                are given to an adaptor of images alone.
        """
        return self.fusion(
            None if images is None else self.encoders.image_tokens(images, self._device()),
            None if texts is None else self.encoders.text_tokens(texts, self._device()),
        )

    def embed_images(self, images: Images) -> Float[Tensor, "batch width"]:
        """Embed images alone: L2-normalised, comparable with :meth:`embed_texts`."""
        return self.fusion.embed_image(self.encoders.image_tokens(images, self._device()))

    def embed_texts(self, texts: Texts) -> Float[Tensor, "batch width"]:
        """Embed texts alone: L2-normalised, comparable with :meth:`embed_images`.

        Raises:
            InputError: If it is an adaptor of images alone, or the text encoder is needed and not loaded.
        """
        return self.fusion.embed_text(self.encoders.text_tokens(texts, self._device()))

    def load_encoders(self) -> Self:
        """Load the frozen encoders by their recorded names, unless they are there, and check their fingerprints.

        Raises:
            FingerprintError: If the weights found are not those this adaptor was trained with.
        """
        self.encoders.load().to(self._device())
        return self

    def merge_lora(self) -> Self:
        """Add LoRA to the encoders' weights: their modules are then the libraries' plain ones, with the same features.

        A merged adaptor cannot be saved; :meth:`unmerge_lora` puts every weight back bit for bit.
        """
        self.encoders.merge_lora()
        return self

    def unmerge_lora(self) -> Self:
        """Undo :meth:`merge_lora`."""
        self.encoders.unmerge_lora()
        return self

    def print_trainable_parameters(self) -> None:
        """Print trainable and frozen parameter counts in PEFT's format."""
        trainable = trainable_parameters(self.fusion) + sum(p.numel() for p in self.encoders.lora_parameters())
        every = trainable + self.encoders.parameters_count
        print(f"trainable params: {trainable:,} || all params: {every:,} || trainable%: {100 * trainable / every:.4f}")

    def config(self, labels: Sequence[str] = ()) -> AdaptorConfig:
        """Everything about this adaptor that is not a tensor."""
        return AdaptorConfig(
            versions=library_versions(),
            fusion=to_json(self.fusion.config),
            image=self.encoders.current_record("image"),
            text=self.encoders.current_record("text") if self.fusion.reads_texts else None,
            layout=self.encoders.layout,
            labels=tuple(labels),
        )

    def save_pretrained(
        self, folder: str | Path, *, metrics: Mapping[str, Any] | None = None, labels: Sequence[str] = ()
    ) -> None:
        """Write the fusion, LoRA in peft's own layout, the records of the encoders and a card; never a frozen weight.

        Args:
            folder: Written whole or not at all; an earlier saved adaptor there is replaced.
            metrics: Written to ``metrics.json``; numbers must be finite or None.
            labels: Names of the labels it was judged on.

        Raises:
            InputError: If ``folder`` is a file or holds other files, or a metric is not finite.
        """
        config = self.config(labels)
        card = model_card(config, trainable_parameters=trainable_parameters(self.fusion), metrics=metrics or {})
        tensors, write_lora = self.fusion.state_dict(), self.encoders.save_lora
        write_adaptor(Path(folder), config, tensors, metrics=metrics or {}, card=card, write_lora=write_lora)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        image_encoder: ImageEncoder | None = None,
        text_encoder: TextEncoder | None = None,
        load_encoders: bool = True,
    ) -> Self:
        """Read a saved adaptor and the frozen encoders it belongs to.

        Args:
            folder: A saved adaptor, or a run folder that holds one.
            image_encoder: Use this one instead of loading it by name.
            text_encoder: Use this one instead of loading it by name.
            load_encoders: False leaves the encoders on disk; the adaptor then works on Tokens.

        Raises:
            InputError: If there is no saved adaptor, it is damaged or of another kind, or ``text_encoder`` is given and
                it reads images alone.
            FingerprintError: If an encoder's weights are not those it was trained with; both values are named.
        """
        config, tensors = read_adaptor(Path(folder))
        fusion = build_fusion(from_json(config.fusion))
        fill_fusion(fusion, tensors, str(folder))
        encoders = FrozenEncoders(config.image, config.text, config.layout)
        if text_encoder is not None:
            encoders.record_of("text", "text_encoder")
        encoders.image, encoders.text = image_encoder, text_encoder
        encoders.find_lora(find_adaptor(Path(folder)))
        adaptor = cls(fusion, encoders).eval()
        return adaptor.load_encoders() if load_encoders else adaptor

    def _device(self) -> torch.device:
        return next(self.fusion.parameters()).device


def trainable_parameters(module: nn.Module) -> int:
    """Number of parameters of ``module`` that training changes."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
