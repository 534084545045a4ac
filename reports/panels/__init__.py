"""What the page shows, in its order."""

from reports.panels.attention import ATTENTION
from reports.panels.concepts import CONCEPTS
from reports.panels.heads import PAPER, TOPOLOGY
from reports.panels.interventions import INTERVENTIONS
from reports.panels.kotodama import LINEAGE
from reports.panels.panel import Drawing, Panel, Section
from reports.panels.recurrent import RECURRENT
from reports.panels.sizes import SIZES
from reports.panels.text import TEXT
from reports.panels.training import TRAINING

SECTIONS = (PAPER, TOPOLOGY, SIZES, INTERVENTIONS, LINEAGE, TRAINING, ATTENTION, CONCEPTS, RECURRENT, TEXT)

__all__ = ["SECTIONS", "Drawing", "Panel", "Section"]
