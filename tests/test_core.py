"Words for a name that is not known"
import pytest

from mirage_nb.core import unknown


@pytest.mark.parametrize('name, known, hint', [
    ('phantom_oct', ['Phantom_UWF', 'Phantom_OCT'], 'Phantom_OCT'), ('DUKE_DMY', ['AROI', 'Duke_DME'], 'Duke_DME'),
    ('retfound_mae', ['MIRAGE', 'RETFound_mae'], 'RETFound_mae'), ('mirage_bas', ['mirage_base'], 'mirage_base'),
    ('xyz', ['linear'], None), (3, ['4'], None)])
def test_suggestions_do_not_depend_on_capital_letters(name, known, hint):
    text = unknown('thing', name, known)
    assert text.startswith(f"no thing '{name}'.") and text.endswith(f"Known: {', '.join(known)}")
    assert f"Did you mean '{hint}'?" in text if hint else 'Did you mean' not in text
