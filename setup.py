"Installs mirage_nb; the facts come from settings.ini, the exact versions of a tested set-up from requirements.lock."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0',
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires=f">={cfg['min_python']}",
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split() for k in ('dev', 'scanners', 'onnx')},
    # the manifests and notebooks lie at the top level for people, and inside the package for an installed copy
    packages=[*find_packages(include=['mirage_nb*']), 'mirage_nb.data_manifests', 'mirage_nb.nbs'],
    package_dir={'mirage_nb.data_manifests': 'data_manifests', 'mirage_nb.nbs': 'nbs'},
    package_data={'mirage_nb': ['weights/*'], 'mirage_nb.report': ['*.html', '*.css'],
                  'mirage_nb.data_manifests': ['*.toml', '*.json', '*/*.toml', '*/*.json'],
                  'mirage_nb.nbs': ['[3-9]*.ipynb']},
    zip_safe=False)
