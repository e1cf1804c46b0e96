"""The tests; ``LIGHTNING=pytorch_lightning`` runs them with the classes of that package."""

import os

if os.environ.get("LIGHTNING") == "pytorch_lightning":
    from tests.other_package import redirect_imports

    redirect_imports()
