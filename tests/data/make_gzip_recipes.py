"""Writes gzip_recipes.json: one blob, and its recipe under every model. Run once; the file is never made again.

    python -m tests.data.make_gzip_recipes > tests/data/gzip_recipes.json

A new model is added to the file by hand or by a copy of this; the recipes that are there stay as they are.
"""

import base64
import gzip
import io
import json
from unittest import mock

from layerstore.formats import gzipsplit
from layerstore.formats.gzipsplit import Family, Model, encode_recipe, split_gzip
from tests.support.gzips import text_of

SIZE = 80_000
MODELS = [
    *(Model(Family.ZLIB, level) for level in range(1, 10)),
    Model(Family.ZLIB, 2, 32 << 10),
    Model(Family.ZLIB, 6, 64 << 10),
    *(Model(Family.GO, level) for level in range(2, 10)),
    Model(Family.GO_FAST, 1),
    *(Model(Family.KLAUSPOST, level) for level in (1, 5, 6, 15, 25)),
    Model(Family.KLAUSPOST, 5, 32 << 10),
]


def main() -> None:
    """Print the document."""
    blob = gzip.compress(text_of(SIZE), 6, mtime=0)
    recipes = {}
    for model in MODELS:
        with (
            mock.patch.object(gzipsplit, "_choose", lambda stream, model=model: model),
            mock.patch.object(gzipsplit, "_DEAREST", 1),
        ):
            data = encode_recipe(split_gzip(io.BytesIO(blob)))
        recipes[str(model)] = base64.b64encode(data).decode()
    document = {"size": SIZE, "blob": base64.b64encode(blob).decode(), "recipes": recipes}
    print(json.dumps(document, indent=0))


if __name__ == "__main__":
    main()
