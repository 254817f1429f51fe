"""Networks for text: a small one, and a classifier on a pretrained encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from heptane.base.errors import check_range

NUMBERS = 1 << 15  # rows of the embedding; larger token numbers share them


def mean_of_tokens(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over the tokens of each text, without padding: (N, L, D) -> (N, D)."""
    mask = attention_mask[..., None].to(states)
    found: Tensor = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    return found


class TextNet(nn.Module):
    """The mean of the tokens' embeddings, a hidden layer with ReLU and dropout, and a head.

    Args:
        num_classes: number of outputs, 1 or more.
        width: of the embedding and the hidden layer, 1 or more.
        dropout: dropout probability, in [0, 1).

    Example:
        >>> import torch
        >>> ids = torch.tensor([[3, 5, 0], [4, 4, 4]])
        >>> TextNet(2)(ids, attention_mask=(ids > 0).long()).shape
        torch.Size([2, 2])

    Source: Joulin et al. 2017, "Bag of tricks for efficient text classification", arXiv:1607.01759 (without the hidden
    layer).
    """

    def __init__(self, num_classes: int, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        check_range("num_classes", num_classes, 1, whole=True)
        check_range("width", width, 1, whole=True)
        check_range("dropout", dropout, 0, 1, high_open=True)
        self.embedding = nn.Embedding(NUMBERS, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.hidden = nn.Linear(width, width)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        means = mean_of_tokens(self.embedding(input_ids % NUMBERS), attention_mask)
        out: Tensor = self.head(self.dropout(self.relu(self.hidden(means))))
        return out


class SentenceClassifier(nn.Module):
    """The mean of an encoder's outputs over the tokens, and a linear head."""

    def __init__(self, encoder: Any, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        out: Tensor = self.head(mean_of_tokens(states, attention_mask))
        return out
