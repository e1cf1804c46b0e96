"""Small networks for digits, and the widths and classes of all networks."""

from torch import nn

CLASSES = 10


def scale_width(width: int, scale: float) -> int:
    """Return the multiple of 8 nearest to a scaled width, and at least 8.

    Examples:
        >>> scale_width(64, 0.5), scale_width(16, 0.125)
        (32, 8)
    """
    return max(8, 8 * round(width * scale / 8))


def build_lenet() -> nn.Sequential:
    """Return LeNet-300-100 for images of 784 pixels."""
    return nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, CLASSES)
    )


def build_glorot_lenet() -> nn.Sequential:
    """Return LeNet-300-100 with Glorot normal weights and zero biases."""
    net = build_lenet()
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


def build_convolutions(side: int) -> nn.Sequential:
    """Return three convolutions and two linear layers.

    Args:
        side: Height and width of an image.
    """
    layers: list[nn.Module] = []
    first = 2 if side > 16 else 1
    for inputs, outputs, stride in ((1, 32, first), (32, 64, 2), (64, 64, 1)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(64 * (side // (2 * first)) ** 2, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, CLASSES))
