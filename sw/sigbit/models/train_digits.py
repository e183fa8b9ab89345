"""Train the small CNN that the project ships, and write ``digits.onnx`` and ``digits.npz`` beside this script.

Data: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998;
CC BY 4.0), as ``sklearn.datasets.load_digits`` ships it: 1797 grey images of 8x8 pixels, values 0 to 16. A seeded
permutation sets 400 images aside for testing; they are never trained on, and nothing is chosen by them.

Needs ``torch==2.13.0``, ``scikit-learn``, ``onnx`` and ``numpy``; everybody else needs only the two files it writes:
``x_test`` (uint8, 400x8x8), ``y_test``, and ``x_calibration`` (128 training images). Takes about a minute.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

__all__ = ["MEAN", "SCALE", "STD", "DigitsNet", "main"]

SEED = 2026
TEST_IMAGES = 400
CALIBRATION_IMAGES = 128
#: Input of the network: ``(x / SCALE - MEAN) / STD``. Kept non-negative, so that the input is unsigned.
SCALE, MEAN, STD = 16.0, 0.0, 1.0


class DigitsNet(nn.Sequential):
    """Three 3x3 convolutions with batch normalization, one max pool, one average pool, two linear layers."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def _shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixels in both directions."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, r : r + 8, c : c + 8] for image, (r, c) in zip(padded, offsets, strict=True)])


def main(epochs: int, folder: Path) -> None:
    """Train, test once, export."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    order = np.random.default_rng(SEED).permutation(len(images))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    x = ((torch.from_numpy(images[train]).float() / SCALE - MEAN) / STD)[:, None]
    y = torch.from_numpy(digits.target[train])

    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            loss = loss_of(model(_shift(x[batch], generator)), y[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(x):.4f}", flush=True)

    model.eval()
    x_test = ((torch.from_numpy(images[test]).float() / SCALE - MEAN) / STD)[:, None]
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1).numpy() == digits.target[test]).mean()
    print(f"test accuracy on {TEST_IMAGES} images: {accuracy:.4f}")

    torch.onnx.export(
        model,
        (x_test[:1],),
        str(folder / "digits.onnx"),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamo=False,
    )
    np.savez_compressed(
        folder / "digits.npz",
        x_test=images[test],
        y_test=digits.target[test].astype(np.uint8),
        x_calibration=images[train[:CALIBRATION_IMAGES]],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where to write both files")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.folder)
