"""Linear layers stored as two factors, W = B A. A model folder with such layers carries this file as its own code."""

from torch import Tensor, empty, nn


class Factors(nn.Module):
    """y = B (A x) + bias, with A [R, K] as `weight_a` and B [N, R] as `weight_b`."""

    def __init__(self, rows: int, columns: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, rows
        self.weight_a = nn.Parameter(empty(rank, columns))
        self.weight_b = nn.Parameter(empty(rows, rank))
        self.bias = nn.Parameter(empty(rows)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.weight_a), self.weight_b, self.bias)


def install(model: nn.Module, ranks: dict[str, int], center: bool) -> None:
    """Put factors of rank `ranks[name]` in place of the linear layer `name`; with a bias if it had one, or `center`."""
    for name, rank in ranks.items():
        old = model.get_submodule(name)
        assert isinstance(old, nn.Linear), f"{name} is no linear layer"
        model.set_submodule(name, Factors(old.out_features, old.in_features, rank, center or old.bias is not None))
