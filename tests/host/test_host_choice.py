"""Which host runs: the environment variable, the finder, and what stays unimported."""

import importlib.util
import re
import sys

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


AUTO = "import d2_smallobj as s, detectron2\nprint(s.host())"
REAL = (
    "import sys, d2_smallobj as s\nprint(*s.host()); print('detectron2' in sys.modules)\n"
    "import detectron2; print(detectron2.IS_REAL, s.host().name)"
)
FORCED = "import d2_smallobj as s, detectron2; print(detectron2.__version__, s.host().name)"
# The parent of a git clone: the standard finder takes the folder for a namespace package.
CLONE = (
    "import importlib.machinery as m, d2_smallobj as s, detectron2\n"
    "print(m.PathFinder.find_spec('detectron2') is not None, bool(detectron2.__version__))"
)
FOUND = "detectron2 9.9 {}/detectron2"
EMPTY = "import d2_smallobj._host as h; print(h.requested_mode())"


@pytest.mark.parametrize(
    ("host", "path", "code", "expected"),
    [
        pytest.param(None, "", NONE_INSTALLED + AUTO, "embedded 0.6+embedded", id="none"),
        pytest.param(None, "site", REAL, f"{FOUND}\nFalse\nTrue detectron2", id="installed"),
        pytest.param("embedded", "site", FORCED, "0.6+embedded embedded", id="forced"),
        pytest.param(None, "clones", CLONE, "True True", id="clone"),
        pytest.param("", "", EMPTY, "auto", id="empty"),
    ],
)
def test_the_choice(run_python, installed, host, path, code, expected):
    (installed.parent / "clones" / "detectron2" / "docs").mkdir(parents=True)
    out = run_python(code, host=host, path=[installed.parent / path] if path else [])
    assert out.split(" (")[0].strip() == expected.format(installed)


def test_what_cannot_be_had_is_an_error_at_use_only(run_python):
    begin = NONE_INSTALLED + "import d2_smallobj as s\n"
    none = (
        r"ModuleNotFoundError: D2_SMALLOBJ_HOST=detectron2 asks .*INSTALL\.md.*unset D2_SMALLOBJ_"
    )
    typo = r"ValueError: D2_SMALLOBJ_HOST: unknown value 'embeded'.*did you mean 'embedded'\?"
    for host, use, told in (
        ("detectron2", "import detectron2", none),
        ("detectron2", "import d2_smallobj.metrics; s.host()", none),
        ("detectron2", "s.add_smallobj_config", none),
        ("embeded", "import detectron2", typo),
        ("embeded", "import d2_smallobj.metrics; s.host()", typo),
    ):
        error = run_python(begin + use, host=host, fails=True)
        assert re.search(told, error)


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


def test_the_package_is_light_and_metrics_need_no_host_and_no_torch(run_python):
    code = (
        "import sys, d2_smallobj; d2_smallobj.host()\n"
        "print({'torch', 'numpy', 'cv2', 'detectron2', 'fvcore'} & set(sys.modules))\n"
        "sys.modules['torch'] = None\n"
        "import d2_smallobj.metrics; from d2_smallobj import metrics, annotations\n"
        "print('detectron2' in sys.modules, 'd2_smallobj.plugin' in sys.modules)"
    )
    assert run_python(code) == "set()\nFalse False\n"


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
    lines = run_python(NONE_INSTALLED + code).splitlines()
    lacks = "module 'd2_smallobj' has no attribute"
    assert lines[0] == "7 True d2_smallobj.metrics"
    assert lines[1:] == [f"{lacks} '{name}'" for name in ("hidden", "nonsense", "_private")]


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
