"""Stand-ins for what foreign tools import and no verdict depends on, and for the base classes of a corpus.

Put into `sys.modules` before foreign code is imported, where the real ones are not installed. Loggers say
nothing; `toml` reads by the standard library; `addict.Dict` merges as the real one does.
"""

import hashlib
import importlib.util
import json
import sys
import tomllib
import types
from pathlib import Path
from typing import Any


class SilentLogger:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self


class MergedDict(dict):  # type: ignore[type-arg]
    """`update` goes into nested dictionaries."""

    def update(self, other: Any = (), **named: Any) -> None:  # type: ignore[override]
        for key, value in dict(other, **named).items():
            if isinstance(value, dict) and isinstance(self.get(key), dict):
                inner = MergedDict(self[key])
                inner.update(value)
                self[key] = inner
            else:
                self[key] = value

    def to_dict(self) -> dict[Any, Any]:
        return {k: MergedDict(v).to_dict() if isinstance(v, dict) else v for k, v in self.items()}


def install_for_tau2() -> None:
    _module("loguru", logger=SilentLogger())
    _module("dotenv", load_dotenv=lambda *args, **kwargs: True)
    _module("deepdiff", DeepDiff=dict)
    _module("addict", Dict=MergedDict)
    _module("docstring_parser", parse=_no_docstrings)
    _module("toml", load=lambda file: tomllib.loads(file.read()), loads=tomllib.loads)


def _no_docstrings(*_: Any) -> Any:
    raise RuntimeError("docstring_parser is not in the box: tool descriptions are not read by an audit")


def _module(name: str, **names: Any) -> None:
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    module = types.ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module


def install_for_general_agent() -> None:
    """`general_agent.tools` with its three names, as the corpus' tasks import them."""
    import pydantic

    class DB(pydantic.BaseModel):
        @classmethod
        def load(cls, path: str) -> Any:
            return cls.model_validate(json.loads(Path(path).read_text()))

        def get_hash(self) -> str:
            return hashlib.sha256(self.model_dump_json(exclude_none=False).encode()).hexdigest()[:12]

    class Tools:
        def __init__(self, db: Any) -> None:
            self.db = db

        @property
        def tool_methods(self) -> dict[str, Any]:
            marked = [n for n in dir(type(self)) if getattr(getattr(type(self), n), "__ga_tool__", False)]
            return {name: getattr(self, name) for name in marked}

        def call_tool(self, tool_name: str, **kwargs: Any) -> Any:
            methods = self.tool_methods
            if tool_name not in methods:
                raise ValueError(f"Unknown tool: {tool_name}")
            return methods[tool_name](**kwargs)

    def tool(function: Any) -> Any:
        function.__ga_tool__ = True
        return function

    tools = types.ModuleType("general_agent.tools")
    vars(tools).update(DB=DB, Tools=Tools, tool=tool)
    package = types.ModuleType("general_agent")
    vars(package).update(tools=tools)
    sys.modules["general_agent"] = package
    sys.modules["general_agent.tools"] = tools
