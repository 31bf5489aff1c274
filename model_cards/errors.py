"""Errors of the card layer.

CardError                   a model cannot be understood; the message says what, got, allowed, next step
├── ModelNotFound           nothing at that path, no such preset, no such Hub id
├── ModelFileError          a file is truncated, corrupt, hostile or of a kind that is not supported
├── TokenizerError          a tokenizer cannot be built from the model's files
├── TemplateError           the chat template is broken, or raised (`raise_exception`) on these messages
└── DownloadError           the Hub could not be reached, refused, or the disk is full
"""

from __future__ import annotations


class CardError(Exception):
    """A model cannot be used; the message is for the user."""


class ModelNotFound(CardError):
    """Nothing is there."""


class ModelFileError(CardError):
    """A file is not what it should be."""


class TokenizerError(CardError):
    """No tokenizer can be built from what the model ships."""


class TemplateError(CardError):
    """The chat template is invalid or refused the messages."""


class DownloadError(CardError):
    """A download failed or is impossible (offline)."""
