"""YAML as plain data, of bounded size and depth, and without what makes a small text large.

A few hundred bytes of YAML can stand for gigabytes (aliases of aliases, merged mappings of merged mappings), and some
texts make PyYAML fail with any error. A file of classes needs neither anchors nor tags, so there are none.
"""

from __future__ import annotations

from typing import Any

from vadrun.errors import UserError
from vadrun.schema import Where, shown

MOST_BYTES = 1 << 18
_MOST_DEPTH = 16
_MOST_VALUES = 10_000
_MOST_DIGITS = 100


def parse_yaml(text: str, where: Where) -> Any:
    """The value of one YAML document: mappings, lists, texts, numbers and the like.

    Raises:
        UserError: it is not YAML, or uses anchors, tags or a key twice, or is too deep or too long; or PyYAML is not
            installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError(f"{where.name}: PyYAML is not installed: install vadclip-edge[train], or write JSON") from error
    try:
        depth = values = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise where.error("it has an anchor (&) or an alias (*), which are not supported")
            if getattr(event, "tag", None) is not None:
                raise where.error(f"it has the tag {shown(event.tag)}, and tags (!) are not supported")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            values += isinstance(event, yaml.NodeEvent)
            if depth > _MOST_DEPTH or values > _MOST_VALUES:
                limit = f"{_MOST_DEPTH} levels" if depth > _MOST_DEPTH else f"{_MOST_VALUES} values"
                raise where.error(f"it has more than {limit}")
        node = yaml.compose(text, yaml.SafeLoader)
        _check_nodes(node, where)
        return yaml.safe_load(text)
    except UserError:
        raise
    except yaml.YAMLError as error:
        raise where.error(f"it is not YAML ({' '.join(str(error).split())[:200]})") from error
    except Exception as error:  # PyYAML lets through what int(), float(), date() and others make of odd scalars
        raise where.error(f"it is not YAML ({' '.join(str(error).split())[:200] or type(error).__name__})") from error


def _check_nodes(root: Any, where: Where) -> None:
    """Refuse mappings that have a key twice (PyYAML takes the last) or merge others, and endless numbers."""
    import yaml

    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(node.value) > _MOST_DIGITS:
                raise where.error(f"line {node.start_mark.line + 1} has a number of {len(node.value)} digits")
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            seen: set[tuple[str, str]] = set()
            for key, value in node.value:
                line = f"line {key.start_mark.line + 1}"
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    raise where.error(f"{line} has a key that is no plain word")
                if (key.tag, key.value) in seen:
                    raise where.error(f"{line} has the key {shown(key.value)} for the second time")
                seen.add((key.tag, key.value))
                waiting += [key, value]
