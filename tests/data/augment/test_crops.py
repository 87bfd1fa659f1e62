"Crops belong to the sample and follow torchvision"
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode

from mirage_nb.data.augment.crops import CropAugment, _crop_together, _draw_crops, crop_views
from mirage_nb.randomness import sample_key

# ------------------------------------------------------------------ augmentation


def test_crops_belong_to_the_sample_and_follow_torchvision():
    x = torch.randint(0, 256, (5, 3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    keys = torch.tensor([sample_key(2, i) for i in range(5)])
    settings = CropAugment(scale=(0.1, 1))
    out = crop_views({'image': x, 'key': keys}, settings, (32, 40))['image']
    d = _draw_crops(keys.tolist(), [(60, 90)]*5, settings)
    for i, box in enumerate(d.box.tolist()):
        alone = crop_views({'image': x[i:i + 1], 'key': keys[i:i + 1]}, settings, (32, 40))['image'][0]
        want = TF.resized_crop(x[i], *box, [32, 40], InterpolationMode.BICUBIC)
        assert torch.equal(alone, out[i])
        assert torch.equal(out[i], (want.flip(-1) if d.flip[i] else want)/255)
    apart = (_crop_together(x, d, (32, 40)) - 255*out).abs()  # as on a GPU
    assert apart.max() < 2.1 and apart.mean() < 0.1
    several = crop_views({'image': [x[0], x[1, :, :20]], 'key': keys[:2]}, settings, (32, 40))['image']
    assert torch.equal(several[0], out[0])
    with pytest.raises(TypeError, match="'image' is float32; augmentation takes uint8"):
        crop_views({'image': x/255, 'key': keys}, settings, (8, 8))
