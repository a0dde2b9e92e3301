"""Downloads in the portals' layouts, made at test time: tables with the real ones' defects, small images.

Each function of `portals_figures` and `portals_studies` fills a folder and is named after its source, `-` written as `_`.
"""

import portals_figures
import portals_studies
from making import PORTALS, dicom, pixels, table

__all__ = ["PORTALS", "dicom", "pixels", "portals_figures", "portals_studies", "table"]
