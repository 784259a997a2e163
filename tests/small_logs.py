"""Lines of a made-up run's log."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

MakeRun = Callable[..., Path]


def training_lines(steps: int, epoch_steps: int = 4) -> list[dict[str, Any]]:
    """Every kind of metric that steps have."""
    return [
        {
            "step": step,
            "epoch": step / epoch_steps,
            "loss": 9 - 0.01 * step,
            "fgr": 0.7,
            "i2t_accuracy": 0.25,
            "learning_rate": 1e-4 * step,
            "queue_fill": 0.5,
            "broken_records": 0,
            "pairs_per_second": 180.0,
            "data_wait_share": 0.125,
        }
        for step in range(1, steps + 1)
    ]


def gradient_values(step: int) -> dict[str, float]:
    """What two terms weigh at a step: one reaches the features, the other only the text tower."""
    features = {"tgd": 0.5, "mlm": 0.0, "loss": 0.5}
    tower = {"tgd": 2.0 * step, "mlm": 30.0, "loss": 31.0}
    parts = {"text_features": features, "text_tower": tower}
    return {f"gradient/{term}/{part}": norm for part, norms in parts.items() for term, norm in norms.items()}


def evaluation_line(step: int, recall: float, split: str = "validation") -> dict[str, Any]:
    names = [f"{way}_r{cutoff}" for way in ("i2t", "t2i") for cutoff in (1, 5, 10)] + ["mean"]
    stages = {"dual": recall, "reranked": recall + 5, "chance": 1.0}
    return {"step": step} | {f"{split}/{stage}/{name}": value for stage, value in stages.items() for name in names}
