"""Ten real digits, so that there is an image to look at without a download.

They are the first of each class in the training part of Optical Recognition of Handwritten Digits, E. Alpaydin and
C. Kaynak (1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0, by way of
scikit-learn: 8×8 pixels of 0 to 16, row by row, a letter each.
"""

import torch
from torch import Tensor

_LEVELS = "0123456789abcdefg"
_PIXELS = (
    "005d910000dfaf5003f20b8004c008800580098004b01c7002e5ac00006da000",
    "000cd500000bg900003fg60007fgg200001gg300001gg600001gg600000bga00",
    "0004fc00003gfe00008d8g000016fb00018df10009gg500003dggb500003bg90",
    "007fd10008d6f400021dd000002fb1000001cc1000001a8000845e90007dd900",
    "0001b00000078000001d6220007f098005ga0g6004fgdg100003fa000002g400",
    "00ca000000egge0000dgfa1000bgg70000047g7000004g900054cg40009gga00",
    "000cd000005g800000dg300000ed000000fc720000dgdg30007gbf800019fb30",
    "0078dgf100774bc000008d100488ff6002bff400000g5000009f100000d50000",
    "009e810000ceec00009a0f40003gce20004gg20003g8ad2001f13g8000bgfb10",
    "00bc000002gggd0003gcae0001g1cf0000dg9f20000309b000009f40009cd300",
)


def image_of(digit: int) -> Tensor:
    """Return the image of a digit, (8, 8) in [0, 1]."""
    levels = [_LEVELS.index(letter) for letter in _PIXELS[digit]]
    return torch.tensor(levels, dtype=torch.float64).view(8, 8) / 16
