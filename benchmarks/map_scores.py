"""Score the relevance maps of a fine-tuned classifier on test images, beside random and centre-biased maps.

    python -m benchmarks.map_scores RUN [dataset=NAME] [methods=a,b] [images=96] [replace=mean] [cell=16]

RUN is the folder of a finished 31_cls_tune. The class of each image is explained where it is predicted correctly.
Prints the ranking as a table of Markdown, then the verdicts and the time; figures go to map_scores/ below the run.
"""
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import classes_of, dataset_dir, read_manifest
from mirage_nb.explain.class_masks import class_masks, parse_class_masks
from mirage_nb.explain.map_ranking import compare_with_references, randomisation_summary, rank_maps, ranking_table
from mirage_nb.explain.map_scores import ExplainedImages, ScoreOptions, score_maps
from mirage_nb.explain.map_verdicts import map_verdicts
from mirage_nb.explain.methods import methods_for, relevance_maps
from mirage_nb.figures.explain_scores import show_cascade, show_map_curves, show_map_ranking
from mirage_nb.tasks.ensemble import Member


def test_images(member, dataset, most):
    "Images of the test split whose label the model knows, evenly over the table, with their masks"
    manifest = read_manifest(dataset)
    table = load_labelled(manifest).splits['test']
    table = table[table.label.isin(member.classes)].reset_index(drop=True)
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(most, len(table))).astype(int))]
    samples = member.images(table)
    x = {member.spec.modality: torch.stack([samples[i][member.spec.modality] for i in range(len(table))])}
    infos = classes_of(manifest, dataset_dir(manifest))
    mapping = parse_class_masks('', dataset_dir(manifest).name, member.classes, [c.label for c in infos])
    masks = class_masks(list(table.image), list(table.label), mapping, infos, member.spec) or (None, None)
    index = [member.classes.index(k) for k in table.label]
    return ExplainedImages(list(table.id), x, index, member.classes, list(table.patient), *masks), mapping


def main(run, **given):
    "Score, print and draw"
    torch.set_num_threads(1)
    member = Member.open(run)
    dataset = given.pop('dataset', member.about['dataset'])
    methods, most = given.pop('methods', ''), int(given.pop('images', 96))
    images, mapping = test_images(member, dataset, most)
    names = methods.split(',') if methods else methods_for(member.model, {k: v[:1] for k, v in images.x.items()})
    options = ScoreOptions(**{k: int(v) if v.isdigit() else v for k, v in given.items()})
    start = time.process_time()
    maps = {k: partial(relevance_maps, member.model, method=k) for k in names}
    study = score_maps(member.model, maps, images, options)
    spent = time.process_time() - start
    ranks = rank_maps(study)
    table = ranking_table(ranks, compare_with_references(study), randomisation_summary(study))
    print('| ' + ' | '.join(table) + ' |\n' + '|---'*table.shape[1] + '|')
    for row in table.itertuples(index=False): print('| ' + ' | '.join(map(str, row)) + ' |')
    print(f'\nmasks: {mapping}; chance:', ranks.groupby('score', sort=False).chance.first().dropna().round(3).to_dict())
    for v in map_verdicts(study): print(f'- {v.level}: {v.text}')
    print(f'{len(study.of("gain"))} of {study.given} images, {len(names)} methods, {spent:.0f} s of CPU')
    out = Path(run)/'map_scores'
    out.mkdir(exist_ok=True)
    figures = {'curves': show_map_curves(study), 'ranking': show_map_ranking(ranks), 'cascade': show_cascade(study)}
    for name, fig in figures.items():
        if fig is not None: fig.savefig(out/f'{name}.png', dpi=110, bbox_inches='tight')


if __name__ == '__main__': main(sys.argv[1], **dict(a.split('=', 1) for a in sys.argv[2:]))
