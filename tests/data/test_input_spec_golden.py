"What an encoder sees of an image equals the recorded numbers"
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from mirage_nb.data.files import _to_channels
from mirage_nb.data.input_spec import InputSpec, eval_image

UWF_MEAN, UWF_STD = (0.5723625, 0.34657937, 0.2374997), (0.21822436, 0.19240488, 0.17723322)


def close(a, b, rtol=1e-4): torch.testing.assert_close(a, b, rtol=rtol, atol=rtol*float(b.abs().mean()))


def test_evaluation_image_of_the_classifier(golden):
    t = load_file(golden/'preprocessing.safetensors')
    raw = Image.fromarray(t['cls.raw_rgb'].numpy())
    name = next(k for k in t if k.startswith('cls.gray_'))
    side = int(name.split('_')[-1])
    grey = np.asarray(_to_channels(raw, 1, 'raw'))[..., None]
    close(eval_image(grey, InputSpec(size=(side, side))), t[name])


def test_evaluation_image_of_ultra_widefield(golden):
    t = load_file(golden/'preprocessing.safetensors')
    name = next(k for k in t if k.startswith('uwf.eval_'))
    side = int(name.split('_')[-1])
    spec = InputSpec('image', 3, (side, side), UWF_MEAN, UWF_STD, eval_crop=0.875, augmentation='photo')
    ours = eval_image(t['uwf.raw_rgb'].numpy(), spec)
    torch.testing.assert_close(ours, t[name].float(), rtol=1e-3, atol=2e-3)  # recorded in half precision
