"""The documentation page at /docs: every operation of the OpenAPI document, and a form to try it.

FastAPI's own page loads scripts from a public server, which an endpoint in a closed network cannot reach.
"""

from __future__ import annotations

from html import escape
from typing import Any

_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}}
code,pre{{font-family:ui-monospace,monospace;font-size:.9em}}
pre{{background:#f3f4f6;padding:1rem;overflow:auto}}
h2{{margin-top:2.5rem;font-size:1.1rem}}
.verb{{background:#1b4f9c;color:#fff;padding:.1rem .5rem;border-radius:4px}}
#d img{{max-width:19rem;margin:1rem 1rem 0 0;vertical-align:top}}
table{{border-collapse:collapse}} td,th{{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}}
</style></head><body><h1>{title}</h1><p>{description}</p>
<p>The same for programs: <a href="openapi.json">openapi.json</a></p>
<h2>Try it</h2><form id="f"><label>Model <input id="n" value="{model}" required></label>
<label>Pictures <input id="p" type="file" accept="image/*" multiple required></label>
<button>Predict</button></form><div id="d"></div><pre id="o" hidden></pre>
"""
_TAIL = """<script>
document.getElementById("f").addEventListener("submit", async (event) => {
  event.preventDefault();
  const out = document.getElementById("o"), drawn = document.getElementById("d"), body = new FormData();
  const files = [...document.getElementById("p").files];
  for (const file of files) body.append("file", file);
  out.hidden = false; out.textContent = "..."; drawn.replaceChildren();
  const model = "v1/models/" + encodeURIComponent(document.getElementById("n").value);
  try {
    const answer = await fetch(model + "/predict", {method: "POST", body});
    out.textContent = answer.status + "\\n" + JSON.stringify(await answer.json(), null, 2);
    for (const file of answer.ok ? files : []) {
      const picture = await fetch(model + "/draw", {method: "POST", body: file});
      const image = drawn.appendChild(document.createElement("img"));
      image.alt = file.name; image.src = URL.createObjectURL(await picture.blob());
    }
  } catch (error) { out.textContent = String(error); }
});
</script></body></html>
"""


def render(openapi: dict[str, Any], model: str) -> str:
    """An OpenAPI document -> an HTML page that loads no other files. ``model``: the form's first value."""
    info = openapi["info"]
    parts = [
        _HEAD.format(
            title=escape(info["title"]), description=escape(info.get("description", "")), model=escape(model)
        )
    ]
    for path, verbs in openapi["paths"].items():
        for verb, operation in verbs.items():
            parts.append(_operation(path, verb, operation))
    return "".join(parts) + _TAIL


def _operation(path: str, verb: str, operation: dict[str, Any]) -> str:
    rows = []
    for parameter in operation.get("parameters", []):
        default = parameter.get("schema", {}).get("default")
        text = parameter.get("description", "") + ("" if default is None else f" (default {default})")
        rows.append((f"{parameter['in']} {parameter['name']}", text))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        rows.append((f"body {kind}", content.get("schema", {}).get("description", "")))
    rows += [(status, answer.get("description", "")) for status, answer in operation["responses"].items()]
    table = "".join(f"<tr><th><code>{escape(a)}</code></th><td>{escape(b)}</td></tr>" for a, b in rows)
    description = escape(operation.get("description", operation.get("summary", "")))
    return (
        f'<h2><span class="verb">{escape(verb.upper())}</span> <code>{escape(path)}</code></h2>'
        f"<p>{description}</p><table>{table}</table>\n"
    )
