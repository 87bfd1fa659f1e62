"Benchmarks of the papers: what they name exists, and what does not is an error"
import pytest

from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.recipes.pipelines import find_notebook, parameter_values
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.sources.benchmarks import _known_benchmarks, read_benchmark
from mirage_nb.sources.weights import known_weights


@pytest.mark.parametrize('name', sorted(_known_benchmarks()))
def test_what_a_benchmark_names_exists(name):
    found = read_benchmark(name)
    for task in found.tasks:
        known = set(parameter_values(find_notebook(task.pipeline)))
        assert set(task.values) | {'dataset'} <= known
        for model in found.models:
            if not task.after: assert set(model.values) <= known
        recipe = {'seg_tune': seg_recipe, 'cls_tune': cls_recipe}.get(task.pipeline)
        if recipe and 'recipe' in task.values: recipe(task.values['recipe'])
    for model in found.models:
        assert model.values['weights'] in {*known_weights(), 'timm', 'random', 'mirage_tiny'}
        if 'recipe' in model.values: cls_recipe(model.values['recipe'])


TASK = '{name = "A", pipeline = "seg_tune", dataset = "A", metric = "Dice", of = "mean"%s}'


@pytest.mark.parametrize('more, part', [
    (', after = "B"', "task A, after: no task 'B'"),
    (', published = [{model = "x", score = 0.5}]', "task A, published: no model 'x'"),
    (', published = [{model = "m", score = "high"}]', 'score'),
    (', metrics = "Dice"', 'metrics')])
def test_a_fault_in_a_file_is_named(tmp_path, more, part):
    path = tmp_path/'mine.toml'
    path.write_text(f'title = "T"\ncitation = "C"\ntasks = [{TASK % more}]\nmodels = [{{name = "m", values = {{}}}}]')
    with pytest.raises(ValueError, match='mine.toml') as e: read_benchmark(str(path))
    assert part in str(e.value)


def test_a_name_or_file_that_is_not_there():
    with pytest.raises(ValueError, match="no benchmark 'mirag'"): read_benchmark('mirag')
    with pytest.raises(FileNotFoundError, match='no benchmark .*none.toml'): read_benchmark('none.toml')
