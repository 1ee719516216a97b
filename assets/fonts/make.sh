#!/usr/bin/env bash
# Makes the fonts in this folder from Debian's packages (fonts-inter 4.0~beta7, fonts-jetbrains-mono 2.242): Latin, Greek, Cyrillic,
# mathematics, arrows and shapes only. Inter's figures become tabular, since egui cannot switch features.
# Needs: apt-get install fonts-inter fonts-jetbrains-mono fonts-dejavu-core; pip install fonttools
set -euo pipefail
cd "$(dirname "$0")"
unicodes="U+0020-007E,U+00A0-024F,U+0250-02AF,U+02B0-02FF,U+0300-036F,U+0370-03FF,U+0400-052F,U+1E00-1EFF,U+2000-206F,U+2070-209F"
unicodes+=",U+20A0-20CF,U+2100-214F,U+2150-218F,U+2190-21FF,U+2200-22FF,U+2300-23FF,U+2400-243F,U+2500-25FF,U+2600-27BF"
unicodes+=",U+2900-297F,U+2A00-2AFF,U+2B00-2BFF,U+FFFD"
for weight in Regular SemiBold; do
  python3 - "/usr/share/fonts/opentype/inter/Inter-$weight.otf" "tabular-$weight.otf" <<'PY'
import sys
from fontTools.ttLib import TTFont
font = TTFont(sys.argv[1])
gsub = font["GSUB"].table
lookups = {i for r in gsub.FeatureList.FeatureRecord if r.FeatureTag == "tnum" for i in r.Feature.LookupListIndex}
tabular = {}
for i in lookups:
    for sub in gsub.LookupList.Lookup[i].SubTable:
        tabular.update(getattr(getattr(sub, "ExtSubTable", sub), "mapping", {}))
for table in font["cmap"].tables:
    for code, name in list(table.cmap.items()):
        if chr(code) in "0123456789" and name in tabular:
            table.cmap[code] = tabular[name]
font.save(sys.argv[2])
PY
  python3 -m fontTools.subset "tabular-$weight.otf" --unicodes="$unicodes" --layout-features=kern,mark,mkmk,ccmp,locl \
    --no-hinting --desubroutinize --output-file="Inter-$weight.otf"
  rm "tabular-$weight.otf"
done
python3 -m fontTools.subset /usr/share/fonts/truetype/jetbrains-mono/JetBrainsMono-Regular.ttf --unicodes="$unicodes" \
  --layout-features=mark,mkmk,ccmp,locl --no-hinting --output-file=JetBrainsMono-Regular.ttf
# What the other two lack: modifier letters, a few mathematical signs and shapes, and common scripts (fonts-dejavu-core 2.37).
python3 -m fontTools.subset /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf --layout-features=mark,mkmk,ccmp,locl --no-hinting \
  --unicodes="U+0530-058F,U+0590-05FF,U+0600-06FF,U+10A0-10FF,U+1D00-1DBF,U+2C60-2C7F,U+2217,U+221D,U+25A3-25A5,U+25C8,U+25C9,U+25D0,U+27E8-27EB" --output-file=DejaVuSans-more.ttf
