import sys

import pytest

from mmrl.errors import UserError
from mmrl.packages import package_folder


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch):
    folder = tmp_path / "heavy_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_folder("heavy_weights", "heavy-weights==1") == folder
    assert "heavy_weights" not in sys.modules


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(UserError, match="pip install --no-deps no-such-weights==1"):
        package_folder("no_such_weights", "no-such-weights==1")
