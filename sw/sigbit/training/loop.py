"""The training loop: stages, seeds, checkpoints that continue exactly, and several processes of ``torchrun``.

Every random choice follows from the seed, the stage and the epoch, so a run that was interrupted and continued gives
the weights of one that was not. Several processes compute one step together: each takes its share of the batch, and
gradients are averaged.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sigbit_sim.golden.network import IntegerNetwork
from torch import Tensor, distributed
from torch.nn import functional

from ..graph import Graph
from ..passes import lower
from .network import FloatNetwork, QatNetwork, TrainingError, prepare_qat, term_masks
from .recipe import Recipe, Stage

__all__ = ["Team", "train"]

_CHECKPOINT = "checkpoint.pt"
_LOG = "log.jsonl"


class Team:
    """The processes that train together, as ``torchrun`` starts them; one alone without it.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def __enter__(self) -> "Team":
        if self.size > 1:
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, *_: object) -> None:
        if self.size > 1:
            distributed.destroy_process_group()

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their averages over all processes."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)
                tensor /= self.size


class _Batches:
    """Batches of one epoch, moved and mirrored; uint8 images ``(n, height, width[, channels])`` stay as they are."""

    def __init__(self, recipe: Recipe, images: np.ndarray, labels: np.ndarray, team: Team) -> None:
        if images.dtype != np.uint8:
            raise TrainingError(f"Training images must be uint8, not {images.dtype}")
        pixels = images[..., np.newaxis] if images.ndim == 3 else images
        self._images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        self._labels = torch.from_numpy(labels)
        self._recipe, self._team = recipe, team
        self._mean, self._std = (
            torch.tensor(values, device=team.device).reshape(-1, 1, 1) for values in (recipe.mean, recipe.std)
        )

    def __len__(self) -> int:
        return len(self._images) // self._recipe.batch

    def epoch(self, *seed: int):
        recipe, team = self._recipe, self._team
        order = np.random.default_rng((recipe.seed, *seed)).permutation(len(self._images))
        random = np.random.default_rng((recipe.seed, *seed, team.rank))
        for step in range(len(self)):
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch][team.rank :: team.size]
            images, labels = self._images[chosen], self._labels[chosen]
            if recipe.crop:
                images = _moved(images, random.integers(0, 2 * recipe.crop + 1, (len(chosen), 2)), recipe.crop)
            if recipe.flip:
                mirrored = torch.from_numpy(random.random(len(chosen)) < 0.5)
                images = torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(3), images)
            values = images.to(team.device).float() / recipe.scale
            yield (values - self._mean) / self._std, labels.to(team.device)


def _moved(images: Tensor, offsets: np.ndarray, margin: int) -> Tensor:
    """Every image cut out of one with a black margin."""
    padded = functional.pad(images, (margin,) * 4)
    height, width = images.shape[2:]
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    )


def _loss(recipe: Recipe, logits: Tensor, labels: Tensor, teacher: FloatNetwork, images: Tensor) -> Tensor:
    share, heat = recipe.distillation, recipe.temperature
    loss = logits.new_zeros(())
    if share < 1:
        loss = loss + (1 - share) * functional.cross_entropy(logits, labels)
    if share > 0:
        wanted = functional.log_softmax(teacher(images) / heat, 1)
        found = functional.log_softmax(logits / heat, 1)
        divergence = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        loss = loss + share * heat**2 * divergence
    return loss


