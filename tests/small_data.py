"Write small phantoms into a folder, on which the notebooks' own checks take less: python tests/small_data.py FOLDER"
import sys
from pathlib import Path

from mirage_nb.phantoms.cxr import make_phantom_cxr
from mirage_nb.phantoms.oct import make_phantom_oct
from mirage_nb.phantoms.uwf import make_phantom_uwf


def write_small_data(folder):
    "Phantom_OCT, Phantom_CXR and Phantom_UWF with few patients and the usual sizes of images"
    make_phantom_oct(folder/'Phantom_OCT', patients=20, volumes=1, slices=2)
    make_phantom_cxr(folder/'Phantom_CXR', patients=40, films=1)
    make_phantom_uwf(folder/'Phantom_UWF', patients=25, pictures=1)


if __name__ == '__main__': write_small_data(Path(sys.argv[1]))
