"""Where the project is not installed, its one module is found beside this."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
