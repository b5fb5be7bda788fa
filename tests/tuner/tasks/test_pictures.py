"""Tasks of small models of images: timm with a checkpoint, transformers with its processor."""

from __future__ import annotations

import pytest
import torch
from shim import torchvision
from small_models import pictures

from attnpass import Capture
from attnpass.batch import call
from attnpass.errors import TaskError
from attnpass.task import load_task
from attnpass.tuner.measure import scores, try_task
from attnpass.tuner.search.leaks import refuse_leaks
from attnpass.tuner.tasks import complete, described
from attnpass.tuner.tasks.pictures import ImageBatches, Images

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torchvision()
    return pictures(tmp_path_factory.mktemp("images") / "all", CLASSES, 24)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torchvision()
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    path = tmp_path_factory.mktemp("timm") / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


def test_a_model_of_timm_and_a_folder_of_images(folder, checkpoint):
    text = f"timm:test_vit,checkpoint={checkpoint}?data=imagefolder:{folder}&batch=4"
    task = try_task(load_task(text))
    refuse_leaks(task, learns=True)
    (x,), target = task.validation[0]
    assert x.shape[1:] == (3, 160, 160) and x.dtype == torch.float32
    assert len(task.example[0]) == 4 and set(target.tolist()) <= {0, 1, 2}
    capture = call(Capture(task.model).trace, task.example)
    assert [s.name for s in capture.sites][0] == "blocks.0.attn"
    got = scores(task, capture, range(len(task.validation)))
    assert len(got.main) == 54 and 0 <= got.main.mean() <= 1
    found = complete(described(text))[1]
    assert (found.kind, found.metric, found.label) == ("image-classification", "accuracy", "label")


def test_a_model_of_transformers_with_its_processor(folder, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    names = {
        "label2id": {n: i for i, n in enumerate(CLASSES)},
        "id2label": dict(enumerate(CLASSES)),
    }
    config = ViTConfig(**sizes, intermediate_size=64, image_size=32, patch_size=8, **names)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    task = try_task(load_task(f"hf:{tmp_path}?data={folder}&dtype=bfloat16"))
    batch, _ = task.validation[0]
    assert batch["pixel_values"].shape[1:] == (3, 32, 32)
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert len(call(Capture(task.model).trace, task.example).sites) == 2


def test_images_are_read_when_needed_and_kept(folder):
    files = [str(x) for x in sorted(folder.rglob("*.png"))[:5]]
    reads = []

    def prepare(picture):
        reads.append(picture.size)
        return torch.zeros(3, 2, 2)

    batches = ImageBatches(Images(files, prepare), 2, lambda x: (x,), torch.arange(5))
    assert len(batches) == 3 and not reads
    sizes = [(len(x), y.tolist()) for (x,), y in batches]
    assert sizes == [(2, [0, 1]), (2, [2, 3]), (1, [4])]
    assert batches[-1][1].tolist() == [4] and len(reads) == 5


def test_what_does_not_fit_is_said(folder, checkpoint, tmp_path):
    with pytest.raises(TaskError, match="expected a model no_such_model of timm"):
        load_task(f"timm:no_such_model,checkpoint={checkpoint}?data={folder}")
    with pytest.raises(TaskError, match="expected timm:test_vit for image-classification, got em"):
        load_task(f"timm:test_vit,checkpoint={checkpoint}?data={folder}&kind=embedding")
    broken = pictures(tmp_path / "broken", CLASSES, 24)
    for file in broken.rglob("1*.png"):
        file.write_text(f"no image {file}")
    with pytest.raises(TaskError, match="expected an image at"):
        list(load_task(f"timm:test_vit,checkpoint={checkpoint}?data={broken}").validation)
