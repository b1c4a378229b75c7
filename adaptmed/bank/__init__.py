"""The bank: Tokens of a dataset on disk, written shard by shard, read memory-mapped; may be deleted without loss."""

from adaptmed.bank.format import BankInfo, Plan, StoredImages, StoredTexts, TokenSource
from adaptmed.bank.layout import DType, Layout
from adaptmed.bank.loader import BankLoader, epoch_batches, prefetched
from adaptmed.bank.read import Bank
from adaptmed.bank.shards import Shard, StoredTap
from adaptmed.bank.verify import verify

__all__ = [
    "Bank",
    "BankInfo",
    "BankLoader",
    "DType",
    "Layout",
    "Plan",
    "Shard",
    "StoredImages",
    "StoredTap",
    "StoredTexts",
    "TokenSource",
    "epoch_batches",
    "prefetched",
    "verify",
]
