"A benchmark with what is on disk: what is missing is named, and scores stand beside published ones"
import pandas as pd
import pytest

from mirage_nb.recipes.benchmark import BenchmarkJob
from mirage_nb.sweeps.benchmarking import benchmark_result, benchmark_table, plan_benchmark, runs_hash, shown_table
from mirage_nb.sweeps.cells import CellState


@pytest.fixture
def empty(tmp_path, monkeypatch):
    for name in ('MIRAGE_DATA', 'MIRAGE_WEIGHTS'):
        (tmp_path/name).mkdir()
        monkeypatch.setenv(name, str(tmp_path/name))
    return tmp_path


def test_what_is_missing_is_named_with_how_to_get_it(empty):
    plan = plan_benchmark(BenchmarkJob(benchmark='medical_mae'))
    missing = plan.missing_table()
    assert not plan.jobs and len(missing) == 10
    assert 'MIRAGE_DATA' in missing.loc['NIH ChestX-ray14', 'how to get it']
    assert 'mirage_nb.data.fetch medical_mae_vit_s' in missing.loc['ViT-S, MAE on X-rays', 'how to get it']


def test_only_what_is_there_is_run(empty):
    (empty/'MIRAGE_DATA'/'AROI').mkdir()
    (empty/'MIRAGE_DATA'/'Duke_iAMD_labeled').mkdir()
    (empty/'MIRAGE_WEIGHTS'/'MIRAGE-Base.pth').write_bytes(b'PK\x03\x04')
    plan = plan_benchmark(BenchmarkJob(benchmark='mirage', models=['MIRAGE-Base', 'MIRAGE-Large'], seeds=2,
                                       values={'epochs': 3}))
    cells = plan.cells()
    assert [str(c) for c in cells] == ['AROI, MIRAGE-Base, seed 0', 'AROI, MIRAGE-Base, seed 1']
    assert cells[0].values == {'dataset': 'AROI', 'recipe': 'seg_200e_convnext', 'model': 'mirage_base',
                               'weights': 'MIRAGE-Base', 'seed': 0, 'epochs': 3}
    states = [CellState(c, 'finished', empty/f'run{i}') for i, c in enumerate(cells)]
    states[1].state = 'failed'
    ((job, later),) = plan.later_cells(states)
    assert later.pipeline == 'seg_eval' and job.key == ('AROI to Duke iAMD', 'MIRAGE-Base', 0)
    assert later.values == {'dataset': 'Duke_iAMD_labeled', 'run': str(empty/'run0')}
    words = ' '.join(v['text'] for v in benchmark_result(plan, states, benchmark_table(plan, {}))['verdicts'])
    assert '1 run failed: AROI, MIRAGE-Base, seed 1' in words and '1 model of 2 not run' in words
    assert runs_hash(states) != runs_hash(states[:1])


def test_scores_stand_beside_published_ones(empty):
    plan = plan_benchmark(BenchmarkJob(benchmark='medical_mae', seeds=2))
    rows = pd.DataFrame({'Class': ['mean (macro)', 'all'], 'metric': ['AUROC', 'accuracy'], 'mean': [.81, .5],
                         'low': [.7, .4], 'high': [.9, .6]})
    for k in (0, 1):
        (empty/str(k)).mkdir()
        rows.assign(mean=rows['mean'] + k/50).to_csv(empty/str(k)/'test_metrics.csv', index=False)
    key = 'NIH ChestX-ray14', 'ViT-S, MAE on X-rays'
    table = benchmark_table(plan, {(*key, k): empty/str(k) for k in (0, 1)})
    row = table.loc[key]
    assert (row.here, row['SD over seeds'], row.published) == ('0.820 [0.700, 0.900]', '0.014', '0.823')
    assert 'chosen on the test set' in row.protocol and table.loc[('COVIDx', key[1])].here == ''
    assert 'value' not in shown_table(table)
    found = benchmark_result(plan, [], table)
    assert found['summary'][1] == 'NIH ChestX-ray14, ViT-S, MAE on X-rays: AUROC, mean (macro) 0.820 [0.700, 0.900]'
    assert found['means'][key[1]] == {'NIH ChestX-ray14, AUROC, mean (macro)': pytest.approx(.82)}
    assert any('not of the same test' in v['text'] for v in found['verdicts'])


def test_a_name_that_the_benchmark_lacks():
    cfg = BenchmarkJob(benchmark='medical_mae', tasks=['NIH'])
    with pytest.raises(ValueError, match="no task 'NIH'"): plan_benchmark(cfg)