def _groups(network: QatNetwork, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by their share of the learning rate."""
    groups: dict[float, list] = {}
    for name, parameter in network.named_parameters():
        share = 1.0
        if name.endswith("unit.logarithm"):
            share = recipe.unit_rate
        elif name.endswith("codebook"):
            share = recipe.level_rate
        groups.setdefault(share, []).append(parameter)
    return [{"params": parameters, "share": share} for share, parameters in groups.items()]


def _rate(recipe: Recipe, stage: Stage, done: float) -> float:
    """Learning rate at a share of the steps of a stage: a rise, then a cosine."""
    if done < recipe.warmup:
        return stage.learning_rate * done / recipe.warmup
    return stage.learning_rate * (1 + math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup))) / 2


def _write(path: Path, save: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(text: str, path: Path) -> None:
    path.write_text(text)


@torch.no_grad()
def _accuracy(network: QatNetwork, images: np.ndarray, labels: np.ndarray, device: torch.device) -> float:
    network.eval()
    right = 0
    for start in range(0, len(images), 256):
        logits = network(torch.from_numpy(images[start : start + 256]).to(device))
        right += int((logits.argmax(1).cpu().numpy() == labels[start : start + 256]).sum())
    network.train()
    return right / len(images)


def train(
    model: Graph,
    recipe: Recipe,
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | Path,
    *,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    resume: bool = False,
    team: Team | None = None,
    progress: Callable = lambda *arguments: None,
) -> tuple[IntegerNetwork, list[dict[str, Any]]]:
    """Train a float model to be quantized; ``folder`` gets ``checkpoint.pt``, ``log.jsonl`` and ``network.npz``.

    Parameters
    ----------
    model : Graph
        The trained float model.
    images, labels : uint8 ``(n, height, width[, channels])`` and int ``(n,)``
    test : float32 images as the model takes them, and labels, optional
        Looked at after every epoch, for the log alone.
    resume : bool
        Continue after the last epoch that ``folder`` has a checkpoint of; the result is that of a run in one go.
    team : Team, optional
    progress : callable
        Called with text, or with text, number done and total.

    Returns
    -------
    network : IntegerNetwork
    log : list of dict
        ``stage``, ``epoch``, ``steps``, ``loss``, ``accuracy`` (of the fake-quantized module; None without ``test``)
        and ``seconds`` of every epoch.

    Raises
    ------
    :exc:`~sigbit_hw.spec.errors.SigbitError`
        If model, recipe, data or checkpoint do not fit.
    """
    team = team or Team()
    folder = Path(folder)
    torch.manual_seed(recipe.seed)
    if recipe.batch % team.size:
        raise TrainingError(f"batch {recipe.batch} cannot be shared by {team.size} processes")
    batches = _Batches(recipe, images, labels, team)
    if not len(batches):
        raise TrainingError(f"{len(images)} training images are less than one batch of {recipe.batch}")
    first = batches._images[: recipe.calibration].float() / recipe.scale
    calibration = ((first - batches._mean.cpu()) / batches._std.cpu()).numpy()
    graph = lower(model)
    teacher = FloatNetwork(graph).to(team.device)
    state: dict[str, Any] = {"stage": 0, "epoch": 0, "log": []}
    if resume:
        state = _checkpoint(folder / _CHECKPOINT, recipe)
    elif team.leads:
        folder.mkdir(parents=True, exist_ok=True)
    log: list[dict[str, Any]] = state["log"]
    network = None
    for index in range(state["stage"], len(recipe.stages)):
        stage = recipe.stages[index]
        template = folder / f"stage{index}.npz"
        masks = {name: tuple(mask) for name, mask in (stage.masks or recipe.masks).items()}
        if index == state["stage"] and "model" in state:
            loaded = IntegerNetwork.load(template)
            network = QatNetwork(graph, loaded, recipe.units, term_masks(loaded, masks), recipe.normalize)
            try:
                network.load_state_dict(state["model"])
            except RuntimeError as error:
                raise TrainingError(
                    f"{folder / _CHECKPOINT} has other parameters than this version trains; leave out --resume"
                ) from error
        else:
            progress(f"stage {index + 1} of {len(recipe.stages)}: quantizing")
            options = {**recipe.quantization, **stage.quantization}
            start = graph if network is None else network.trained_graph()
            network = prepare_qat(
                start, calibration, units=recipe.units, masks=masks, normalize=recipe.normalize, **options
            )
            if team.leads:
                network.template.save(template)
        network.to(team.device).train()
        optimizer = torch.optim.Adam(_groups(network, recipe), lr=stage.learning_rate, betas=(0.9, 0.99))
        if index == state["stage"] and "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        total = max(1, round(stage.epochs * len(batches)))
        for epoch in range(state["epoch"] if index == state["stage"] else 0, -(-total // len(batches))):
            row = _epoch(network, teacher, optimizer, batches, recipe, index, epoch, total, team, progress)
            if test is not None:
                row["accuracy"] = _accuracy(network, *test, team.device)
            log.append(row)
            if team.leads:
                after = {"stage": index, "epoch": epoch + 1, "log": log, "recipe": asdict(recipe)}
                after |= {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
                _write(folder / _CHECKPOINT, partial(torch.save, after))
                lines = "".join(json.dumps(row) + "\n" for row in log)
                _write(folder / _LOG, partial(_write_text, lines))
            shown = "" if row["accuracy"] is None else f", accuracy {100 * row['accuracy']:.2f} %"
            progress(f"stage {index + 1}, epoch {epoch + 1}: loss {row['loss']:.4f}{shown}, {row['seconds']:.0f} s")
    assert network is not None
    exported = network.cpu().export()
    if team.leads:
        exported.save(folder / "network.npz")
    return exported, log


def _epoch(network, teacher, optimizer, batches, recipe, index, epoch, total, team, progress) -> dict[str, Any]:
    """One pass over the images, or what the stage still has of it."""
    stage, begin, losses = recipe.stages[index], time.perf_counter(), []
    steps = min(len(batches), total - epoch * len(batches))
    for step, (images, labels) in zip(range(steps), batches.epoch(index, epoch), strict=False):
        done = (epoch * len(batches) + step) / total
        if done >= 1 - recipe.freeze:
            network.freeze_units()
        network.anneal(min(done / recipe.anneal, 1) if recipe.anneal else 1)
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * _rate(recipe, stage, done)
        loss = _loss(recipe, network(images), labels, teacher, images)
        if not torch.isfinite(loss):
            raise TrainingError(f"The loss is {loss.item()} in stage {index + 1}, step {step + 1}; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        team.average([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
        optimizer.step()
        losses.append(loss.item())
        progress(f"stage {index + 1}, epoch {epoch + 1}", step + 1, steps)
    team.average([buffer for name, buffer in network.named_buffers() if "average" in name])
    return {
        "stage": index,
        "epoch": epoch,
        "steps": steps,
        "loss": float(np.mean(losses)),
        "accuracy": None,
        "seconds": time.perf_counter() - begin,
    }


def _checkpoint(path: Path, recipe: Recipe) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"There is no checkpoint {path} to resume; leave out --resume") from error
    except Exception as error:
        raise TrainingError(f"{path} is not a checkpoint of this program: {error}") from error
    if not isinstance(state, dict) or "recipe" not in state:
        raise TrainingError(f"{path} is not a checkpoint of this program")
    if state["recipe"] != asdict(recipe):
        was, now = state["recipe"], asdict(recipe)
        changed = ", ".join(key for key in now if was.get(key) != now[key])
        raise TrainingError(f"{path} was written with another recipe ({changed} differ); resume with the same one")
    return state
