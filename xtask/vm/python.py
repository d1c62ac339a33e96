"""python.py paths        prints what identifies this interpreter and where it lies
python.py copy ROOT    copies it with its standard library under ROOT, at the same paths

Byte code is made here, and not checked against the sources in the guest (a file system
without times per file): compiling `import json` under emulation would take seconds.
"""

import compileall
import os
import py_compile
import shutil
import sys
import sysconfig

# Not for a lab: tests, editors, windows, documentation, installers, static libraries.
LEFT_OUT = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data",
    "site-packages", "dist-packages", "__pycache__",
}


def left_out(_folder, names):
    """What of a folder's names is not copied."""
    return {
        name
        for name in names
        if name in LEFT_OUT
        or name.startswith(("config-", "_test", "_tkinter", "_ctypes_test", "xx"))
        or name.endswith((".a", ".pyc"))
    }


def places():
    """The program, and the folders of its standard library."""
    program = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    paths = sysconfig.get_paths()
    # `platstdlib` of a virtual environment is the environment's own: take the base's.
    folders = {os.path.realpath(paths["stdlib"])}
    dynload = sysconfig.get_config_var("DESTSHARED")
    if dynload and os.path.isdir(dynload):
        folders.add(os.path.realpath(dynload))
    roots = [f for f in sorted(folders) if not any(f != g and f.startswith(g + "/") for g in folders)]
    return program, roots


def copy(root):
    """Lays the interpreter under `root`, with `python3` on the guest's PATH."""
    program, folders = places()
    to = root + program
    os.makedirs(os.path.dirname(to), exist_ok=True)
    shutil.copy2(program, to)
    for link in ("python3", "python"):
        path = f"{root}/usr/bin/{link}"
        if path != to and not os.path.exists(path):
            os.symlink(program, path)
    for folder in folders:
        shutil.copytree(folder, root + folder, ignore=left_out, dirs_exist_ok=True)
        compileall.compile_dir(
            root + folder,
            quiet=2,
            workers=0,
            stripdir=root,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


if sys.argv[1] == "paths":
    print(sys.version, *places(), sep="\n")
else:
    copy(sys.argv[2])
