"Holm's correction against known answers"
import numpy as np

from mirage_nb.eval.comparing.results import holm


def test_holm_known_answers():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.9]), [1, 1])
    assert len(holm([])) == 0
