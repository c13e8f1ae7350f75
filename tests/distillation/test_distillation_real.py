from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevision.data import open_dataset
from edgevision.distillation import DistillConfig, Distiller, open_teacher
from edgevision.models import create_model
from edgevision.preprocess import PRESETS


@pytest.mark.data
def test_a_real_teacher_knows_real_pictures_in_its_students_input(data_root: Path) -> None:
    """Folded, and fed through another normalisation and colour order, it still says what it is known to say."""
    weights = data_root / "weights" / "mobilenet_v2_imagenet.safetensors"
    teacher = open_teacher("mobilenet_v2", weights=weights, preprocess=PRESETS["imagenet"])
    mine = replace(PRESETS["imagenet"], color="BGR", mean=(0.0,) * 3, std=(0.5,) * 3)
    dataset = open_dataset(str(data_root / "imagenet-mini"))
    chosen = np.linspace(0, len(dataset) - 1, 12).astype(int).tolist()
    pictures = [dataset[index].image for index in chosen]
    images = torch.from_numpy(mine.batch(pictures))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = create_model("mobilenet_v2", width=0.25)
    config = DistillConfig(features=(("features.13", "features.13"),), channelwise=(("features.17", "features.17"),))
    made = Distiller(student, teacher, config, example=images[:1], preprocess=mine)
    taught = made.teach(images)
    with torch.inference_mode():
        own = teacher.network(torch.from_numpy(PRESETS["imagenet"].batch(pictures)))
    # logits reach about 20; float32 in another order, over 52 layers
    torch.testing.assert_close(taught.outputs, own.clone(), rtol=1e-3, atol=1e-2)
    labels = dataset.labels
    assert labels is not None
    assert float((taught.outputs.argmax(1).numpy() == labels[chosen]).mean()) >= 0.6  # 83% of all 500
    outputs, features = made.network(images[:2])
    loss = made.loss(outputs, features, made.teach(images[:2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(float(adapter.weight.grad.abs().sum()) > 0 for adapter in made.adapters)
