"""The style sheet of the report page: light and dark, phone and paper."""

from __future__ import annotations

from graftwood.evals.lights import COLOURS
from graftwood.evals.svgkit import FAINT, HAIR, INK, PAPER, SOFT, TRACK
from graftwood.evals.words import ACCENTS

# Inline pictures carry their colours as attributes, which any rule outweighs: dark mode only has to rename them.
_DARK = {
    INK: "#e2e8f0",
    SOFT: "#94a3b8",
    FAINT: "#475569",
    HAIR: "#293548",
    TRACK: "#1e293b",
    PAPER: "#111827",
    ACCENTS["GAINED"]: "#4ade80",
    ACCENTS["KEPT"]: "#60a5fa",
    ACCENTS["MEMORY"]: "#a78bfa",
    ACCENTS["CHOSEN"]: "#fbbf24",
    "#b91c1c": "#f87171",
}
_RECOLOUR = "".join(
    f'svg [fill="{light}"]{{fill:{dark}}}svg [stroke="{light}"]{{stroke:{dark}}}' for light, dark in _DARK.items()
)
_SECTIONS = "".join(f".{name.lower()}{{--accent:{colour}}}" for name, colour in ACCENTS.items())
_SECTIONS_DARK = "".join(f".{name.lower()}{{--accent:{_DARK[colour]}}}" for name, colour in ACCENTS.items())
_LIGHTS = "".join(f".light.{level}{{background:{colour}}}" for level, colour in COLOURS.items())

CSS = f"""
:root{{color-scheme:light dark;--ink:{INK};--soft:#526074;--hair:{HAIR};--paper:{PAPER};--page:#f6f7f9;
--good:#15803d;--bad:#b91c1c;--warn:#b45309;--accent:var(--ink)}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 Inter,'Segoe UI','Helvetica Neue','DejaVu Sans',
Verdana,Arial,sans-serif}}
main{{max-width:1080px;margin:0 auto;padding:40px 20px 64px}}
h1{{font-size:1.75rem;line-height:1.25;margin:0 0 6px;overflow-wrap:anywhere}}
h2{{font-size:1.05rem;margin:0 0 10px;color:var(--accent)}}
p{{margin:0 0 12px;overflow-wrap:anywhere}}
small,.soft{{color:var(--soft)}}small{{font-size:.82em;font-weight:400}}td small{{white-space:nowrap}}
.warning{{color:var(--warn);margin:6px 0 0}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:16px;margin:28px 0 16px}}
article,section,details{{background:var(--paper);border:1px solid var(--hair);border-radius:10px;padding:20px}}
article{{border-top:3px solid var(--accent);font-size:.9rem;min-width:0}}
article h2{{font-size:.85rem;letter-spacing:.04em;margin:0}}
article p{{margin:0}}
.big{{font-size:1.9rem;font-weight:700;line-height:1.2;margin:6px 0 10px;color:var(--accent);overflow-wrap:anywhere}}
section,details{{margin:16px 0}}
.scroll{{overflow-x:auto;margin-bottom:14px}}.scroll:last-child{{margin-bottom:0}}.facts{{margin-bottom:14px}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
th,td{{text-align:left;vertical-align:top;padding:9px 18px 9px 0;border-bottom:1px solid var(--hair);
overflow-wrap:anywhere;min-width:84px;max-width:420px}}
thead th{{font-size:.82rem;color:var(--soft);font-weight:600;padding-top:0}}
tbody th{{font-weight:600;min-width:150px;overflow-wrap:break-word}}
tbody tr:last-child>*{{border-bottom:0}}
.facts th{{width:290px}}.facts br{{display:none}}.facts small{{margin-left:.9em}}
.dim{{opacity:.62}}
.better{{color:var(--good)}}.worse{{color:var(--bad)}}
.lights{{list-style:none;padding:0;margin:0 0 14px}}
.light{{display:inline-block;width:.62em;height:.62em;border-radius:50%;margin-right:.45em}}
figure{{margin:16px 0 0}}figcaption{{font-size:.82rem}}
svg{{max-width:100%;min-width:560px;height:auto;display:block}}
.samples td,.samples th{{width:25%;min-width:190px;font-weight:400}}
pre{{font:.86em/1.5 ui-monospace,'SF Mono',Consolas,'DejaVu Sans Mono',monospace;white-space:pre-wrap;
overflow-wrap:anywhere;margin:0}}
dt{{font-weight:600}}dd{{margin:0 0 10px}}
summary{{cursor:pointer;font-weight:600}}details pre{{margin-top:12px}}
{_SECTIONS}{_LIGHTS}
@media (prefers-color-scheme:dark){{
:root{{--ink:{_DARK[INK]};--soft:{_DARK[SOFT]};--hair:{_DARK[HAIR]};--paper:{_DARK[PAPER]};--page:#0b1120;
--good:#4ade80;--bad:#f87171;--warn:#fbbf24}}
{_SECTIONS_DARK}
{_RECOLOUR}
}}
@media print{{
:root{{--page:{PAPER}}}
main{{max-width:none;padding:0}}
article,section{{break-inside:avoid}}
details{{display:none}}
}}
"""
