"""Doctests of the package's docstrings become examples on the site, rather than quotations."""

import griffe


class Doctests(griffe.Extension):
    """Puts the heading that griffe looks for above a doctest that stands without one."""

    def on_object(self, *, obj, **_):
        """Change the docstring of one object."""
        if obj.docstring is None or ">>>" not in obj.docstring.value:
            return
        lines = []
        for line in obj.docstring.value.splitlines():
            first = line.startswith(">>>") and (not lines or not lines[-1].strip())
            if first and "Examples:" not in lines:
                lines.append("Examples:")
            inside = "Examples:" in lines and line.strip() and lines[-1:] != [""]
            started = inside or line.startswith(">>>")
            lines.append(f"    {line}" if started else line)
        obj.docstring.value = "\n".join(lines)
