"""The studies, one module each; `catalog.STUDIES` names them."""
