"""Which host runs: the environment variable, the finder, and what stays unimported."""

from __future__ import annotations

import importlib.util

import pytest

import d2_smallobj
from d2_smallobj import _host

# A process in which no detectron2 is installed, whatever the environment holds.
NONE_INSTALLED = "import d2_smallobj._host as h; h._find_installed = lambda: None\n"


@pytest.fixture
def installed(tmp_path):
    """A folder on the path with a package that passes for an installed detectron2."""
    package = tmp_path / "site" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "9.9"\nIS_REAL = True\n')
    return package.parent


def test_auto_without_an_installation_is_the_embedded_host(run_python):
    out = run_python(NONE_INSTALLED + "import d2_smallobj as s, detectron2\nprint(s.host())")
    assert out.startswith("embedded 0.6+embedded (")


def test_auto_prefers_an_installation_and_host_imports_nothing(run_python, installed):
    code = (
        "import sys, d2_smallobj as s\n"
        "print(*s.host()); print('detectron2' in sys.modules)\n"
        "import detectron2; print(detectron2.IS_REAL, s.host().name)"
    )
    expected = f"detectron2 9.9 {installed / 'detectron2'}\nFalse\nTrue detectron2\n"
    assert run_python(code, path=[installed]) == expected


def test_embedded_is_forced_over_an_installation(run_python, installed):
    code = "import d2_smallobj as s, detectron2; print(detectron2.__version__, s.host().name)"
    out = run_python(code, host="embedded", path=[installed])
    assert out == "0.6+embedded embedded\n"


def test_a_bare_folder_of_that_name_is_no_installation(run_python, tmp_path):
    # The parent of a git clone: the standard finder takes the folder for a namespace package.
    (tmp_path / "clones" / "detectron2" / "docs").mkdir(parents=True)
    code = (
        "import importlib.machinery as m, d2_smallobj as s, detectron2\n"
        "print(m.PathFinder.find_spec('detectron2') is not None, bool(detectron2.__version__))"
    )
    assert run_python(code, path=[tmp_path / "clones"]) == "True True\n"


def test_forced_detectron2_without_an_installation_says_how_to_get_one(run_python):
    code = NONE_INSTALLED + "import d2_smallobj as s\n{}"
    for use in ("import detectron2", "s.host()", "s.add_smallobj_config"):
        error = run_python(code.format(use), host="detectron2", fails=True)
        assert "ModuleNotFoundError: D2_SMALLOBJ_HOST=detectron2 asks" in error
        assert "INSTALL.md" in error
        assert "unset D2_SMALLOBJ_HOST" in error


def test_an_unknown_value_is_an_error_with_a_hint_at_use_only(run_python):
    run_python("import d2_smallobj.metrics", host="embeded")
    for use in ("import detectron2", "import d2_smallobj; d2_smallobj.host()"):
        error = run_python("import d2_smallobj\n" + use, host="embeded", fails=True)
        assert "ValueError: D2_SMALLOBJ_HOST: unknown value 'embeded'" in error
        assert "did you mean 'embedded'?" in error


def test_an_empty_variable_is_auto(run_python):
    assert (
        run_python("import d2_smallobj._host as h; print(h.requested_mode())", host="") == "auto\n"
    )


@pytest.mark.parametrize("wanted", ["embedded", "detectron2"])
def test_a_choice_that_comes_too_late_is_an_error(run_python, installed, wanted):
    first = "embedded" if wanted == "detectron2" else "detectron2"
    code = (
        "import os, d2_smallobj as s, detectron2\n"
        f"os.environ['D2_SMALLOBJ_HOST'] = {wanted!r}\n"
        "s.host()"
    )
    error = run_python(code, host=first, path=[installed], fails=True)
    assert f"ImportError: D2_SMALLOBJ_HOST={wanted}, but {first} " in error
    assert "before anything imports detectron2" in error


def test_importing_the_package_is_light(run_python):
    code = (
        "import sys, d2_smallobj; d2_smallobj.host()\n"
        "print([m for m in ('torch', 'numpy', 'cv2', 'detectron2', 'fvcore') if m in sys.modules])"
    )
    assert run_python(code) == "[]\n"


def test_metrics_need_no_host_and_no_torch(run_python):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import d2_smallobj.metrics; from d2_smallobj import metrics, annotations\n"
        "print('detectron2' in sys.modules, 'd2_smallobj.plugin' in sys.modules)"
    )
    assert run_python(code, host="detectron2") == "False False\n"


def test_public_names_come_from_the_plugin_on_first_use(run_python):
    code = (
        "import sys, types, d2_smallobj as s\n"
        "plugin = types.ModuleType('d2_smallobj.plugin')\n"
        "plugin.__all__, plugin.thing, plugin.hidden = ['thing'], 7, 8\n"
        "sys.modules['d2_smallobj.plugin'] = plugin\n"
        "print(s.thing, 'thing' in vars(s), s.metrics.__name__)\n"
        "for name in ('hidden', 'nonsense', '_private'):\n"
        "    try:\n"
        "        getattr(s, name)\n"
        "    except AttributeError as error:\n"
        "        print(error)\n"
    )
    assert run_python(NONE_INSTALLED + code).splitlines() == [
        "7 True d2_smallobj.metrics",
        *(
            f"module 'd2_smallobj' has no attribute '{name}'"
            for name in ("hidden", "nonsense", "_private")
        ),
    ]


@pytest.mark.parametrize("early", [True, False])
def test_the_host_is_logged_once(run_python, early):
    # Set up before the import or after it: either way one line is seen.
    lines = [
        "import logging, sys, d2_smallobj as s",
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)",
        "import detectron2",
    ]
    order = lines if early else [lines[0], lines[2], lines[1]]
    out = run_python("\n".join([*order, "s.announce_host(); s.announce_host()"]), host="embedded")
    assert out.count("INFO:d2_smallobj:Host: embedded 0.6+embedded") == 1


def test_the_finder_answers_for_one_name_only_and_is_installed_once():
    _host.install()
    import sys

    finders = [finder for finder in sys.meta_path if isinstance(finder, _host.HostFinder)]
    assert len(finders) == 1
    assert finders[0].find_spec("detectron2.config", None) is None
    assert finders[0].find_spec("torch", None) is None
    assert finders[0].find_spec("detectron2", None) is not None


def test_the_host_in_use_here():
    found = d2_smallobj.host()
    assert found.name in ("embedded", "detectron2")
    assert str(found) == f"{found.name} {found.version} ({found.path})"
    assert importlib.util.find_spec("detectron2").origin.startswith(found.path)
