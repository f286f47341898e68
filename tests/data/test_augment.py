import pytest
import torch
from torch.nn import functional

from flatminima.data import Dataset
from flatminima.data.augment import augmentation, check_augmentation, crop_flip


def pixels(count=12, size=9, channels=3):
    random = torch.Generator().manual_seed(2)
    shape = (count, channels, size, size + 2)
    return torch.randint(1, 256, shape, generator=random, dtype=torch.uint8)


def one_by_one(images, random, pad):
    """The twin: every image padded, cut out and mirrored by itself."""
    count, _, height, width = images.shape
    rows = torch.randint(2 * pad + 1, (count, 1), generator=random)
    columns = torch.randint(2 * pad + 1, (count, 1), generator=random)
    flips = torch.randint(2, (count, 1), generator=random)
    results = []
    for image, row, column, flip in zip(images, rows, columns, flips, strict=True):
        padded = functional.pad(image, (pad, pad, pad, pad))
        cut = padded[:, int(row) : int(row) + height, int(column) : int(column) + width]
        results.append(cut.flip(2) if flip else cut)
    return torch.stack(results)


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_is_what_its_images_are_one_by_one(pad, dtype):
    images = pixels().to(dtype)
    changed = crop_flip(images, torch.Generator().manual_seed(7), pad=pad)
    expected = one_by_one(images, torch.Generator().manual_seed(7), pad)
    torch.testing.assert_close(changed, expected, rtol=0, atol=0)


def test_shifts_and_flips_are_spread_over_all_there_are():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 3] = 1  # neither in the middle nor near an edge: says both shift and flip
    changed = crop_flip(image.expand(20_000, 1, 9, 9), torch.Generator().manual_seed(0), pad=2)
    assert int(changed.sum()) == 20_000
    row, column = changed[:, 0].nonzero()[:, 1:].T
    rows = torch.bincount(row, minlength=9)
    assert rows.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    # 4,000 expected in each row; six standard deviations of a binomial are 340.
    assert int((rows[2:7] - 4000).abs().max()) < 340
    # Columns 3 + shift, and 5 + shift where mirrored: 1 to 5 and 3 to 7, the common ones twice.
    columns = torch.bincount(column, minlength=9)
    expected = torch.tensor([0, 2000, 2000, 4000, 4000, 4000, 2000, 2000, 0])
    assert int((columns - expected).abs().max()) < 340


def test_outside_an_image_is_black_before_normalisation():
    data = Dataset(
        torch.full((4, 1, 6, 6), 255, dtype=torch.uint8),
        torch.arange(4),
        mean=[0.5],
        std=[0.25],
    )
    change = augmentation("crop_flip", torch.Generator().manual_seed(0))
    images, labels = data.batch(torch.arange(4), change=change)
    assert sorted(set(images.flatten().tolist())) == [-2.0, 2.0]
    torch.testing.assert_close(labels, torch.arange(4))
    # What is measured is not augmented.
    assert set(data.batch(slice(0, 4))[0].flatten().tolist()) == {2.0}


def test_nothing_is_done_unless_asked_for():
    assert augmentation("none", torch.Generator()) is None
    check_augmentation("none", Dataset(torch.zeros(3, 2), torch.arange(3)))


def test_refuses_what_is_not_images():
    with pytest.raises(ValueError, match=r"expected images .* got \[1, 2\] from custom; set"):
        check_augmentation("crop_flip", Dataset(torch.zeros(3, 2), torch.arange(3)))
