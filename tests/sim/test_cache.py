"""The cache folder follows the XDG rule."""

from pathlib import Path

from sigbit_sim.cache import cache_folder


def test_results_are_cached_where_the_user_wants(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder().as_posix() == "/somewhere/sigbit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sigbit"
